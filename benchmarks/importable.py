"""Makes ``bertfast.kernels`` importable from a checkout that is not installed; also a pytest plugin
(``-p benchmarks.importable``).

The folder kernels/ becomes bertfast.kernels when the package is installed. A GPU machine with
nothing installed gets the installed layout as links under build/, for this process and for those
that it starts.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def make_importable() -> None:
    """Does nothing where the package is installed."""
    import bertfast

    if importlib.util.find_spec("bertfast.kernels") is not None:
        return
    package = REPOSITORY / "build" / "links" / "bertfast"
    package.mkdir(parents=True, exist_ok=True)
    for target in (*(REPOSITORY / "bertfast").iterdir(), REPOSITORY / "kernels"):
        with suppress(FileExistsError):  # of an earlier run, or of another process of this one
            (package / target.name).symlink_to(target)
    bertfast.__path__.append(str(package))
    # The safe path keeps the checkout's own bertfast/, which has no kernels/, from coming first in
    # children.
    os.environ |= {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}


make_importable()
