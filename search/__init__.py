"""The service: a spec in, the best model out."""

__version__ = "0.1.0"
