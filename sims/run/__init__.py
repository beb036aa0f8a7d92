"""A run: its settings, its folder, its processes, and the network and environment that they live in."""
