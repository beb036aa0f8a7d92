"""Where a simulation's images come from."""
