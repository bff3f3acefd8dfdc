"""The version, written here alone: the build, the changelog and the documentation read it."""

__version__ = "0.1.0.dev0"
