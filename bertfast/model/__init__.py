"""One encoder for the whole family, and its heads."""

from .members import *  # noqa: F403
from .members import ARCHITECTURES, member_class
from .models import PreTrainedModel

__all__ = ["ARCHITECTURES", "PreTrainedModel", "member_class", *ARCHITECTURES]
