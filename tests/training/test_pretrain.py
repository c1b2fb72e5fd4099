"""Pretraining: what it learns, what it leaves, and that a stopped run goes on to the same
losses.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny import sentences, write_model, write_table

import bertfast
from bertfast.data.packing import Batches
from bertfast.errors import BertfastError
from bertfast.files import read_yaml
from bertfast.kernels import products
from bertfast.model import AlbertForPreTraining, BertForMaskedLM, BertForPreTraining, load
from bertfast.tokenization import (
    SpecialIds,
    load_tokenizer,
    save_tokenizer,
    train_byte_level_bpe,
    train_unigram,
    train_wordpiece,
)
from bertfast.training import precision
from bertfast.training.checkpoint import STATE_SUM, STATE_TENSORS, STATE_VALUES, checkpoints
from bertfast.training.metrics import FILE, read_metrics
from bertfast.training.pretrain import Interrupted, PretrainResult

module = importlib.import_module("bertfast.training.trainer")
OPTIONS: dict[str, Any] = {
    "steps": 12, "batch_tokens": 128, "seq_len": 24, "lr": 1e-3, "warmup": 2, "checkpoint_every": 4,
    "log_every": 3
}  # fmt: skip
# Of the numbers of a line only these depend on the clock.
CLOCKED = ("tokens_per_second", "seconds")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_model(folder / "model")
    texts = [text for text, _ in sentences(300)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 300, 6)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    return folder


def run(place: Path, out: Path, **options: Any) -> PretrainResult:
    start = {} if "shape" in options else {"model": str(place / "model")}
    return bertfast.pretrain(
        [str(place / "corpus.txt")],
        str(place / "model"),
        str(out),
        **{**start, **OPTIONS, **options},
    )


def losses(folder: Path) -> list[dict[str, Any]]:
    """The logged lines without what a clock decides."""
    return [
        {name: value for name, value in line.items() if name not in CLOCKED}
        for line in read_metrics(folder)
    ]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The run that nothing stopped."""
    return run(place, place / "whole").out


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_folder_is_a_model_and_a_record(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "config.yaml",
        "metrics.jsonl",
    }
    assert any((whole / "tensorboard").glob("events.*"))
    assert [path.name for path in checkpoints(whole)] == ["step-00000008", "step-00000012"]
    assert isinstance(load(whole), BertForPreTraining)
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    for line in lines:
        assert line.keys() >= {
            "loss",
            "mlm_loss",
            "mlm_accuracy",
            "nsp_loss",
            "nsp_accuracy",
            "tokens_per_second",
        }
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"], rel=1e-5)
    assert lines[-1]["tokens"] <= 12 * OPTIONS["batch_tokens"]
    assert lines[-1]["learning_rate"] == pytest.approx(1e-3 / 10)


