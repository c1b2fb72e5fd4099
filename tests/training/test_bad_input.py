"""Mistakes at the command line: exit code 2, one ``error:`` line that names the cause, nothing
overwritten, nothing left over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import POSITIONS, Outcome, run_cli, sentences, write_model, write_table

from bertfast import kernels
from bertfast.kernels import dispatch
from bertfast.model import BertForMaskedLM, BertForSequenceClassification, BertModel, load
from bertfast.training.checkpoint import checkpoints

PRETRAIN = (
    "--shape",
    "bert-tiny",
    "--steps",
    2,
    "--batch-tokens",
    128,
    "--seq-len",
    24,
    "--warmup",
    1,
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_model(tmp_path / "mlm", BertForMaskedLM)
    write_model(tmp_path / "encoder", BertModel)
    write_model(
        tmp_path / "classifier", BertForSequenceClassification, id2label={0: "bad", 1: "good"}
    )
    write_table(tmp_path / "train.tsv", sentences(24))
    texts = [text for text, _ in sentences(60)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 60, 6)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "header.tsv").write_text("sentence\tlabel\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\x02\0\0\0" * 50)
    (tmp_path / "binary.tsv").write_bytes(b"\x7fELF\x02\0\0\0" * 50)
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1"))
    (tmp_path / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc")
    (tmp_path / "notjson.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    write_table(
        tmp_path / "unseen.tsv", [("the film was warm", "good"), ("the film was odd", "strange")]
    )
    write_table(tmp_path / "onelabel.tsv", [("the film was warm", "good")] * 3)
    return tmp_path


@pytest.fixture
def fails(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs a command in ``place`` that must fail and change nothing there; returns what it
    printed.
    """
    monkeypatch.chdir(place)

    def files() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    def run(*args: object) -> Outcome:
        before = files()
        done = run_cli(monkeypatch, capfd, *args)
        assert done.code == 2, done
        assert len(done.errors) == 1, done.err
        assert "Traceback" not in done.err
        assert files() == before
        return done

    return run


def pretrain(**changes: object) -> list[object]:
    options = {"--data": "corpus.txt", "--tokenizer": "model", "--out": "run"}
    options |= dict(zip(PRETRAIN[::2], PRETRAIN[1::2], strict=True))
    if "model" in changes:
        del options["--shape"]
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["pretrain", *(part for pair in options.items() for part in pair)]


def finetune(model: str = "model", **changes: object) -> list[object]:
    options = {"--train": "train.tsv", "--dev": "train.tsv", "--out": "out"}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["finetune", model, *(part for pair in options.items() for part in pair)]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.txt", "no such file"),
        ("empty.txt", "empty"),
        ("blank.txt", "holds no text"),
        ("binary.txt", "binary"),
        ("latin1.txt", "UTF-8"),
        ("cut.txt.gz", "gzip"),
        ("notjson.jsonl", "line 2"),
    ],
)
def test_text_that_cannot_be_used(
    file: str, said: str, fails: Callable[..., Outcome], place: Path
) -> None:
    for command in (
        pretrain(data=file),
        ["tokenizer", "--data", file, "--vocab-size", 200, "--out", "tok"],
    ):
        message = fails(*command).errors[0]
        assert said in message
        assert file in message
    assert not (place / "run").exists()
    assert not (place / "tok").exists()


def test_the_folder_of_a_model_is_no_text(fails: Callable[..., Outcome], place: Path) -> None:
    assert "model: is a folder and no prepared store" in fails(*pretrain(data="model")).errors[0]
    command = ("tokenizer", "--data", "model", "--vocab-size", 200, "--out", "tok")
    assert "model/config.json, line 1: is not JSON" in fails(*command).errors[0]
    assert not (place / "tok").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.tsv", "no such file"),
        ("empty.tsv", "empty"),
        ("header.tsv", "no rows"),
        ("binary.tsv", "binary"),
        ("corpus.txt", ".tsv, .csv or .jsonl"),
        ("notjson.jsonl", "line"),
    ],
)
def test_labelled_data_that_cannot_be_used(
    file: str, said: str, fails: Callable[..., Outcome], place: Path
) -> None:
    for command in (
        finetune(train=file),
        finetune(dev=file),
        ["evaluate", "classifier", "--data", file],
    ):
        message = fails(*command).errors[0]
        assert said in message
        assert file in message
    assert not (place / "out").exists()


