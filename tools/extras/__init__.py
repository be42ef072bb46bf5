"""Whether each extra of pyproject.toml installs, works, and is named where it is missing."""
