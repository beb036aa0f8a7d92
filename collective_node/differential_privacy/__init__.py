"""Training and Fisher information with differential privacy."""
