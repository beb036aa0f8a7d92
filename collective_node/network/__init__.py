"""The network that grows: its layers, its schedule."""