def test_no_such_column(fails: Callable[..., Outcome]) -> None:
    for option in ("--text-column", "--pair-column", "--label-column"):
        message = fails(*finetune(), option, "nonsense").errors[0]
        assert "'nonsense'" in message
        assert "'sentence', 'label'" in message
        fails("evaluate", "classifier", "--data", "train.tsv", option, "nonsense")
    fails("predict", "classifier", "train.tsv", "--text-column", "nonsense")
    assert (
        "no columns" in fails("predict", "classifier", "corpus.txt", "--pair-column", "b").errors[0]
    )


def test_a_label_unseen_in_training(fails: Callable[..., Outcome]) -> None:
    for command in (finetune(dev="unseen.tsv"), ["evaluate", "classifier", "--data", "unseen.tsv"]):
        message = fails(*command).errors[0]
        assert "unseen.tsv, line 3" in message
        assert "'strange'" in message
        assert "'bad', 'good'" in message


def test_one_label_is_no_choice(fails: Callable[..., Outcome]) -> None:
    assert "1 label" in fails(*finetune(train="onelabel.tsv", dev="onelabel.tsv")).errors[0]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("{:.2f}", "train.tsv, line 2: the label '0.00' is no whole number"),
        ("['a{}', 'b']", "looks like a list of labels"),
        ("id {}", "look like texts or ids"),
    ],
)
def test_labels_that_name_no_classes(
    label: str, said: str, fails: Callable[..., Outcome], place: Path
) -> None:
    rows = [(f"the film number {row}", label.format(row / 7)) for row in range(30)]
    write_table(place / "train.tsv", rows)
    assert said in fails(*finetune(task="classification")).errors[0]
    assert not (place / "out").exists()


def test_a_folder_that_exists_already(fails: Callable[..., Outcome]) -> None:
    for command in (
        pretrain(out="model"),
        finetune(out="model"),
        ["tokenizer", "--data", "corpus.txt", "--out", "model"],
    ):
        assert "model: exists already" in fails(*command).errors[0]
    for command in (pretrain(out="train.tsv"), finetune(out="train.tsv")):
        assert "train.tsv: exists already" in fails(*command).errors[0]


def test_resuming_what_is_no_run(fails: Callable[..., Outcome]) -> None:
    assert "is no pretraining run" in fails(*pretrain(out="model"), "--resume").errors[0]


def commands_that_load(folder: str) -> list[list[object]]:
    return [
        pretrain(model=folder),
        finetune(folder),
        ["evaluate", folder, "--data", "train.tsv"],
        ["predict", folder, "train.tsv"],
        ["fill", folder, "the [MASK]"],
    ]


def test_a_truncated_checkpoint(place: Path, fails: Callable[..., Outcome]) -> None:
    for folder in ("model", "classifier"):
        weights = place / folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    for command in (
        *commands_that_load("model")[:2],
        commands_that_load("model")[4],
        *commands_that_load("classifier"),
    ):
        assert "model.safetensors: truncated" in fails(*command).errors[0]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_foreign_file_in_a_checkpoint(
    name: str, place: Path, fails: Callable[..., Outcome]
) -> None:
    (place / "classifier" / name).write_bytes(b"\x80\x04\x95 this is not it")
    for command in commands_that_load("classifier"):
        assert name in fails(*command).errors[0]


def test_another_architecture(place: Path, fails: Callable[..., Outcome]) -> None:
    path = place / "classifier" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))
    for command in commands_that_load("classifier"):
        assert "gpt2" in fails(*command).errors[0]


def test_weights_that_the_config_does_not_fit(place: Path, fails: Callable[..., Outcome]) -> None:
    path = place / "classifier" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64}))
    for command in commands_that_load("classifier"):
        assert "the config wants" in fails(*command).errors[0]


def test_a_folder_without_a_model(fails: Callable[..., Outcome], place: Path) -> None:
    (place / "hollow").mkdir()
    for folder in ("hollow", "nowhere"):
        for command in commands_that_load(folder):
            assert folder in fails(*command).errors[0]


def test_a_tokenizer_that_does_not_fit_the_model(
    place: Path, fails: Callable[..., Outcome]
) -> None:
    path = place / "small" / "config.json"
    write_model(place / "small", BertForSequenceClassification, vocab_size=50)
    assert path.exists()
    for command in commands_that_load("small")[:4]:
        assert "word embeddings" in fails(*command).errors[0]
    write_model(place / "smallmlm", BertForMaskedLM, vocab_size=50)
    assert "word embeddings" in fails("fill", "smallmlm", "the [MASK]").errors[0]
    assert "word embeddings" in fails(*pretrain(model="small")).errors[0]


