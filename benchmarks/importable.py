"""Makes ``bertfast`` importable from a checkout that is not installed; also a pytest plugin (``-p
benchmarks.importable``).

The folder kernels/ becomes bertfast.kernels when the package is installed. A GPU machine with
nothing installed gets the installed layout as links under build/, for this process and for those
that it starts. A library that is absent there, and that no measurement needs, gets a stand-in.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


def make_importable() -> None:
    """Does nothing where the package is installed."""
    import bertfast

    if importlib.util.find_spec("bertfast.kernels") is not None:
        return
    package = REPOSITORY / "build" / "links" / "bertfast"
    package.mkdir(parents=True, exist_ok=True)
    links = {package / path.name: path for path in (REPOSITORY / "bertfast").iterdir()}
    links[package / "kernels"] = REPOSITORY / "kernels"
    links[package.parent / "benchmarks"] = REPOSITORY / "benchmarks"  # for children
    for link, target in links.items():
        with suppress(FileExistsError):  # of an earlier run, or of another process of this one
            link.symlink_to(target)
    bertfast.__path__.append(str(package))
    # The safe path keeps the checkout's own bertfast/, which has no kernels/, from coming first in
    # children. What the machine was given beside its own packages stays.
    given = os.environ.get("PYTHONPATH")
    paths = [str(package.parent), *([given] if given else [])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


# Of reading and writing files, tokens and the terminal.
UNMEASURED = ("filelock", "huggingface_hub", "rich", "safetensors", "tokenizers", "typer", "yaml")


def is_missing(name: str) -> bool:
    """Whether a library is not installed; a stand-in does not count."""
    if isinstance(sys.modules.get(name), _StandIn):
        return True
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


class _StandIn(ModuleType):
    """A module in which every name is a class that cannot be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        library = self.__name__.partition(".")[0]

        def refuse(self: object, *_: object, **__: object) -> None:
            raise ModuleNotFoundError(f"{library} is not installed", name=library)

        return type(name, (Exception,), {"__init__": refuse})


class _StandIns(MetaPathFinder, Loader):
    """Finds stand-ins of the libraries that are not installed."""

    def __init__(self, libraries: list[str]) -> None:
        self.libraries = libraries

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = name.partition(".")[0] in self.libraries
        return ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


if missing := [name for name in UNMEASURED if is_missing(name)]:
    sys.meta_path.insert(0, _StandIns(missing))
make_importable()
