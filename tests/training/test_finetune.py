"""Fine-tuning: what it learns, what it keeps, and what it leaves when it fails."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pydoc
import re
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from tiny import POSITIONS, sentences, write_model, write_table

import bertfast
from bertfast.errors import BertfastError
from bertfast.model import BertForMaskedLM, BertForPreTraining, BertModel, load
from bertfast.tokenization import load_tokenizer
from bertfast.training.config import PretrainConfig
from bertfast.training.evaluate import evaluate
from bertfast.training.finetune import FinetuneConfig, FinetuneResult

SETTINGS = {"epochs": 3, "lr": 5e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_model(folder / "model")
    write_table(folder / "train.tsv", sentences(160, seed=1))
    write_table(folder / "dev.tsv", sentences(60, seed=2))
    return folder


@pytest.fixture(scope="module")
def tuned(place: Path) -> FinetuneResult:
    return bertfast.finetune(
        str(place / "model"),
        str(place / "train.tsv"),
        str(place / "dev.tsv"),
        str(place / "tuned"),
        **SETTINGS,
    )


def _finetune(place: Path, out: Path, **options: object) -> FinetuneResult:
    settings = {
        "train": str(place / "train.tsv"),
        "dev": str(place / "dev.tsv"),
        **SETTINGS,
        **options,
    }
    return bertfast.finetune(settings.pop("model", str(place / "model")), out=str(out), **settings)  # type: ignore[arg-type]


def test_it_learns_what_a_word_decides(tuned: FinetuneResult) -> None:
    assert tuned.accuracy > 0.95


def test_the_folder_holds_all_that_a_prediction_needs(tuned: FinetuneResult) -> None:
    names = {path.name for path in tuned.out.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "labels.json",
        "metrics.json",
        "README.md",
        "predict.py",
    }
    assert json.loads((tuned.out / "labels.json").read_text()) == ["bad", "good"]
    assert load(tuned.out).config.id2label == {0: "bad", 1: "good"}
    assert not list(tuned.out.parent.glob(".*.tmp"))


def test_evaluate_repeats_the_dev_scores_of_the_best_epoch(
    place: Path, tuned: FinetuneResult
) -> None:
    scores = evaluate(tuned.out, place / "dev.tsv")
    assert scores["accuracy"] == tuned.accuracy
    assert scores["macro_f1"] == pytest.approx(tuned.macro_f1)


def test_metrics_tell_each_epoch_and_the_best_one(tuned: FinetuneResult) -> None:
    metrics = json.loads((tuned.out / "metrics.json").read_text())
    assert [line["epoch"] for line in metrics["epochs"]] == [1, 2, 3]
    best = max(metrics["epochs"], key=lambda line: line["dev_accuracy"])  # the earliest of equals
    assert metrics["best_epoch"] == tuned.best_epoch == best["epoch"]


def test_the_script_in_the_folder_labels_a_text(tuned: FinetuneResult) -> None:
    script = [
        sys.executable,
        str(tuned.out / "predict.py"),
        "the film was lovely and the cast was long",
    ]
    done = subprocess.run(
        script,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert done.stdout.split("\t")[0] == "good"


def test_the_model_card_names_labels_data_and_scores(tuned: FinetuneResult) -> None:
    card = (tuned.out / "README.md").read_text()
    for part in (
        "(`bad`, `good`)",
        "train.tsv",
        "dev.tsv",
        f"{tuned.accuracy:.4f}",
        "bertfast predict",
    ):
        assert part in card


def test_the_hub_reads_the_model_card(tuned: FinetuneResult) -> None:
    data = ModelCard.load(tuned.out / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.base_model, data.model_name) == ("model", "tuned")
    results = {(row.metric_type, row.metric_value) for row in data.eval_results}
    kinds = {"accuracy": "accuracy", "matthews_correlation": "mcc", "f1": "macro_f1"}
    assert results >= {(kind, round(tuned.scores[name], 6)) for kind, name in kinds.items()}
    assert {row.dataset_name for row in data.eval_results} == {"dev.tsv"}


@pytest.mark.slow
def test_no_markup_of_a_label_comes_into_the_folder(place: Path, tmp_path: Path) -> None:
    labels = {"good": "<script>alert(1)</script>\n\n# big", "bad": "a`b | [x](javascript:x)\tc"}
    rows = [{"<b>": text, "label": labels[label]} for text, label in sentences(40)]
    data = tmp_path / "`<i>`.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = _finetune(
        place, tmp_path / "<u>", train=str(data), dev=str(data), text_column="<b>", epochs=1
    )
    card = ModelCard.load(result.out / "README.md")
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    inside = [child for token in tokens for child in token.children or []]
    assert not [token for token in (*tokens, *inside) if token.type.startswith(("html", "link"))]
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2"]
    shown = [token.content for token in inside if token.type == "code_inline"]
    assert {" ".join(label.split()) for label in labels.values()} <= set(shown)
    assert set(json.loads((result.out / "labels.json").read_text())) == set(labels.values())
    script = [sys.executable, str(result.out / "predict.py"), "the film\nwas warm", "the cast"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=env, check=True)
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == [
        "the film was warm",
        "the cast",
    ]


def test_help_shows_every_option_with_its_default_and_meaning() -> None:
    for function, config in (
        (bertfast.finetune, FinetuneConfig),
        (bertfast.pretrain, PretrainConfig),
    ):
        parameters = inspect.signature(function).parameters
        assert not [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        shown = pydoc.render_doc(function, renderer=pydoc.plaintext)
        for field in fields(config):
            assert re.search(rf"^ +(\w+, )*{field.name}(, \w+)*: \S", shown, re.MULTILINE), field
            if field.default is not MISSING:
                assert parameters[field.name].default == field.default
                assert f"{field.name}: " in shown
    assert "options" not in shown.partition("Args:")[2]
    with pytest.raises(TypeError, match="eppochs"):
        bertfast.finetune("m", "t", "d", "o", eppochs=3)


def test_transformers_loads_the_result_and_agrees(tuned: FinetuneResult) -> None:
    transformers = pytest.importorskip("transformers")
    from bertfast.training.predict import Classifier

    text = "the script was awful and the score was long"
    theirs = transformers.pipeline("text-classification", str(tuned.out), device=-1)(text)[0]
    ours = Classifier(tuned.out).predict([text])[0]
    assert theirs["label"] == ours.label
    assert theirs["score"] == pytest.approx(ours.probabilities[ours.label], abs=1e-5)


def test_the_same_seed_gives_the_same_weights(
    place: Path, tuned: FinetuneResult, tmp_path: Path
) -> None:
    again = _finetune(place, tmp_path / "again")
    assert again.history == tuned.history
    for one, other in zip(load(again.out).parameters(), load(tuned.out).parameters(), strict=True):
        assert torch.equal(one, other)


def test_freezing_leaves_the_encoder_as_it_was(place: Path, tmp_path: Path) -> None:
    result = _finetune(place, tmp_path / "frozen", freeze_encoder=True, lr=None, epochs=1)
    before = load(place / "model").bert.state_dict()
    after = load(result.out).bert.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_freezing_trains_a_pooler_that_the_checkpoint_lacks(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "mlm", BertForMaskedLM)
    result = _finetune(
        place, tmp_path / "frozen", model=str(tmp_path / "mlm"), freeze_encoder=True, seed=3
    )
    said = capsys.readouterr().err
    assert said.count("does not have") == 1
    assert "bert.pooler.dense.weight" in said
    before, after = load(tmp_path / "mlm").bert.state_dict(), load(result.out).bert.state_dict()
    shared = [name for name in before if not name.startswith("pooler.")]
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert after["pooler.dense.bias"].abs().max() > 0  # starts at zero


def test_from_scratch_takes_the_shape_and_not_the_weights(place: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", BertForPreTraining, seed=7)
    one = _finetune(place, tmp_path / "one", from_scratch=True, epochs=1)
    two = _finetune(place, tmp_path / "two", model=str(other), from_scratch=True, epochs=1)
    assert one.history == two.history


@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM])
def test_it_starts_from_any_bert_folder(
    cls: type[BertModel] | type[BertForMaskedLM], place: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "model", cls)
    assert (
        _finetune(place, tmp_path / "out", model=str(tmp_path / "model"), epochs=1).best_epoch == 1
    )


def test_it_trains_in_bfloat16(place: Path, tmp_path: Path) -> None:
    result = _finetune(place, tmp_path / "out", precision="bf16")
    assert result.accuracy > 0.9
    assert next(load(result.out).parameters()).dtype == torch.float32


def test_a_regression_head_before_does_not_change_the_loss(place: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model", BertModel, problem_type="regression")
    result = _finetune(place, tmp_path / "out", model=str(tmp_path / "model"), epochs=1)
    assert load(result.out).config.problem_type == "single_label_classification"


def test_long_inputs_are_cut_counted_and_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        (text + " and" * (3 * POSITIONS if row < 5 else 0), label)
        for row, (text, label) in enumerate(sentences(40))
    ]
    train = write_table(tmp_path / "long.tsv", rows)
    result = _finetune(place, tmp_path / "out", train=str(train), epochs=1)
    assert (
        f"5 of 40 inputs were longer than {POSITIONS} tokens and were cut"
        in capsys.readouterr().err
    )
    assert json.loads((result.out / "metrics.json").read_text())["truncated"]["train"] == 5


def test_predictions_are_cut_where_training_was(place: Path, tmp_path: Path) -> None:
    result = _finetune(place, tmp_path / "out", max_length=12, epochs=1)
    scores = evaluate(result.out, place / "dev.tsv")
    assert scores["max_length"] == 12
    assert scores["accuracy"] == result.accuracy


def test_pairs_are_trained_on_and_asked_for_later(place: Path, tmp_path: Path) -> None:
    rows = [(text, "the story was cold", label) for text, label in sentences(64)]
    table = write_table(tmp_path / "pairs.tsv", rows, ("text", "other", "class"))
    columns = {"text_column": "text", "pair_column": "other", "label_column": "class"}
    result = _finetune(
        place, tmp_path / "out", train=str(table), dev=str(table), epochs=1, **columns
    )
    scores = evaluate(result.out, table, label_column="class")
    assert scores["accuracy"] == result.accuracy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16"},
        {"freeze_encoder": True, "lr": 1e-2},
        {"accumulation": 3, "batch_size": 3, "log_every": 7, "adam_beta2": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop_after", [3, 45])
@pytest.mark.slow_unless(lambda options, stop_after: stop_after == 45 and len(options) != 1)
def test_an_interrupted_run_goes_on_bit_for_bit(
    stop_after: int,
    options: dict[str, Any],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = _finetune(place, tmp_path / "whole", **options)
    module = importlib.import_module("bertfast.training.trainer")
    clip, done = module.clip_at_next_step, []

    def clip_then_interrupt(*arguments: Any) -> Any:
        done.append(None)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return clip(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "clip_at_next_step", clip_then_interrupt)
        with pytest.raises(module.Interrupted):
            _finetune(place, tmp_path / "parts", **options)
    assert not (tmp_path / "parts").exists()
    parts = _finetune(place, tmp_path / "parts", resume=True, **options)
    assert parts.history == whole.history
    a, b = (load_file(path / "model.safetensors") for path in (whole.out, parts.out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


@pytest.mark.parametrize("options", [{}, {"freeze_encoder": True}], ids=str)
def test_accumulated_batches_train_as_one_batch_of_all(
    options: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is dropped; the last update of an epoch has 8 rows: batches of 3, 3, 2, 0."""
    write_model(
        tmp_path / "model",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
    )
    write_table(tmp_path / "train.tsv", sentences(44, seed=1))
    module = importlib.import_module("bertfast.training.trainer")
    clip, found = module.clip_at_next_step, []

    def note(optimizer: Any, most: float) -> Any:
        found.append([gradient.double().clone() for gradient in optimizer.gradients()])
        return clip(optimizer, most)

    monkeypatch.setattr(module, "clip_at_next_step", note)
    # A rate so low that AdamW, to which the smallest gradients count as much, leads nowhere else.
    common = {"model": str(tmp_path / "model"), "train": str(tmp_path / "train.tsv"), "lr": 1e-7}
    runs = []
    for name, sizes in (("one", (12, 1)), ("parts", (3, 4))):
        batch_size, accumulation = sizes
        done = _finetune(
            place,
            tmp_path / name,
            **{**common, **options, "epochs": 2},
            batch_size=batch_size,
            accumulation=accumulation,
        )
        runs.append(([line["train_loss"] for line in done.history], found[:]))
        found.clear()
    (losses, gradients), (other_losses, other_gradients) = runs
    assert len(gradients) == len(other_gradients) == 8
    assert other_losses == pytest.approx(losses, rel=1e-5)
    for update, other in zip(gradients, other_gradients, strict=True):
        for gradient, theirs in zip(update, other, strict=True):
            torch.testing.assert_close(theirs, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [1 / 6, 2 / 6, 3 / 6]),  # a tenth of 60
        ({"warmup": 0}, [1, 59 / 60, 58 / 60]),
        ({"warmup": 3}, [1 / 3, 2 / 3, 1]),
        ({"warmup_ratio": 0.05}, [1 / 3, 2 / 3, 1]),
        ({"warmup_ratio": 0}, [1, 59 / 60, 58 / 60]),
        ({"batch_size": 4, "accumulation": 2, "warmup": 3}, [1 / 3, 2 / 3, 1]),
    ],
    ids=str,
)
def test_the_options_reach_the_trainer(
    options: dict[str, Any],
    shares: list[float],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("bertfast.training.finetune")

    class Caught(Exception):
        pass

    def catch(*_: Any, **arguments: Any) -> None:
        raise Caught(arguments)

    monkeypatch.setattr(module, "Trainer", catch)
    adam = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5}
    with pytest.raises(Caught) as caught:
        _finetune(place, tmp_path / "out", **options, **adam, clip_norm=0.5, log_every=2)
    (given,) = caught.value.args
    assert [given["schedule"](step) for step in range(3)] == pytest.approx(shares)
    assert (given["betas"], given["epsilon"]) == ((0.8, 0.95), 1e-5)
    assert (given["weight_decay"], given["clip_norm"], given["log_every"]) == (0.1, 0.5, 2)
    assert (given["steps"], given["evaluate_every"]) == (60, 20)