def test_a_model_without_a_tokenizer(place: Path, fails: Callable[..., Outcome]) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (place / "classifier" / name).unlink()
    for command in commands_that_load("classifier")[1:4]:
        assert "tokenizer.json" in fails(*command).errors[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("steps", -5),
        ("steps", "many"),
        ("batch_tokens", 0),
        ("batch_tokens", 8),
        ("seq_len", 0),
        ("seq_len", 2),
        ("seq_len", 513),
        ("lr", 0),
        ("lr", -1e-4),
        ("lr", "nan"),
        ("lr", "inf"),
        ("warmup", -1),
        ("warmup", 3),
        ("precision", "fp8"),
        ("objective", "clm"),
        ("masking", "none"),
        ("mask_unit", "phrase"),
        ("shape", "bert-huge"),
        ("device", "tpu"),
        ("device", "cuda:99"),
        ("warmup_ratio", 2),
        ("checkpoint_every", 0),
        ("log_every", 0),
        ("accumulation", 0),
        ("clip_norm", 0),
        ("weight_decay", -1),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_pretrain_options_out_of_range(
    option: str, value: object, fails: Callable[..., Outcome], place: Path
) -> None:
    message = fails(*pretrain(**{option: value})).errors[0]
    assert option.replace("_", "-") in message.replace("_", "-")
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "distill"}, "--teacher"),
        (
            {"objective": "distill", "teacher": "nowhere"},
            "nowhere: no such folder",
        ),
        ({"objective": "mlm", "teacher": "tok"}, "only --objective distill"),
        ({"objective": "clm"}, "mlm, mlm+nsp, mlm+sop, rtd, distill"),
    ],
)
def test_objectives_that_do_not_fit_the_options(
    options: dict[str, str], said: str, fails: Callable[..., Outcome], place: Path
) -> None:
    assert said in fails(*pretrain(**options)).errors[0]
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("task", "tagging"),
        ("epochs", 0),
        ("epochs", "two"),
        ("lr", 0),
        ("lr", -1),
        ("lr", "nan"),
        ("batch_size", 0),
        ("max_length", 3),
        ("max_length", POSITIONS + 1),
        ("precision", "fp8"),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_finetune_options_out_of_range(
    option: str, value: object, fails: Callable[..., Outcome], place: Path
) -> None:
    assert option.replace("_", "-") in fails(*finetune(**{option: value})).errors[0]
    assert not (place / "out").exists()


@pytest.mark.parametrize("size", [0, -3, 5, 10])
def test_a_vocabulary_too_small(size: int, fails: Callable[..., Outcome], place: Path) -> None:
    assert (
        "vocab-size"
        in fails("tokenizer", "--data", "corpus.txt", "--vocab-size", size, "--out", "tok").errors[
            0
        ]
    )
    assert not (place / "tok").exists()


@pytest.mark.parametrize("top", [0, -1, 10**6])
def test_too_few_or_too_many_fillers(top: int, fails: Callable[..., Outcome]) -> None:
    assert "top" in fails("fill", "model", "the [MASK]", "--top", top).errors[0]


def test_a_prediction_asked_of_a_model_without_that_head(fails: Callable[..., Outcome]) -> None:
    for folder, name in (
        ("model", "BertForPreTraining"),
        ("mlm", "BertForMaskedLM"),
        ("encoder", "BertModel"),
    ):
        for command in (
            ["predict", folder, "train.tsv"],
            ["evaluate", folder, "--data", "train.tsv"],
        ):
            message = fails(*command).errors[0]
            assert name in message
            assert "which has no head of a task" in message
    for folder, name in (("classifier", "BertForSequenceClassification"), ("encoder", "BertModel")):
        message = fails("fill", folder, "the [MASK]").errors[0]
        assert name in message
        assert "no masked-LM head" in message


def test_no_mask_to_fill(fails: Callable[..., Outcome]) -> None:
    assert "no [MASK]" in fails("fill", "model", "the film").errors[0]
    assert "no [MASK]" in fails("fill", "model", "").errors[0]


def test_a_mask_beyond_the_positions(fails: Callable[..., Outcome]) -> None:
    assert str(POSITIONS) in fails("fill", "model", "the " * POSITIONS + "[MASK]").errors[0]


