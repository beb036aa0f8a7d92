"""The boundary, attacked: a real deployment on this machine, attempts on it, and what came of them."""