def test_an_epochs_loss_is_the_mean_however_often_lines_are_logged(
    place: Path, tuned: FinetuneResult, tmp_path: Path
) -> None:
    again = _finetune(place, tmp_path / "again", log_every=7)
    for line, other in zip(again.history, tuned.history, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
    assert again.scores == tuned.scores


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulation": 0}, "accumulation is 0; it must be a whole number of at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be a whole number of at least 0"),
        ({"warmup": 61}, "warmup is 61 and the run has 60 updates"),
        (
            {"warmup_ratio": 1.5},
            "warmup-ratio is 1.5; it must be a number of at",
        ),
        ({"warmup": 3, "warmup_ratio": 0.1}, "warmup and warmup-ratio say the same thing"),
        ({"weight_decay": -1}, "weight-decay is -1; it must be a number of at least 0"),
        ({"clip_norm": 0}, "clip-norm is 0; it must be a number above 0"),
        ({"adam_beta1": 1.0}, "adam-beta1 is 1.0; it must be a number of at least 0 and below 1"),
        ({"adam_beta2": float("nan")}, "adam-beta2 is nan; it must be a number of at least 0"),
        ({"adam_epsilon": 0}, "adam-epsilon is 0; it must be a number above 0"),
        ({"log_every": 0}, "log-every is 0; it must be a whole number of at least 1"),
    ],
)
def test_an_option_out_of_range_is_one_error(
    options: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertfastError, match=re.escape(said)):
        _finetune(place, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_run_begun_before_an_option_was_there_goes_on(place: Path, tmp_path: Path) -> None:
    """Where the option has its default: what is compared does not name it."""
    module = importlib.import_module("bertfast.training.finetune")
    config = FinetuneConfig("m", "t", "d", "o")
    assert not set(module.YOUNGER) & module.without_defaults(config, module.YOUNGER).keys()
    assert {"warmup": 3}.items() <= module.without_defaults(
        FinetuneConfig("m", "t", "d", "o", warmup=3), module.YOUNGER
    ).items()


def test_a_stopped_run_is_resumed_or_left(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("bertfast.training.finetune")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_fill_folder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _finetune(place, tmp_path / "out", epochs=1)
    with pytest.raises(BertfastError, match=r"\.out\.run: has checkpoints already"):
        _finetune(place, tmp_path / "out", epochs=1)
    with pytest.raises(BertfastError, match="the options changed since"):
        _finetune(place, tmp_path / "out", epochs=2, resume=True)
    assert _finetune(place, tmp_path / "out", epochs=1, resume=True).best_epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_frozen_encoder_in_bfloat16_is_saved_as_it_was(place: Path, tmp_path: Path) -> None:
    result = _finetune(place, tmp_path / "out", freeze_encoder=True, precision="bf16", epochs=1)
    before, after = load(place / "model").bert.state_dict(), load(result.out).bert.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "pooler" not in name)


def test_nan_loss_stops_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    model = load(place / "model")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text((place / "model" / name).read_text())
    with pytest.raises(BertfastError, match="step 1: the loss is nan"):
        _finetune(place, tmp_path / "out", model=str(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_to_is_found_before_training(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(BertfastError, match="cannot be written"):
        _finetune(place, tmp_path / "file" / "out", epochs=10**9)
    assert (tmp_path / "file").read_text() == "here first"


def test_the_tokenizer_is_kept(place: Path, tuned: FinetuneResult) -> None:
    text = "the film was lovely"
    assert (
        load_tokenizer(tuned.out).encode(text).ids
        == load_tokenizer(place / "model").encode(text).ids
    )
