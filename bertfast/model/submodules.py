"""Modules of a tree under the names that the encoder and the heads call them by.

The encoder and the heads are written once, over `Submodules` of a tree. A model of ours makes its
modules at the places that its row of `family.FAMILY` says. The drop-in backend lays the same names
over a live model of `transformers`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Submodules:
    """Modules of a tree under other names; a module that the tree lacks is None.

    A module is looked up at each use, so one that was exchanged, by an adapter library say, takes
    part.

    Args:
        root: of the tree.
        paths: from the name here to the dotted path below ``root``.
    """

    def __init__(self, root: nn.Module, paths: dict[str, str]) -> None:
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        for name, path in paths.items():
            parent, _, own = path.rpartition(".")
            try:
                self._homes[name] = (root.get_submodule(parent), own)
            except AttributeError:
                continue

    def __getattr__(self, name: str) -> Any:  # a module with its kind's attributes, or None
        if name.startswith("__"):  # copying and pickling ask for their hooks
            raise AttributeError(name)
        home = self.__dict__["_homes"].get(name)
        return None if home is None else home[0]._modules.get(home[1])

    def names(self) -> list[str]:
        """The names of what the tree may hold."""
        return list(self._homes)

    def parameter(self, name: str) -> Tensor:
        """The parameter, not module, at that name's path."""
        home, own = self._homes[name]
        return getattr(home, own)


def place(root: nn.Module, path: str, module: nn.Module | nn.Parameter) -> None:
    """Puts ``module`` at a dotted path below ``root``, making the modules between."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]  # type: ignore[assignment]
    if isinstance(module, nn.Parameter):
        root.register_parameter(name, module)
    else:
        root.add_module(name, module)
