"""The Flower app of a deployment: only its `pyproject.toml`, which names modules of the installed packages."""
