"""Options of fine-tuning: parts of one file, several runs, stopping early, losses, calibration."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast.data.labelled import read_task
from bertfast.errors import BertfastError
from bertfast.model import load_config
from bertfast.training.evaluate import evaluate
from bertfast.training.finetune import FinetuneConfig, FinetuneResult
from bertfast.training.predict import Classifier
from bertfast.training.trainer import Diverged

LOSSES = {
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "focal_gamma": 1.0,
    "rdrop": 0.5,
    "layer_decay": 0.8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_model(folder / "model", num_hidden_layers=1)
    write_table(folder / "train.tsv", sentences(60, seed=1))
    write_table(folder / "dev.tsv", sentences(30, seed=2))
    return folder


def tune(place: Path, out: Path, dev: str | None = None, **options: Any) -> FinetuneResult:
    settings = {"epochs": 1, "lr": 5e-3, "batch_size": 8, **options}
    dev = None if dev is None else str(place / dev)
    return bertfast.finetune(place / "model", place / "train.tsv", dev, out, **settings)


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def test_a_part_of_the_file_is_held_out_and_named(place: Path, tmp_path: Path) -> None:
    result = tune(place, tmp_path / "out", dev_split=0.25)
    split = told(result.out)["split"]
    assert (split["train"], split["dev"]) == (45, 15)
    assert (split["share"], split["seed"]) == (0.25, 0)
    examples = read_task(place / "train.tsv")
    held = [examples[int(number) - 1] for number in split["dev_examples"].split()]
    of_all = sum(example.label == "good" for example in examples) / len(examples)
    assert abs(sum(example.label == "good" for example in held) - of_all * 15) <= 1
    write_table(tmp_path / "held.tsv", [(row.text, str(row.label)) for row in held])
    assert evaluate(result.out, tmp_path / "held.tsv")["accuracy"] == result.accuracy
    assert "25% of `train.tsv`, 15 examples" in (result.out / "README.md").read_text()


@pytest.mark.slow_unless(lambda accumulation: accumulation == 3)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_batches_of_tokens_make_as_many_updates_in_each_epoch(
    place: Path, tmp_path: Path, accumulation: int
) -> None:
    class Count(bertfast.Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.before: list[int] = []

        def on_step(self, trainer: Any, step: int) -> None:
            self.steps.append(step)

        def before_evaluate(self, trainer: Any, step: int) -> None:
            self.before.append(step)

    count, options = Count(), {"batch_tokens": 40, "group_by_length": True, "epochs": 2}
    result = tune(
        place,
        tmp_path / "out",
        "dev.tsv",
        accumulation=accumulation,
        callbacks=[count],
        **options,
    )
    assert [line["epoch"] for line in result.history] == [1, 2]
    assert count.steps[-1] == 2 * count.before[0] == count.before[1]
    # 60 sentences of 11 tokens, three of which are a batch.
    assert count.before[0] == -(-20 // accumulation)


def test_an_example_longer_than_a_batch_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BertfastError, match="batch-tokens is 5 and the longest example has 1"):
        tune(place, tmp_path / "out", "dev.tsv", batch_tokens=5)


def test_few_examples_know_every_label(place: Path, tmp_path: Path) -> None:
    tune(place, tmp_path / "few", dev_split=0.25, max_train_samples=1)
    said = told(tmp_path / "few")
    assert said["train_examples"] == 1
    assert load_config(tmp_path / "few").num_labels == 2


def test_folds_give_each_score_a_mean_and_a_spread(
    place: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    command = ["finetune", place / "model", "--train", place / "train.tsv", "--folds", 3]
    options = ["--epochs", 1, "--lr", 5e-3, "--batch-size", 8, "--out", tmp_path / "out"]
    done = run_cli(monkeypatch, capfd, *command, *options)
    assert done.code == 0, done.err
    metrics = told(tmp_path / "out")
    runs = metrics["runs"]
    each = runs["scores"]["accuracy"]["each"]
    assert list(each) == ["fold 1", "fold 2", "fold 3"]
    values = torch.tensor(list(each.values()), dtype=torch.float64)
    assert runs["scores"]["accuracy"]["mean"] == pytest.approx(values.mean().item())
    assert runs["scores"]["accuracy"]["spread"] == pytest.approx(values.std().item())
    assert metrics["dev_accuracy"] == max(each.values()) == each[runs["chosen"]]
    assert metrics["split"]["fold"] == int(runs["chosen"][-1])
    assert f"has the model of {runs['chosen']}" in done.out
    assert f"model of {runs['chosen']}" in (tmp_path / "out/README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    alone = tune(place, tmp_path / "alone", folds=3, fold=2)
    assert alone.accuracy == each["fold 2"]


def test_a_seed_that_fails_is_named_and_the_others_count(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("bertfast.training.finetune")
    one, made = module._one, []

    def second_fails(config: FinetuneConfig, resume: bool, **options: Any) -> FinetuneResult:
        made.append(config.seed)
        if config.seed == 4:
            raise Diverged("step 1: the loss is nan")
        return one(config, resume, **options)

    monkeypatch.setattr(module, "_one", second_fails)
    result = tune(place, tmp_path / "out", "dev.tsv", seed=3, seeds=3)
    assert made == [3, 4, 5]
    assert result.runs is not None
    assert list(result.runs["scores"]["accuracy"]["each"]) == ["seed 3", "seed 5"]
    assert result.runs["failed"] == {"seed 4": "step 1: the loss is nan"}
    assert "seed 4 failed" in (result.out / "README.md").read_text()
    assert told(result.out)["settings"]["seed"] == int(result.runs["chosen"][-1])


def test_runs_that_were_stopped_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(place, tmp_path / "whole", "dev.tsv", seeds=2)
    stop_after(monkeypatch, 12, lambda: tune(place, tmp_path / "parts", "dev.tsv", seeds=2))
    with pytest.raises(BertfastError, match="has runs already"):
        tune(place, tmp_path / "parts", "dev.tsv", seeds=2)
    with pytest.raises(BertfastError, match="the options changed since"):
        tune(place, tmp_path / "parts", "dev.tsv", seeds=2, resume=True, epochs=2)
    parts = tune(place, tmp_path / "parts", "dev.tsv", seeds=2, resume=True)
    assert parts.runs == whole.runs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int, run: Any) -> None:
    """Interrupts a run after so many updates."""
    module = importlib.import_module("bertfast.training.trainer")
    clip, done = module.clip_at_next_step, []

    def clip_then_interrupt(*arguments: Any) -> Any:
        done.append(None)
        if len(done) == updates:
            signal.raise_signal(signal.SIGINT)
        return clip(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "clip_at_next_step", clip_then_interrupt)
        with pytest.raises(module.Interrupted):
            run()


@pytest.mark.parametrize(
    "options",
    [LOSSES, {"freeze_encoder": True, "lr": 0.01, "rdrop": 0.5}, {"freeze_layers": 1}],
    ids=["losses", "frozen", "layers"],
)
@pytest.mark.slow
def test_a_stopped_run_with_options_goes_on_bit_for_bit(
    options: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"evaluate_every": 3, "early_stopping": 2, "epochs": 2, **options}
    whole = tune(place, tmp_path / "whole", "dev.tsv", **options)
    stop_after(monkeypatch, 5, lambda: tune(place, tmp_path / "parts", "dev.tsv", **options))
    parts = tune(place, tmp_path / "parts", "dev.tsv", resume=True, **options)
    assert parts.history == whole.history
    a, b = (load_file(out.out / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_stops_where_no_evaluation_is_better(place: Path, tmp_path: Path) -> None:
    options = {"evaluate_every": 2, "early_stopping": 2, "metric_for_best": "eval_loss"}
    # A rate of next to nothing changes no score.
    result = tune(place, tmp_path / "out", "dev.tsv", epochs=9, lr=1e-30, **options)
    assert [line["step"] for line in result.history] == [2, 4, 6]
    assert result.best_epoch == 0.25
    assert told(result.out)["dev_loss"] == pytest.approx(result.history[0]["dev_loss"])


def test_the_lowest_loss_is_the_best_one(place: Path, tmp_path: Path) -> None:
    result = tune(place, tmp_path / "out", "dev.tsv", epochs=3, metric_for_best="loss")
    losses = [line["dev_loss"] for line in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))


def test_the_first_layers_stay_as_they_were(place: Path, tmp_path: Path) -> None:
    result = tune(place, tmp_path / "out", "dev.tsv", freeze_layers=1)
    before = bertfast.load(place / "model").bert.state_dict()
    after = bertfast.load(result.out).bert.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"pooler.dense.weight", "pooler.dense.bias"}


def test_the_temperature_is_in_the_model_and_everybody_agrees(place: Path, tmp_path: Path) -> None:
    # Labels that a word decides four times out of five: no dev set is right throughout.
    rows = [
        (text, ("bad", "good")[(label == "good") ^ (number % 5 == 0)])
        for number, (text, label) in enumerate(sentences(60, seed=4))
    ]
    write_table(place / "noisy.tsv", rows)
    with_it = tune(place, tmp_path / "with", "noisy.tsv", epochs=3)
    without = tune(place, tmp_path / "without", "noisy.tsv", epochs=3, calibrate=False)
    assert with_it.scores == without.scores
    said = told(with_it.out)["calibration"]
    temperature = said["temperature"]
    assert temperature != 1
    assert said["ece_before"] == pytest.approx(told(without.out)["calibration"]["ece"])
    assert told(without.out)["calibration"]["temperature"] == 1
    text = "the script was awful and the score was long"
    logits = [
        torch.tensor(list(Classifier(one.out).predict([text])[0].probabilities.values())).log()
        for one in (with_it, without)
    ]
    gaps = [values[0] - values[1] for values in logits]
    assert gaps[0].item() * temperature == pytest.approx(gaps[1].item(), rel=1e-3)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.pipeline("text-classification", str(with_it.out), device=-1)(text)[0]
    ours = Classifier(with_it.out).predict([text])[0]
    assert theirs["score"] == pytest.approx(ours.probabilities[ours.label], abs=1e-5)


def test_the_folder_tells_scores_with_intervals(place: Path, tmp_path: Path) -> None:
    out = tune(place, tmp_path / "out", "dev.tsv").out
    metrics = told(out)
    for name in ("accuracy", "macro_f1", "micro_f1", "mcc"):
        low, high = metrics["intervals"][name]
        assert low <= metrics[f"dev_{name}"] <= high
    assert [row["label"] for row in metrics["table"]] == ["bad", "good"]
    assert sum(map(sum, metrics["confusion"]["counts"])) == 30
    pytest.importorskip("matplotlib")
    assert (out / "confusion.svg").exists()
    assert (out / "reliability.svg").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "there is no dev data"),
        ({"dev_split": 0.1, "folds": 3}, "dev-split and folds say the same thing"),
        ({"dev": "dev.tsv", "dev_split": 0.1}, "dev and dev-split say the same thing"),
        ({"dev_split": 1.0}, "dev-split is 1.0; it must be a number above 0 and below 1"),
        ({"dev_split": 0.001}, "holds out none"),
        ({"folds": 1}, "folds is 1"),
        ({"folds": 3, "fold": 4}, "fold is 4, and folds 3"),
        ({"folds": 61}, "60 rows do not fill 61 folds"),
        ({"folds": 3, "seeds": 2}, "give one of them"),
        ({"dev": "dev.tsv", "metric_for_best": "bleu"}, "one of accuracy, macro_f1, micro_f1, mcc"),
        (
            {"dev": "dev.tsv", "label_smoothing": 1.0},
            "label-smoothing is 1.0; it must be a number",
        ),
        (
            {"dev": "dev.tsv", "layer_decay": 1.5},
            "layer-decay is 1.5; it must be a number above",
        ),
        ({"dev": "dev.tsv", "freeze_layers": 7}, "the model has 1 layers"),
        ({"dev": "dev.tsv", "freeze_layers": 1, "from_scratch": True}, "exclude each other"),
        ({"dev": "dev.tsv", "class_weights": "nowhere.json"}, "nowhere.json: no such file"),
        ({"dev": "dev.tsv", "early_stopping": 0}, "early-stopping is 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_one_line(
    options: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertfastError, match=said):
        tune(place, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_losses_of_classes_are_refused_for_numbers(place: Path, tmp_path: Path) -> None:
    rows = [(text, f"{number / 7:.2f}") for number, (text, _) in enumerate(sentences(24))]
    write_table(place / "numbers.tsv", rows)
    data = place / "numbers.tsv"
    with pytest.raises(BertfastError, match="focal-gamma is for classes"):
        bertfast.finetune(place / "model", data, data, tmp_path / "out", focal_gamma=2.0)


def test_the_losses_hold_for_tags_and_for_lists_of_labels(place: Path, tmp_path: Path) -> None:
    tags = "".join(
        "".join(f"{word}\t{'B-X' if word in ('film', 'cast') else 'O'}\n" for word in text.split())
        + "\n"
        for text, _ in sentences(30)
    )
    (tmp_path / "a.conll").write_text(tags)
    rows = [{"text": text, "label": [label]} for text, label in sentences(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {**LOSSES, "lr": 5e-3, "batch_size": 8, "epochs": 12}
    for name, score in (("a.conll", "f1"), ("a.jsonl", "micro_f1")):
        data = tmp_path / name
        result = bertfast.finetune(place / "model", data, data, tmp_path / f"{name}.out", **options)
        assert result.scores[score] > 0.6


def test_a_table_of_parquet_is_trained_on(place: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": text, "label": label} for text, label in sentences(40, seed=1)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = tmp_path / "a.parquet"
    result = bertfast.finetune(place / "model", data, data, tmp_path / "out", epochs=1, lr=5e-3)
    assert evaluate(result.out, data)["accuracy"] == result.accuracy
