"""The command line. A user's mistake is one line after ``error:`` and exit code 2.

The commands stand in modules by what they are for, and import torch and the like when they run, so
that ``--help`` answers at once.
"""

from .main import app, main

__all__ = ["app", "main"]
