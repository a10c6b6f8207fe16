"""The version of edgevit, where the build backend reads it and every room may import it."""

__version__ = "0.1.0"
