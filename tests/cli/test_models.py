"""Which weights a command takes: a folder's, the Hub's, or random ones of a shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_cache import REVISION, put_in_cache, use_cache
from tiny import Outcome, run_cli, sentences, write_model, write_table

import bertfast
from bertfast.config import PRESETS, EncoderConfig
from bertfast.model import BertForSequenceClassification, BertModel, load
from bertfast.objectives import OBJECTIVES, default_objective
from bertfast.training.config import PretrainConfig

SMALL = ("--steps", 2, "--batch-tokens", 128, "--seq-len", 24)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, a table and models; the same models are org/NAME in the cache."""
    monkeypatch.chdir(tmp_path)
    use_cache(monkeypatch, tmp_path / "cache")
    write_model(tmp_path / "pair")
    write_model(tmp_path / "encoder", BertModel)
    write_model(tmp_path / "labels", BertForSequenceClassification)
    for name in ("pair", "encoder", "labels"):
        put_in_cache(tmp_path / name, f"org/{name}", tmp_path / "cache")
    texts = [text for text, _ in sentences(60)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 60, 6)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    write_table(tmp_path / "train.tsv", sentences(24))
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    return lambda *args: run_cli(monkeypatch, capfd, *args)


def pretrain(*args: object) -> list[object]:
    return ["pretrain", "--data", "corpus.txt", "--out", "run", *SMALL, *args]


def used() -> dict[str, object]:
    return yaml.safe_load(Path("run/config.yaml").read_text())  # type: ignore[no-any-return]


def test_a_shape_makes_random_weights_and_says_so(run) -> None:  # type: ignore[no-untyped-def]
    done = run(*pretrain("--shape", "bert-tiny", "--tokenizer", "pair"))
    assert done.code == 0, done
    assert "starts from random weights, shape bert-tiny" in done.err
    assert (used()["shape"], used()["model"]) == ("bert-tiny", None)


def test_a_model_gives_weights_tokenizer_and_objective(run) -> None:  # type: ignore[no-untyped-def]
    done = run(*pretrain("--model", "pair"))
    assert done.code == 0, done
    assert "starts from the folder pair" in done.err
    assert (used()["tokenizer"], used()["objective"]) == ("pair", "mlm+nsp")


def test_a_hub_id_gives_its_weights_and_revision(place: Path, run) -> None:  # type: ignore[no-untyped-def]
    done = run(*pretrain("--model", "org/pair", "--lr", 1e-12, "--warmup", 0))
    assert done.code == 0, done
    assert f"starts from org/pair of the Hugging Face Hub, revision {REVISION}" in done.err
    assert used()["model"] == "org/pair"
    name = "embeddings.word_embeddings.weight"
    ours, theirs = (load(path).base.state_dict()[name] for path in ("run", "pair"))
    assert ours.allclose(theirs, atol=1e-6)
    assert "base_model: org/pair" in Path("run/README.md").read_text()


def test_a_presets_name_is_never_random_weights(run) -> None:  # type: ignore[no-untyped-def]
    done = run(*pretrain("--model", "roberta-base"))
    assert (done.code, len(done.errors)) == (2, 1)
    assert "HF_HUB_OFFLINE" in done.errors[0]
    assert "--shape roberta-base makes a new model" in done.errors[0]
    assert not Path("run").exists()


def test_an_id_without_network_is_one_line(  # type: ignore[no-untyped-def]
    place: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, place / "cache", "http://127.0.0.1:9")
    for command in (
        pretrain("--model", "org/nowhere"),
        pretrain("--shape", "bert-tiny", "--tokenizer", "org/nowhere"),
        ["finetune", "org/nowhere", "--train", "train.tsv", "--dev", "train.tsv", "--out", "run"],
        ["predict", "org/nowhere", "train.tsv"],
        ["evaluate", "org/nowhere", "--data", "train.tsv"],
        ["fill", "org/nowhere", "a [MASK]"],
        ["embed", "org/nowhere", "corpus.txt", "--out", "v.npy"],
        ["bench", "--embedding", "--text", "corpus.txt", "--model", "org/nowhere"],
    ):
        done = run(*command)
        assert (done.code, len(done.errors)) == (2, 1)
        assert "the Hugging Face Hub cannot be reached" in done.errors[0]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--shape", "bert-tiny", "--model", "pair"], "give one of the two"),
        (["--shape", "bert-tiny"], "a new model needs one"),
        (["--shape", "pair", "--tokenizer", "pair"], "shape is 'pair'; it must be a preset"),
        (["--shape", "bert-tiny", "--revision", "v", "--tokenizer", "pair"], "of no model"),
        (["--model", "pair", "--revision", "v"], "only a Hub id has revisions"),
    ],
)
def test_what_names_no_model_is_refused(args: list[str], said: str, run) -> None:  # type: ignore[no-untyped-def]
    done = run(*pretrain(*args))
    assert (done.code, len(done.errors)) == (2, 1)
    assert said in done.errors[0]
    assert not Path("run").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["folder", "id"])
