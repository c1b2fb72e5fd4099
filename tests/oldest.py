"""``make test-oldest``: the tests of the kernels, the models and the training on the oldest
releases that pyproject.toml admits, in an environment of their own.

PyTorch is the newest build of its oldest release that pip finds. On Linux that is a CUDA build of
several gigabytes, unless pip is told of PyTorch's index of CPU builds (``PIP_EXTRA_INDEX_URL``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = REPOSITORY / "build" / "oldest"
TOOLS = (
    "pytest>=8",
    "pytest-timeout",
    "hypothesis",
    "markdown-it-py",
    "setuptools>=77",
    "pybind11",
)
TESTS = (
    "tests/kernels",
    "tests/model",
    "tests/test_config.py",
    "tests/test_packed.py",
    "tests/hub/test_parity.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_pretrain.py",
    "tests/training/test_trainer.py",
)


def oldest() -> list[str]:
    """The core's and transformers' dependencies, each at the oldest release that is admitted."""
    path = REPOSITORY / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["hf"]]
    return [re.sub(r"^([\w-]+)>=([\w.]+).*", r"\1==\2", line) for line in lines]


def main() -> None:
    """Installs, then tests; the exit code is pytest's."""
    folder = "Scripts" if os.name == "nt" else "bin"
    python = ENVIRONMENT / folder / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip = (python, "-m", "pip", "install", "--quiet")
    subprocess.run([*pip, *oldest(), *TOOLS], check=True)
    editable = ("--no-deps", "--no-build-isolation", "--editable", REPOSITORY)
    subprocess.run([*pip, *editable], check=True)
    command = (python, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *TESTS)
    sys.exit(subprocess.run(command, cwd=REPOSITORY).returncode)


if __name__ == "__main__":
    main()
