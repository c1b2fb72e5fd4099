"""Models in a cache of the Hub's layout, and endpoints that cannot be reached."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

REVISION = "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(folder: Path, name: str, cache: Path) -> Path:
    """Puts a model's folder into the cache as the Hub's model ``name``; returns its snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    shutil.copytree(folder, snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)
    return snapshot


def use_cache(
    monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str | None = None, timeout: float = 0.2
) -> None:
    """Makes this the Hub's cache; offline, unless an endpoint is given."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", endpoint is None)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", timeout)
    if endpoint is not None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
