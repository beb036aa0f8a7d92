"""The images of a simulation: sources, division into classes, worlds."""
