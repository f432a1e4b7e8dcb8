"""The thin, exact, honest wrapper around kohya's sd-scripts."""

__version__ = "0.1.0"