def test_usage_errors_are_one_line_too(fails: Callable[..., Outcome]) -> None:
    for command in (
        ["nonsense"],
        ["finetune"],
        ["finetune", "model", "--train", "train.tsv"],
        ["predict", "classifier", "train.tsv", "--nonsense"],
        ["fill", "model"],
        ["tokenizer", "--data"],
        ["pretrain", "--tokenizer", "model", "--out", "run"],
        ["pretrain", "--data", "corpus.txt", "--out", "run"],
    ):
        fails(*command)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("stepz: 3\n", "stepz; the nearest is steps"),
        ("steps: [1, 2\n", "YAML"),
        ("- steps\n", "mapping"),
        ("steps: many\n", "steps"),
        ("lr: fast\n", "lr"),
        ("data: 3\n", "data"),
        ("data: [3]\n", "3"),
        ("tokenizer: 5\n", "5"),
        ("model: 5\n", "model"),
        ("resume: 1\n", "resume is 1; it must be true or false"),
        ("steps: 2.5\n", "steps is 2.5; it must be a whole number"),
        ("steps: true\n", "steps is True; it must be a whole number"),
        ("steps: 2\nmax_steps: 3\n", "sets steps twice"),
        ("config: other.yaml\n", "no such option: config"),
    ],
)
def test_a_config_file_that_cannot_be_used(
    yaml: str, said: str, fails: Callable[..., Outcome], place: Path
) -> None:
    (place / "run.yaml").write_text(yaml)
    base = {"--data": "corpus.txt", "--tokenizer": "model", "--out": "run"}
    key = yaml.split(":")[0]
    base.pop(f"--{key}", None)
    message = fails(
        "pretrain", *(part for pair in base.items() for part in pair), "--config", "run.yaml"
    ).errors[0]
    assert said in message
    assert not (place / "run").exists()


def test_a_backend_that_cannot_run(
    fails: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "NO_EXTENSION", "the extension is not built")
    with kernels.use_backend("cpp"):
        message = fails("predict", "classifier", "train.tsv").errors[0]
    assert "'cpp'" in message
    assert "the extension is not built" in message


def test_nan_in_pretraining_stops_with_its_step(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    model = load("model")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    model.save_pretrained("nan")
    done = run_cli(monkeypatch, capfd, *pretrain(model="nan"))
    assert done.code == 2
    assert len(done.errors) == 1
    assert "step 1: the loss is nan" in done.errors[0]
    assert "no checkpoint was written yet" in done.errors[0]


def test_a_diverging_run_keeps_its_last_good_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    done = run_cli(
        monkeypatch,
        capfd,
        *pretrain(model="model", lr=1e36, steps=30, checkpoint_every=1, warmup=0),
    )
    assert done.code == 2
    assert len(done.errors) == 1
    kept = checkpoints(place / "run")[-1]
    assert str(kept.relative_to(place)) in done.errors[0]
    weights = load(place / "run").state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())


def stopped(said: str, place: Path, run: Callable[[], Outcome]) -> None:
    """One line, exit code 2, and the last checkpoint is there to go on from."""
    done = run()
    assert done.code == 2, done
    assert len(done.errors) == 1, done.err
    assert said in done.errors[0]
    assert "Traceback" not in done.err
    assert [path.name for path in checkpoints(place / "run")] == ["step-00000001"]


@pytest.mark.parametrize("error", [SystemExit(9), MemoryError("no page left"), KeyError("row")])
def test_a_worker_that_dies_keeps_the_checkpoint(
    error: BaseException,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from bertfast.data.packing import Batches

    monkeypatch.chdir(place)
    command = pretrain(steps=3, checkpoint_every=1, objective="mlm")
    iterate = Batches.iterate

    def dies(self: Batches, start_step: int = 0) -> Iterator[Any]:
        yield next(iterate(self, start_step))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Batches, "iterate", dies)
        said = f"making a batch failed ({type(error).__name__}"
        stopped(said, place, lambda: run_cli(monkeypatch, capfd, *command))
    assert run_cli(monkeypatch, capfd, *command, "--resume").code == 0


def test_a_callback_that_raises_keeps_the_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import bertfast
    from bertfast.training import trainer

    class Tracker(bertfast.Callback):
        def on_step(self, trainer: bertfast.Trainer, step: int) -> None:
            if step == 2:
                raise ConnectionError("no such host")

    monkeypatch.chdir(place)
    command = pretrain(steps=3, checkpoint_every=1, objective="mlm")
    made = trainer.Trainer.__init__

    def with_tracker(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **{**options, "callbacks": [Tracker()]})

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "__init__", with_tracker)
        said = "the callback Tracker failed in on_step (ConnectionError: no such host)"
        stopped(said, place, lambda: run_cli(monkeypatch, capfd, *command))
    assert run_cli(monkeypatch, capfd, *command, "--resume").code == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (pretrain(objective="mine"), "objective is 'mine'; it must be one of mlm, mlm+nsp"),
        (finetune(task="mine"), "task is 'mine'; it must be one of classification"),
    ],
    ids=["objective", "task"],
)
def test_what_is_not_registered_is_named_with_what_is(
    command: list[object], said: str, fails: Callable[..., Outcome]
) -> None:
    assert said in fails(*command).errors[0]
