"""What a run is made of: its processes, the network and the environment that they live in."""
