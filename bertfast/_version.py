"""The version, read by the build and by `bertfast --version`."""

__version__ = "0.1.0"
