"""``--import``: what a user's own file or module registers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import run_cli, sentences, write_model

from bertfast.objectives import OBJECTIVES
from support import REPOSITORY

OWN = '''"""An objective of a user's own."""

from bertfast import Objective, register_objective


@register_objective
class Own(Objective):
    name, summary = "own-words", "words of my own"
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file; what it registers is gone again after the test."""
    file = tmp_path / "own_objective.py"
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before = dict(OBJECTIVES)
    yield file
    OBJECTIVES.clear()
    OBJECTIVES.update(before)
    sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("form", ["own_objective.py", "own_objective"])
@pytest.mark.parametrize("first", [True, False])
def test_help_lists_what_it_registers(
    form: str,
    first: bool,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    args = ["--import", form]
    args = [*args, "--help"] if first else ["--help", *args]
    shown = " ".join(run_cli(monkeypatch, capfd, "pretrain", *args).out.split())
    assert "own-words (words of my own)" in shown
    assert "mlm (masked words)" in shown


def test_it_trains_with_what_it_registers(
    own: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(own.parent / "model")
    Path("corpus.txt").write_text("\n".join(text for text, _ in sentences(60)))
    Path("run.yaml").write_text("import: own_objective.py\nobjective: own-words\nsteps: 2\n")
    small = ["--batch-tokens", 128, "--seq-len", 24]
    done = run_cli(
        monkeypatch,
        capfd,
        *("pretrain", "--config", "run.yaml", "--data", "corpus.txt", "--model", "model"),
        *("--out", "run", *small),
    )
    assert done.code == 0, done
    assert "own-words" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("def (\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        (OWN.replace("own-words", "mlm"), "there is an objective named 'mlm' already"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(
    text: str | None,
    said: str,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own.unlink()
    if text is not None:
        own.write_text(text)
    done = run_cli(monkeypatch, capfd, "pretrain", "--import", "own_objective.py", "--help")
    assert (done.code, len(done.errors)) == (2, 1)
    assert said in done.errors[0]


def test_a_file_named_as_a_module_that_is_there_is_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(own, "json.py")
    done = run_cli(monkeypatch, capfd, "finetune", "--import", "json.py", "--help")
    assert done.code == 2
    assert "give the file another name" in done.errors[0]


def test_the_example_is_such_a_file() -> None:
    assert (REPOSITORY / "examples/custom_objective.py").is_file()
