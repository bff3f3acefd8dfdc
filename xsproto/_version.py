"""The version of xsproto, in one place: pyproject.toml, the package and the manual read it here."""

__version__ = "0.1.0.dev0"
