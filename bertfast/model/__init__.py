"""One encoder for the whole family, and its heads."""

from .checkpoint import load_config, load_weights
from .members import *  # noqa: F403
from .members import ARCHITECTURES, load, member_class
from .models import PreTrainedModel

__all__ = [
    "ARCHITECTURES",
    "PreTrainedModel",
    "load",
    "load_config",
    "load_weights",
    "member_class",
    *ARCHITECTURES,
]
