"""The boundary, attacked: a real deployment on this machine, attempts to get out of it or into it, and what came of them."""