def test_inference_takes_a_folder_or_an_id_in_each_precision(  # type: ignore[no-untyped-def]
    name: str, precision: str, run
) -> None:
    def model(kind: str) -> str:
        return kind if name == "folder" else f"org/{kind}"

    told = f"weights: the folder {model('labels')}" if name == "folder" else f"revision {REVISION}"
    options = ["--device", "cpu", "--precision", precision]
    outcomes: list[Outcome] = [
        run("predict", model("labels"), "train.tsv", *options),
        run("evaluate", model("labels"), "--data", "train.tsv", *options)
        if precision == "never"
        else run("predict", "--model", model("labels"), "corpus.txt", *options),
    ]
    for done in outcomes:
        assert done.code == 0, done
        assert told in done.err
        first = json.loads(done.out.splitlines()[0])["probabilities"]
        assert sum(first.values()) == pytest.approx(1, abs=1e-2)
    assert run("fill", model("pair"), "the [MASK] was", *options).code == 0
    assert run("embed", model("encoder"), "corpus.txt", "--out", "v.npy", *options).code == 0
    vectors = np.load("v.npy")
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    "options", [["--precision", "fp8"], ["--device", "tpu"], ["--device", "cuda:99"]]
)
def test_a_device_or_precision_that_is_none_is_refused(  # type: ignore[no-untyped-def]
    options: list[str], run
) -> None:
    for command in (
        ["predict", "labels", "train.tsv"],
        ["evaluate", "labels", "--data", "train.tsv"],
        ["fill", "pair", "a [MASK]"],
        ["embed", "encoder", "corpus.txt", "--out", "v.npy"],
    ):
        done = run(*command, *options)
        assert (done.code, len(done.errors)) == (2, 1)
        assert options[1] in done.errors[0]


def test_finetuning_starts_from_an_id(run) -> None:  # type: ignore[no-untyped-def]
    data = ["--train", "train.tsv", "--dev", "train.tsv", "--out", "tuned", "--epochs", 1]
    done = run("finetune", "org/pair", *data)
    assert done.code == 0, done
    assert f"starts from org/pair of the Hugging Face Hub, revision {REVISION}" in done.err
    assert "base_model: org/pair" in Path("tuned/README.md").read_text()


def test_python_takes_ids_too(place: Path) -> None:
    assert isinstance(bertfast.load("org/pair"), bertfast.BertForPreTraining)
    assert bertfast.BertModel.from_pretrained("org/encoder", revision=REVISION).config.hidden_size
    vectors = bertfast.SentenceEncoder.from_pretrained("org/encoder").encode(["a film"])
    assert vectors.shape == (1, 32)
    with pytest.raises(bertfast.BertfastError, match="not in the cache"):
        bertfast.load("org/nowhere")


@pytest.mark.parametrize("shape", PRESETS)
def test_each_presets_default_objective_is_one_that_it_serves(shape: str) -> None:
    config = EncoderConfig.preset(shape)
    objective = OBJECTIVES[default_objective(config)]
    wanted = {"bert": "mlm+nsp", "albert": "mlm+sop", "electra": "rtd"}
    assert objective.name == wanted.get(config.model_type, "mlm")


@pytest.mark.parametrize(
    ("shape", "objective"),
    [("albert-base", "mlm+sop"), ("roberta-base", "mlm"), ("electra-small", "rtd")],
)
def test_the_objective_follows_the_shape(shape: str, objective: str) -> None:
    assert PretrainConfig(("a",), "tok", "run", shape=shape).objective == objective
    assert PretrainConfig(("a",), "tok", "run", shape=shape, objective="mlm").objective == "mlm"