def test_the_model_card_names_model_text_and_numbers(whole: Path) -> None:
    card = ModelCard.load(whole / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "fill-mask"
    last = read_metrics(whole)[-1]
    for part in ("BertForPreTraining", "corpus.txt", f"mlm accuracy: {last['mlm_accuracy']:.4f}"):
        assert part in card.text


def test_the_saved_config_repeats_the_run(whole: Path, place: Path, tmp_path: Path) -> None:
    repeated = bertfast.pretrain(
        **{**read_yaml(whole / "config.yaml"), "out": str(tmp_path / "again")}
    )
    assert_same_run(whole, repeated.out)


@pytest.mark.slow
def test_it_learns_words_from_their_neighbours(place: Path, tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "plain", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    options = {
        "model": str(folder),
        "steps": 450,
        "lr": 5e-3,
        "warmup": 20,
        "batch_tokens": 512,
        "log_every": 25,
    }
    run(place, tmp_path / "run", checkpoint_every=1000, **options)
    lines = read_metrics(tmp_path / "run")
    # "the THING was WORD and the THING was long": all but the things and the word, some 2 in 3, can
    # be known.
    assert lines[-1]["mlm_accuracy"] > 0.6 > 0.3 > lines[0]["mlm_accuracy"]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_masked_lm_alone(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run", objective="mlm", masking="static")
    assert isinstance(load(result.out), BertForMaskedLM)
    assert "nsp_loss" not in result.last


@pytest.mark.parametrize("train", [train_byte_level_bpe, train_unigram])
def test_it_trains_with_every_kind_of_tokenizer(train: Any, place: Path, tmp_path: Path) -> None:
    tokenizer = train([text for text, _ in sentences(50)], 300)
    save_tokenizer(tokenizer, tmp_path / "tok")
    options = {**OPTIONS, "steps": 2, "shape": "bert-tiny"}
    result = bertfast.pretrain(
        [str(place / "corpus.txt")], str(tmp_path / "tok"), str(tmp_path / "run"), **options
    )
    for folder in (result.out, checkpoints(result.out)[-1]):
        assert load_tokenizer(folder).to_str() == tokenizer.to_str()
        assert load(folder).config.pad_token_id == SpecialIds(tokenizer).pad
    table = write_table(
        tmp_path / "train.tsv",
        [(text, text, label) for text, label in sentences(8)],
        ("text", "pair", "label"),
    )
    tuned = bertfast.finetune(
        result.out, table, table, tmp_path / "tuned", pair_column="pair", epochs=1
    )
    assert load_tokenizer(tuned.out).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("member", ["mpnet", "camembert"])
def test_masked_lm_of_members_of_robertas_kind(member: str, place: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in sentences(50)]
    own = train_wordpiece(texts, 200, mpnet=True) if member == "mpnet" else None
    save_tokenizer(own or train_byte_level_bpe(texts, 300), tmp_path / "tok", segments=False)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    model = tmp_path / "shape.json"
    model.write_text(json.dumps({"model_type": member, "vocab_size": 2, **shape}))
    options = {**OPTIONS, "steps": 40, "lr": 3e-3, "objective": "mlm", "shape": str(model)}
    corpus = [str(place / "corpus.txt")]
    result = bertfast.pretrain(corpus, str(tmp_path / "tok"), str(tmp_path / "run"), **options)
    first, *_, last = (line["mlm_loss"] for line in losses(result.out))
    assert last < first - 0.3
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(result.out).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(result.out)(texts[0], return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**inputs).logits
        got = load(result.out)(**inputs).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_new_mpnet_takes_no_tokenizer_whose_padding_is_another_id(place: Path, tmp_path: Path):
    with pytest.raises(BertfastError, match=r"padding the id 0 .*--type mpnet") as caught:
        run(place, tmp_path / "run", shape="mpnet-base", objective="mlm")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unit", ["whole-word", "span"])
def test_segments_put_in_order_and_words_hidden_whole(
    unit: str, place: Path, tmp_path: Path
) -> None:
    shape = {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = tmp_path / "albert.json"
    model.write_text(
        json.dumps(
            {"model_type": "albert", "vocab_size": 1, "max_position_embeddings": 64, **shape}
        )
    )
    result = run(place, tmp_path / "run", shape=str(model), objective="mlm+sop", mask_unit=unit)
    assert isinstance(load(result.out), AlbertForPreTraining)
    assert result.last["sop_loss"] > 0
    assert 0 <= result.last["sop_accuracy"] <= 1


def test_seeds_decide_everything(place: Path, whole: Path, tmp_path: Path) -> None:
    other = run(place, tmp_path / "other", seed=1).out
    assert losses(other)[0]["loss"] != losses(whole)[0]["loss"]
    assert_same_run(whole, run(place, tmp_path / "same", seed=0).out)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_an_interrupted_run_goes_on_bit_for_bit(
    precision: str, stop_after: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(place, tmp_path / "whole", precision=precision).out
    update, done = module.clip_at_next_step, []

    def update_then_interrupt(*arguments: Any) -> Any:
        done.append(None)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return update(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "clip_at_next_step", update_then_interrupt)
        with pytest.raises(Interrupted):
            run(place, tmp_path / "parts", precision=precision)
    assert checkpoints(tmp_path / "parts")[-1].name == f"step-{stop_after:08d}"
    resumed = run(place, tmp_path / "parts", precision=precision, resume=True)
    assert resumed.steps == 12
    assert_same_run(whole, resumed.out)


@pytest.mark.slow
def test_runs_killed_at_any_moment_go_on_bit_for_bit(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    options = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in (OPTIONS | {"checkpoint_every": 1}).items()
    )
    command = [
        *(sys.executable, "-m", "bertfast"),
        *shlex.split(
            f"pretrain --data {place}/corpus.txt --tokenizer {place}/model --model {place}/model "
            f"{options}"
        ),
        *("--out", str(tmp_path / "killed")),
    ]
    draw, kills = random.Random(0), 0
    for attempt in range(40):
        # Once it writes checkpoints, a moment that differs each time.
        before = checkpoints(tmp_path / "killed")
        again = ["--resume"] if attempt else []
        process = subprocess.Popen(
            [*command, *again], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        deadline = time.monotonic() + 120
        while (
            process.poll() is None
            and checkpoints(tmp_path / "killed") == before
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        kills += 1
    assert process.returncode == 0
    assert kills >= 2
    assert_same_run(whole, tmp_path / "killed")


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_says_so(
    place: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise RuntimeError("stands for a kill")

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_checkpoint", kill)
        with pytest.raises(RuntimeError):
            run(place, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 1
    run(place, tmp_path / "run", resume=True)
    assert "has no checkpoint yet; starting from step 0" in capsys.readouterr().err
    assert_same_run(whole, tmp_path / "run")


def test_resume_where_nothing_was_begun_starts_from_step_0(
    place: Path, whole: Path, tmp_path: Path, capsys
) -> None:
    run(place, tmp_path / "run", resume=True)
    assert "has no checkpoint yet; starting from step 0" in capsys.readouterr().err
    assert_same_run(whole, tmp_path / "run")


def test_a_resume_past_a_damaged_checkpoint_goes_on_bit_for_bit(
    place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit in any file of the newest checkpoint: named, and the run is the same."""
    out = tmp_path / "run"
    run(place, out, steps=12)
    draw = random.Random(1)
    newest, older = (checkpoints(out)[index] for index in (-1, -2))
    for name in sorted(path.name for path in newest.iterdir()):
        # A link shares its bits with the run's own file, and so does what is damaged.
        path = newest / name
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        capsys.readouterr()
        run(place, out, resume=True)
        said = capsys.readouterr().err
        assert (STATE_VALUES if name == STATE_SUM else name) in said
        assert f"going back to the whole checkpoint {older}" in said
        assert_same_run(whole, out)


def test_a_resume_with_no_whole_checkpoint_is_one_error(place: Path, tmp_path: Path) -> None:
    out = run(place, tmp_path / "run").out
    for folder in checkpoints(out):
        (folder / STATE_TENSORS).write_bytes(b"")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(BertfastError, match="no whole checkpoint is left to resume from"):
        run(place, out, resume=True)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after == before


def test_a_flipped_bit_in_the_store_changes_no_resumed_run(
    place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(place, tmp_path / "run").out
    shutil.rmtree(checkpoints(out)[-1])
    path = out / "tokens" / "ids.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run(place, out, resume=True)
    assert f"{path}: is damaged" in capsys.readouterr().err
    assert_same_run(whole, out)


@pytest.mark.parametrize("name", ["data", "tokenizer", "model's configuration"])
def test_a_resume_refuses_what_changed_outside_the_run(
    name: str, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    shutil.copy(place / "corpus.txt", tmp_path / "corpus.txt")

    def train(**options: Any) -> Path:
        return run(tmp_path, tmp_path / "run", model=str(tmp_path / "model"), **options).out

    out = train()
    shutil.rmtree(checkpoints(out)[-1])
    path = (
        tmp_path
        / {
            "data": "corpus.txt",
            "tokenizer": "model/tokenizer.json",
            "model's configuration": "model/config.json",
        }[name]
    )
    text = path.read_text()
    old, new = {
        "data": ("was", "is"),
        "tokenizer": ('"max_input_chars_per_word":100', '"max_input_chars_per_word":104'),
        "model's configuration": ('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.3'),
    }[name]
    changed = re.sub(re.escape(old).replace(":", r":\s*"), new, text, count=1)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(BertfastError, match=rf"the {name} changed since"):
        train(resume=True)


def test_resuming_a_finished_run_changes_nothing(place: Path, tmp_path: Path, capsys) -> None:
    out = run(place, tmp_path / "run").out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(place, out, resume=True).steps == 12
    assert "is complete at step 12" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_resumed_run_keeps_its_options(place: Path, tmp_path: Path) -> None:
    out = run(place, tmp_path / "run").out
    with pytest.raises(BertfastError, match=r"keeps its options, but lr was 0.001, is 0.5"):
        run(place, out, resume=True, lr=0.5)


# What config.yaml held before there was --shape, of the run below.
BEFORE_SHAPE = (
    *("data", "tokenizer", "out", "model", "objective", "teacher", "generator_size", "masking"),
    *("mask_unit", "steps", "batch_tokens", "seq_len", "lr", "warmup", "weight_decay", "clip_norm"),
    *("accumulation", "precision", "cuda_graph", "seed", "checkpoint_every", "log_every"),
    "text_field",
)


def test_a_run_from_before_shape_and_the_youngest_options_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretraining = importlib.import_module("bertfast.training.pretrain")

    def as_then(config: Any) -> dict[str, Any]:
        values = {name: value for name, value in config.to_dict().items() if name in BEFORE_SHAPE}
        return {**values, "model": config.shape}

    def digests_then(config: Any) -> tuple[str, ...]:
        kept = {
            name: value
            for name, value in as_then(config).items()
            if name not in ("out", "checkpoint_every", "log_every")
        }
        return (hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(),)

    whole = run(place, tmp_path / "whole", shape="bert-tiny")
    with monkeypatch.context() as then:
        then.setattr(pretraining, "_options_digests", digests_then)
        then.setattr(
            pretraining.PretrainConfig, "to_yaml", lambda config: yaml.safe_dump(as_then(config))
        )
        out = run(place, tmp_path / "run", shape="bert-tiny").out
    shutil.rmtree(checkpoints(out)[-1])
    assert "shape" not in read_yaml(out / "config.yaml")
    with pytest.raises(BertfastError, match="keeps its options, but shape was 'bert-tiny', is"):
        run(place, out, shape="bert-mini", resume=True)
    with pytest.raises(BertfastError, match=r"but adam_beta2 was 0\.999, is 0\.9"):
        run(place, out, shape="bert-tiny", adam_beta2=0.9, resume=True)
    resumed = run(place, out, shape="bert-tiny", resume=True)
    assert_same_run(whole.out, resumed.out)


def test_two_processes_do_not_train_one_run(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def second(_: dict[str, Any]) -> None:
        with pytest.raises(BertfastError, match="another process is training there"):
            run(place, out, resume=True)

    run(place, out, on_log=second)


def test_accumulated_batches_are_one_update(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(
        tmp_path / "plain", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    seen: list[torch.Tensor] = []
    update, iterate = module.clip_at_next_step, Batches.iterate

    def look(optimizer: Any, norm: float) -> Any:
        seen[:] = [gradient.clone() for gradient in optimizer.gradients()]
        return update(optimizer, norm)

    def gradients(out: str, accumulation: int, first: int = 0) -> list[torch.Tensor]:
        monkeypatch.setattr(Batches, "iterate", lambda self, start: iterate(self, start + first))
        run(place, tmp_path / out, model=str(folder), steps=1, warmup=0, accumulation=accumulation)
        return list(seen)

    monkeypatch.setattr(module, "clip_at_next_step", look)
    accumulated = gradients("three", 3)
    alone = [gradients(f"one-{first}", 1, first) for first in range(3)]
    for total, parts in zip(accumulated, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(total, sum(parts) / 3, rtol=1e-4, atol=1e-6)


def test_bfloat16_tracks_float32(place: Path, tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "plain", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    curves = {}
    for name in ("fp32", "bf16"):
        out = run(
            place,
            tmp_path / name,
            precision=name,
            model=str(folder),
            steps=60,
            log_every=10,
        ).out
        curves[name] = [line["loss"] for line in read_metrics(out)]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.02)
    assert curves["fp32"][-1] < 0.8 * curves["fp32"][0]
    saved = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_full_disk_keeps_the_last_checkpoint(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertfast.training import checkpoint

    save, calls = checkpoint.save_file, []

    def full(*arguments: Any, **options: Any) -> None:
        calls.append(None)
        if len(calls) > 2:  # two files a checkpoint: the second one meets it
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(BertfastError, match="No space left on device"):
            run(place, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000004"]
    run(place, tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_metrics_hold_no_step_twice_after_a_resume(place: Path, tmp_path: Path) -> None:
    out = run(place, tmp_path / "run", steps=8, checkpoint_every=4, log_every=1).out
    for newest in checkpoints(out)[-1:]:
        for path in newest.iterdir():
            path.unlink()
        newest.rmdir()
    run(place, out, steps=8, checkpoint_every=4, log_every=1, resume=True)
    steps = [json.loads(line)["step"] for line in (out / FILE).read_text().splitlines()]
    assert steps == list(range(1, 9))


def test_bf16_on_a_cpu_that_does_not_multiply_it_is_said_to_save_memory_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu, message = torch.device("cpu"), "saves memory here, not time"
    precision._say_bf16_saves_memory.cache_clear()
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, True)
    precision.say_what_it_saves("bf16", cpu)
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, False)
    precision.say_what_it_saves("fp32", cpu)
    precision.say_what_it_saves("bf16", torch.device("cuda"))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        precision.say_what_it_saves("bf16", cpu)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_bf16_run_says_what_it_saves(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    precision._say_bf16_saves_memory.cache_clear()
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, False)
    run(place, tmp_path / "out", precision="bf16", steps=2)
    assert capsys.readouterr().err.count("saves memory here, not time") == 1
