"""Makes ``attn_implementation="bertfast"`` known to transformers, whichever of the two packages is
imported first.

Neither package imports the other for it: what is registered are two functions that import the
attention when a model first calls it.
"""

from __future__ import annotations

import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "bertfast"
MODULE = "transformers.modeling_utils"  # where the models look an implementation up


def register_attention() -> None:
    """Registers ``attn_implementation="bertfast"`` with transformers; ``import bertfast`` has it
    done already, in either order of the imports.

    Raises:
        BertfastError: transformers is not installed, or is older than 4.50.
    """
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        from .errors import BertfastError

        raise BertfastError(
            f"transformers' attention interface is not there ({error}); pip install 'bertfast[hf]'"
        ) from None
    if isinstance(ALL_ATTENTION_FUNCTIONS, dict):  # before 4.51 or so
        ALL_ATTENTION_FUNCTIONS[NAME] = _attention
    else:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    try:
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError:
        return  # before 4.53 each model makes its masks itself
    AttentionMaskInterface.register(NAME, _attention_mask)


def register_attention_on_import() -> None:
    """Has `register_attention` done when transformers is imported, now if it is already."""
    if MODULE in sys.modules:
        _register_or_warn()
    else:
        sys.meta_path.insert(0, _Finder())


def _attention(*args: Any, **kwargs: Any) -> Any:
    from .hub.attention_interface import attention

    return attention(*args, **kwargs)


def _attention_mask(*args: Any, **kwargs: Any) -> Any:
    from .hub.attention_interface import attention_mask

    return attention_mask(*args, **kwargs)


def _register_or_warn() -> None:
    try:
        register_attention()
    except Exception as error:  # whatever a future transformers changes, importing it must go on
        warnings.warn(
            f'attn_implementation="{NAME}" cannot be registered with transformers: {error}',
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Finds `MODULE` alone, as the ordinary finder does, with itself as the loader."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a module with another loader, then registers."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register_or_warn()
