"""Makes ``bertfast.kernels`` importable from a checkout that is not installed; also a pytest plugin (``-p benchmarks.importable``).

The folder kernels/ becomes bertfast.kernels when the package is installed. A GPU machine with nothing installed gets the same through
a link, outside of the source tree's own folders, that is put on the package's path.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def make_importable() -> None:
    """Does nothing where the package is installed."""
    import bertfast

    if importlib.util.find_spec("bertfast.kernels") is not None:
        return
    links = REPOSITORY / "build" / "links"
    links.mkdir(parents=True, exist_ok=True)
    link = links / "kernels"
    if not link.is_symlink():
        link.symlink_to(REPOSITORY / "kernels", target_is_directory=True)
    bertfast.__path__.append(str(links))


make_importable()
