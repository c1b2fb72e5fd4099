"""Fine-tuning is measured beside the Trainer: the same examples, settings and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli, sentences, write_model, write_table

from bertfast.bench import finetuning
from bertfast.errors import BertfastError
from bertfast.training.finetune import FinetuneConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_model(folder / "model")
    write_table(folder / "train.tsv", sentences(40))
    write_table(folder / "dev.tsv", sentences(12, 1))
    return folder


def config(place: Path, **options: Any) -> FinetuneConfig:
    given = {"model": str(place / "model"), "epochs": 2, "lr": 1e-3, "batch_size": 8}
    files = {name: str(place / f"{name}.tsv") for name in ("train", "dev")}
    return FinetuneConfig(**{**given, **files, "out": str(place / "out"), **options})


def run(side: str, seed: int, scale: float) -> dict[str, Any]:
    return {
        "side": side,
        "seed": seed,
        "epoch_seconds": [9 * scale, scale, scale + 1],
        "evaluation_seconds": [9 * scale, scale, scale],
        "prediction_seconds": scale,
        "scores": {"accuracy": 0.5 + seed / 10},
        "resident_bytes": [10, 20, 25],
        "peak_bytes": 2**20 * seed,
    }


def test_the_table_has_medians_past_the_first_epoch_and_ratios_over_ours(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def made_up(side: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        asked.append((side, seed))
        return run(side, seed, 2.0 if side == finetuning.OURS else 4.0)

    monkeypatch.setattr(finetuning, "_run", made_up)
    monkeypatch.setattr(finetuning, "_transformers", lambda: _Stub)
    measured = config(place, seed=1, seeds=2)
    found = finetuning.measure(measured, tmp_path, "lora")
    sides = ["bertfast", "bertfast, lora", "Trainer", "Trainer, group_by_length"]
    # The second seed's turn begins with the second side.
    assert asked == [*((s, 1) for s in sides), *((s, 2) for s in [*sides[1:], sides[0]])]
    made = finetuning.summary(found)
    assert made["Trainer"]["epoch"] == 4.5
    assert made["Trainer"]["growth_bytes"] == 5
    assert made["bertfast"]["peak_bytes"] == 2 * 2**20
    assert made["bertfast"]["spread"] == pytest.approx(0.1 / 2**0.5)
    table = (tmp_path / "table.md").read_text()
    line = next(line for line in table.splitlines() if "| Trainer |" in line)
    assert "| 4.50 | 1.80x | 4.00 | 2.00x | 4.00 | 2.00x | 2 |" in line
    assert "accuracy 0.6500 ± 0.0707" in line
    # What is there is not measured again, and other settings do not mix with it.
    finetuning.measure(config(place, seed=1, seeds=3), tmp_path)
    assert asked[8:] == [(side, 3) for side in ("Trainer, group_by_length", "bertfast", "Trainer")]
    with pytest.raises(BertfastError, match="measured with another lr"):
        finetuning.measure(config(place, lr=0.5), tmp_path)


class _Stub:
    AutoModelForSequenceClassification = None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "token-classification", "question-answering"])
def test_both_sides_learn_the_same_task(kind: str, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    files = {name: str(_data(kind, tmp_path / name)) for name in ("train", "dev")}
    settings = vars(config(place, **files, task=kind, epochs=1, out=str(tmp_path / "out")))
    keys = {"epoch_seconds", "evaluation_seconds", "prediction_seconds", "scores", "peak_bytes"}
    ours = finetuning.work({"side": "bertfast", "settings": settings})
    theirs = finetuning.work({"side": "Trainer, group_by_length", "settings": settings})
    assert keys <= ours.keys() == theirs.keys()
    assert ours["scores"].keys() == theirs["scores"].keys()
    assert len(ours["epoch_seconds"]) == len(theirs["evaluation_seconds"]) == 1


def _data(kind: str, path: Path) -> Path:
    rows = sentences(16, len(path.name))
    if kind == "classification":
        return write_table(path.with_suffix(".tsv"), rows)
    if kind == "token-classification":
        path = path.with_suffix(".conll")
        tags = [
            "\n".join(f"{w}\t{'B-x' if i == 3 else 'O'}" for i, w in enumerate(text.split()))
            for text, _ in rows
        ]
        path.write_text("\n\n".join(tags) + "\n")
        return path
    path = path.with_suffix(".json")
    questions = [
        {
            "context": text,
            "qas": [
                {
                    "id": str(number),
                    "question": "the film was",
                    "answers": [{"text": text.split()[3], "answer_start": text.index(" was ") + 5}],
                }
            ],
        }
        for number, (text, _) in enumerate(rows)
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": questions}]}))
    return path


@pytest.mark.slow
def test_the_command_measures_each_side_in_a_process_of_its_own(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("accelerate")
    files = ("--train", place / "train.tsv", "--dev", place / "dev.tsv", "--batch-size", 8)
    done = run_cli(
        monkeypatch,
        capfd,
        *("bench", "--finetune", "--model", place / "model", *files),
        *("--epochs", 1, "--seeds", 1, "--out", tmp_path / "found"),
    )
    assert done.code == 0, done.err
    assert "group_by_length" in done.out
    found = json.loads((tmp_path / "found/train.tsv.json").read_text())
    assert [one["side"] for one in found["runs"]] == ["bertfast", *finetuning.PEERS]
    assert all(one["peak_bytes"] > 0 for one in found["runs"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--finetune"], "needs --model"),
        (["--finetune", "--model", "m", "--train", "t"], "needs --dev"),
        (
            ["--finetune", "--model", "m", "--train", "t", "--dev", "d", "--step"],
            "leave out --step",
        ),
        (["--train", "t"], "--train is of --finetune"),
        (["--finetune", "--model", "m", "--train", "t", "--dev", "d", "--lr", "nan"], "lr"),
        (["--finetune", "--model", "m", "--train", "t", "--dev", "d", "--seeds", "0"], "seeds"),
        (["--finetune", "--model", "m", "--train", "t", "--dev", "d", "--adapter", "x"], "adapter"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = run_cli(monkeypatch, capfd, "bench", *arguments)
    assert (done.code, done.out) == (2, "")
    assert [named in line for line in done.errors] == [True]
    assert "Traceback" not in done.err
