"""The examples run, show what they say, are short, and take public names alone."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest

from support import REPOSITORY

FOLDER = REPOSITORY / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_there_are_these() -> None:
    assert set(EXAMPLES) == {
        "custom_head",
        "custom_loop",
        "custom_objective",
        "custom_task",
        "drop_in",
        "kernels_alone",
        "own_optimizer",
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_takes_public_names_alone(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) < 60
    names = [
        *(node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)),
        *(
            part
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom)
            for part in [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        ),
    ]
    assert not [part for part in names if part.startswith("_") and not part.startswith("__")]


def test_a_loop_of_ones_own_learns(example: Any) -> None:
    losses = example("custom_loop").main()
    assert losses[-1] < 0.8 * losses[0]


def test_an_optimizer_of_ones_own_goes_on_to_the_same_losses(example: Any, tmp_path: Path) -> None:
    module = example("own_optimizer")
    whole = module.main(str(tmp_path / "whole"))
    first = module.main(str(tmp_path / "parts"), steps=20)
    rest = module.main(str(tmp_path / "parts"), steps=40, resume=True)
    assert [*first, *rest] == whole
    assert whole[-1] < 0.85 * whole[0]


def test_a_head_of_ones_own_learns(example: Any, tmp_path: Path) -> None:
    assert example("custom_head").main(str(tmp_path)) < 0.02


def test_an_objective_of_ones_own_is_trained_and_saved(example: Any, tmp_path: Path) -> None:
    from bertfast import BertForMaskedLM
    from bertfast.model import load

    line = example("custom_objective").main(tmp_path)
    assert {"mlm_loss", "mlm_accuracy", "length_loss"} <= line.keys()
    assert line["loss"] == pytest.approx(line["mlm_loss"] + line["length_loss"])
    assert isinstance(load(tmp_path / "run"), BertForMaskedLM)


def test_a_task_of_ones_own_is_fine_tuned_and_predicted(example: Any, tmp_path: Path) -> None:
    stars = [row["stars"] for row in example("custom_task").main(tmp_path)]
    # Each of five words twice, in their order.
    assert sum(abs(found - row // 2 - 1) <= 1 for row, found in enumerate(stars)) >= 9


def test_the_drop_in_gives_the_same(example: Any) -> None:
    pytest.importorskip("transformers")
    assert example("drop_in").main() < 1e-5


def test_the_kernels_give_what_pytorch_gives(example: Any) -> None:
    assert example("kernels_alone").main() < 1e-5
