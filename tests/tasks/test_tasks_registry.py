"""Tasks that a user brings, and what is said of those that nobody registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast import BertfastError
from bertfast.model import BertForSequenceClassification, BertForTokenClassification
from bertfast.packed import PackedBatch
from bertfast.tasks import TASKS, infer_task
from bertfast.training.evaluate import evaluate
from bertfast.training.predict import Predictor


class LongWords(bertfast.Task):
    """How many of the first tokens are long words: another head, and a score an input token."""

    name, summary = "long-words", "which words are long"
    scores: ClassVar = {"token_accuracy": "token accuracy"}
    head = "ForTokenClassification"

    def configure(self, config: Any, examples: Any, source: Any) -> Any:
        return config.with_labels(["short", "long"])

    def targets(self, examples: Any, config: Any, source: Any) -> list[Any]:
        return [[int(len(word) > 4) for word in example.text.split()] for example in examples]

    def batch(self, inputs: Any) -> PackedBatch:
        rows = [item.ids for item in inputs]
        batch = PackedBatch.from_sequences(rows, [item.segments for item in inputs])
        if inputs[0].target is not None:
            labels = [label for item in inputs for label in [-100, *item.target, -100]]
            batch.token_labels = torch.tensor(labels)
        return batch

    def outputs(self, output: Any, inputs: Any) -> list[Any]:
        return list(output.logits.float().split([item.tokens for item in inputs]))

    def score(self, outputs: Any, inputs: Any, examples: Any, config: Any) -> dict[str, float]:
        found = torch.cat([output[1:-1].argmax(-1) for output in outputs])
        wanted = torch.tensor([label for item in inputs for label in item.target])
        return {"token_accuracy": (found == wanted).float().mean().item()}

    def predict(self, outputs: Any, inputs: Any, examples: Any, config: Any) -> list[Any]:
        return [{"long": int(output[1:-1].argmax(-1).sum())} for output in outputs]


@pytest.fixture
def own() -> Iterator[None]:
    bertfast.register_task(LongWords)
    yield
    del TASKS[LongWords.name]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_table(tmp_path / "train.tsv", sentences(80, seed=1))
    return tmp_path


def finetune(place: Path, **options: Any) -> Any:
    data = str(place / "train.tsv")
    settings = {"epochs": 3, "lr": 5e-3, "batch_size": 8, **options}
    return bertfast.finetune(str(place / "model"), data, data, str(place / "out"), **settings)


def test_a_task_of_ones_own_with_another_head_goes_all_the_way(
    own: None, place: Path, monkeypatch: Any, capfd: Any
) -> None:
    result = finetune(place, task="long-words")
    assert result.task == "long-words"
    assert result.scores["token_accuracy"] > 0.95
    assert isinstance(bertfast.load(result.out), BertForTokenClassification)
    told = json.loads((result.out / "metrics.json").read_text())
    assert told["dev_token_accuracy"] == result.scores["token_accuracy"]
    assert "best epoch by dev token accuracy" in (result.out / "README.md").read_text()
    scores = evaluate(result.out, place / "train.tsv")
    assert scores["token_accuracy"] == pytest.approx(result.scores["token_accuracy"])
    predictor = Predictor(result.out)
    examples = predictor.read(place / "train.tsv")
    assert [set(made) for made in predictor.predict(examples)] == [{"long"}] * 80
    done = run_cli(monkeypatch, capfd, "predict", result.out, place / "train.tsv")
    assert done.code == 0
    assert json.loads(done.out.splitlines()[0]).keys() == {"text", "long"}
    done = run_cli(monkeypatch, capfd, "evaluate", result.out, "--data", place / "train.tsv")
    assert done.out.startswith("token accuracy ")


def test_freezing_serves_every_head(own: None, place: Path) -> None:
    result = finetune(place, task="long-words", freeze_encoder=True, lr=0.05)
    before = bertfast.load(place / "model").bert.state_dict()
    after = bertfast.load(result.out).bert.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert result.scores["token_accuracy"] > 0.6


def test_a_task_of_ones_own_resumes_exactly(own: None, place: Path) -> None:
    class StopAtTheSecond(LongWords):
        scored = 0

        def score(self, *arguments: Any) -> dict[str, float]:
            self.scored += 1
            if self.scored == 2:
                raise BertfastError("enough")
            return super().score(*arguments)

    whole = finetune(place, task="long-words")
    (place / "out").rename(place / "whole")
    TASKS["long-words"] = StopAtTheSecond()
    with pytest.raises(BertfastError, match="enough"):
        finetune(place, task="long-words")
    TASKS["long-words"] = LongWords()
    parts = finetune(place, task="long-words", resume=True)
    assert parts.history == whole.history


def test_the_help_and_the_errors_name_what_is_registered(
    own: None, place: Path, monkeypatch: Any, capfd: Any
) -> None:
    shown = run_cli(monkeypatch, capfd, "finetune", "--help").out
    assert "long-words(whichwordsarelong)" in "".join(shown.split())
    done = run_cli(
        monkeypatch,
        capfd,
        *("finetune", place / "model", "--train", place / "train.tsv"),
        *("--dev", place / "train.tsv", "--out", place / "out", "--task", "tagging"),
    )
    assert done.code == 2
    assert "task is 'tagging'; it must be one of classification" in done.err
    assert "long-words" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("task", ["tagging", 3, ["classification"]])
def test_a_folder_of_a_task_that_is_not_registered_is_one_error(
    task: object, place: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(place / "tuned", BertForSequenceClassification)
    (place / "tuned" / "metrics.json").write_text(json.dumps({"settings": {"task": task}}))
    for command in (["predict", place / "tuned", place / "train.tsv"],):
        done = run_cli(monkeypatch, capfd, *command)
        assert done.code == 2
        assert f"was trained for the task {task!r}, and registered are" in done.err
        assert len(done.err.splitlines()) == 1


def test_a_folder_whose_model_is_not_of_its_task_is_one_error(place: Path) -> None:
    write_model(place / "tuned", BertForTokenClassification)
    told = {"settings": {"task": "classification"}}
    (place / "tuned" / "metrics.json").write_text(json.dumps(told))
    with pytest.raises(BertfastError, match="BertForTokenClassification, which is no model for cl"):
        Predictor(place / "tuned")


def test_a_name_is_registered_once_and_a_task_has_scores() -> None:
    with pytest.raises(BertfastError, match="a task named 'classification' already"):
        bertfast.register_task(
            type("Other", (bertfast.Task,), {"name": "classification", "scores": {"a": "a"}})
        )
    with pytest.raises(BertfastError, match="the task Other has no name"):
        bertfast.register_task(type("Other", (bertfast.Task,), {}))
    with pytest.raises(BertfastError, match="the task 'other' has no scores"):
        bertfast.register_task(type("Other", (bertfast.Task,), {"name": "other"}))


def test_labels_that_two_tasks_claim_are_refused(own: None, monkeypatch: Any, capsys: Any) -> None:
    fitting = [
        type(f"Fits{name}", (LongWords,), {"name": name, "fits": lambda *_: True}) for name in "ab"
    ]
    monkeypatch.setitem(TASKS, "a", fitting[0]())
    assert infer_task([], "f.tsv").name == "a"
    assert "f.tsv: the task is a (which words are long); --task names another" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(TASKS, "b", fitting[1]())
    with pytest.raises(BertfastError, match="f.tsv: its labels fit the tasks 'a' and 'b'"):
        infer_task([], "f.tsv")


def test_the_built_in_tasks_use_nothing_that_an_own_one_could_not() -> None:
    """Finetuning, evaluation and the command line name no task; the registry has one default."""
    from support import REPOSITORY

    training = ("training/finetune.py", "training/evaluate.py", "training/card.py")
    for file in (*training, "cli/train.py", "cli/infer.py"):
        text = (REPOSITORY / "bertfast" / file).read_text()
        assert "Classification(" not in text
        assert '== "classification"' not in text
