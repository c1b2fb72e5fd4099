"""The benchmarks where a machine has PyTorch, Triton and NumPy alone, and where a run fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as command
from benchmarks import importable, page
from benchmarks.gpu.journal import Journal
from support import REPOSITORY

# What is not there: every package that bertfast, its tests or its tables bring.
ABSENT = (
    "pytest", "_pytest", "pytest_benchmark", "pytest_timeout", "xdist", "hypothesis", "rich",
    "typer", "click", "tokenizers", "safetensors", "yaml",
    "matplotlib", "transformers", "huggingface_hub",
    "peft", "accelerate", "sentence_transformers",
)  # fmt: skip
HIDING = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def found(name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT!r} else find(name, path, target)
PathFinder.find_spec = staticmethod(found)
"""


@pytest.mark.slow
def test_figures_need_nothing_but_pytorch_triton_and_numpy(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    command = [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--part", "3"]
    done = subprocess.run(
        [*command, "--only", "test_dropout float32", "--results", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "dropout: shape | dtype | ms" in done.stdout
    lines = Journal(tmp_path / "3-ops.jsonl").lines()
    assert [line["case"]["op"] for line in lines if line["what"] == "case"] == ["dropout"]


def test_what_a_machine_was_given_stays_importable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importable, "REPOSITORY", tmp_path)
    (tmp_path / "bertfast").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys.modules["bertfast"], "__path__", [])
    for given, wanted in (("/some/packages", ["/some/packages"]), ("", [])):
        monkeypatch.setenv("PYTHONPATH", given)
        monkeypatch.setenv("PYTHONSAFEPATH", "")
        importable.make_importable()
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        assert paths == [str(tmp_path / "build" / "links"), *wanted]
    assert (tmp_path / "build" / "links" / "benchmarks").is_symlink(), "for what it starts"


@pytest.mark.parametrize("writes", [False, True])
def test_figures_of_an_earlier_run_are_never_shown(
    writes: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def record(name: str) -> str:
        return json.dumps({"machine": {"name": name}, "rates": {}, "cases": [], "skipped": {}})

    (tmp_path / "old.json").write_text(record("an earlier machine"))
    os.utime(tmp_path / "old.json", (1.0, 1.0))

    def run(*arguments: str, **options: Any) -> int:
        if writes:
            (tmp_path / "new.json").write_text(record("this machine"))
        return 3

    pages: list[None] = []
    monkeypatch.setattr(command, "_pytest", run)
    monkeypatch.setattr(page, "write_page", lambda: pages.append(None))
    monkeypatch.setattr("benchmarks.settings.RESULTS", tmp_path)
    assert command._measure(False, "", False) == 3
    out = capsys.readouterr().out
    assert "an earlier machine" not in out
    assert ("this machine" in out) == writes
    assert ("this run has no figures" in out) == (not writes)
    assert len(pages) == writes
