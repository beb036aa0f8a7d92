"""The Flower app of a deployment: only its `pyproject.toml`; what it names lies in the installed packages."""
