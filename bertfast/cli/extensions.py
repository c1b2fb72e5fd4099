"""``--import``: a user's own objectives and tasks, registered before the registry is read."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from bertfast.errors import BertfastError

IMPORTED = "bertfast.imports"  # in a context's meta: what was imported


def _import_all(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    import_all(names)
    ctx.meta[IMPORTED] = names


def import_all(names: Iterable[str]) -> None:
    """`import_one` of each, as another process does that a command starts."""
    for name in names:
        import_one(name)


def import_one(name: str) -> None:
    """Runs a Python file, or imports a module that Python finds from the working directory too.

    Raises:
        BertfastError: it is not there, or raises an error.
    """
    try:
        if name.endswith(".py"):
            _run_file(Path(name))
            return
        sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        finally:
            sys.path.remove("")
    except BertfastError as error:
        raise BertfastError(f"--import {name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise BertfastError(
            f"--import {name}: cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _run_file(path: Path) -> None:
    """Runs a file as a module of its stem's name, once."""
    if not path.is_file():
        raise BertfastError("no such file")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return
    if known is not None or path.stem in sys.stdlib_module_names:
        raise BertfastError(f"there is a module {path.stem} already; give the file another name")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Known by its name, so that what it defines can be pickled.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="FILE_OR_MODULE...",
    is_eager=True,
    expose_value=False,
    callback=_import_all,
    help="Python that registers objectives or tasks of your own; this help then lists them.",
)
