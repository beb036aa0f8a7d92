"""A folder of one's own images, divided into base, open-world and novel classes by its `split.json`."""
