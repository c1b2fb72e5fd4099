"""Held-out text in pretraining: what is measured, on what, and what is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import run_cli, sentences, write_model

import bertfast
from bertfast.data.packing import Batches
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.model import BertForMaskedLM, load
from bertfast.tokenization import SpecialIds, load_tokenizer
from bertfast.training.checkpoint import checkpoints
from bertfast.training.held_out import FILE, HeldOut, read_evaluations

OPTIONS: dict[str, Any] = {
    "steps": 12,
    "batch_tokens": 128,
    "seq_len": 24,
    "lr": 3e-3,
    "warmup": 2,
    "checkpoint_every": 4,
    "objective": "mlm",
}


def _write_text(path: Path, count: int, seed: int) -> Path:
    texts = [text for text, _ in sentences(count, seed)]
    documents = ["\n".join(texts[start : start + 5]) for start in range(0, count, 5)]
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    write_model(folder / "model", BertForMaskedLM)
    _write_text(folder / "corpus.txt", 300, 0)
    _write_text(folder / "valid.txt", 40, 7)
    return folder


def _run(place: Path, out: str, **options: Any) -> bertfast.training.pretrain.PretrainResult:
    settings = {"model": str(place / "model"), **OPTIONS, **options}
    return bertfast.pretrain([str(place / "corpus.txt")], None, str(place / out), **settings)


def _by_hand(place: Path, folder: Path) -> dict[str, float]:
    """The loss, accuracy and perplexity over every hidden token, by PyTorch's own functions."""
    tokenizer, model = load_tokenizer(folder), load(folder).requires_grad_(False)
    store = TokenStore.build([place / "valid.txt"], tokenizer, place / "store")
    special = SpecialIds(tokenizer, folder)
    batches = Batches(store, special, model.config.vocab_size, 24, 128, "mlm", "static", 0)
    losses, right = [], []
    for epoch, batch in batches.iterate():
        if epoch:
            break
        logits = model(replace(batch, masked_positions=None, masked_labels=None)).logits
        logits = logits[batch.masked_positions]
        losses.append(F.cross_entropy(logits.double(), batch.masked_labels, reduction="none"))
        right.append(logits.argmax(-1) == batch.masked_labels)
    loss = float(torch.cat(losses).mean())
    return {
        "valid_loss": loss,
        "valid_mlm_loss": loss,
        "valid_mlm_accuracy": float(torch.cat(right).double().mean()),
        "valid_perplexity": math.exp(loss),
    }


def test_scores_are_means_over_the_hidden_tokens_of_the_held_out_text(place):
    result = _run(place, "scored", valid=(str(place / "valid.txt"),))
    found = read_evaluations(result.out)
    assert [line["step"] for line in found] == [0, 4, 8, 12]
    expected = _by_hand(place, result.out)
    for name, value in expected.items():
        assert found[-1][name] == pytest.approx(value, rel=1e-4), name
    assert found[-1]["valid_loss"] < found[0]["valid_loss"]
    assert result.best == found[-1]


def test_training_is_the_same_with_held_out_text_and_without(place):
    plain = _run(place, "plain")
    scored = _run(place, "beside", valid=(str(place / "valid.txt"),), evaluate_every=3)
    own = {name: value for name, value in plain.last.items() if "second" not in name}
    assert own == {name: scored.last[name] for name in own}


def test_the_best_checkpoint_is_kept(place, monkeypatch):
    losses = iter([4.0, 3.0, 1.0, 2.0, 2.5, 2.2])  # at the updates 0, 4, 8, 12, 16 and 20
    monkeypatch.setattr(HeldOut, "__call__", lambda *_, **__: {"valid_loss": next(losses)})
    result = _run(place, "best", valid=(str(place / "valid.txt"),), steps=20)
    assert result.best == {"step": 8, "valid_loss": 1.0}
    kept = [int(path.name.rpartition("-")[2]) for path in checkpoints(result.out)]
    assert kept == [8, 16, 20]


def test_a_split_takes_the_last_documents_and_trains_on_the_others(place):
    tokenizer = load_tokenizer(place / "model")
    whole = TokenStore.build([place / "corpus.txt"], tokenizer, place / "whole")
    first, last = whole.split(0.2)
    assert (first.num_documents, last.num_documents) == (48, 12)
    assert [*first.ids, *last.ids] == list(whole.ids)
    for part in (first, last):
        assert part.sentences[0] == part.documents[0] == 0
        assert part.sentences[-1] == len(part.ids)
        assert part.documents[-1] == len(part.sentences) - 1
    result = _run(place, "split", valid_split=0.2)
    assert len(read_evaluations(result.out)) == 4


def test_a_resumed_run_has_the_evaluations_of_the_whole_one(place, monkeypatch):
    options = {"valid": (str(place / "valid.txt"),), "evaluate_every": 2}
    whole = _run(place, "whole-run", **options)
    from bertfast.training.trainer import Trainer

    save = Trainer._save

    def once(self: Trainer, step: int) -> None:
        save(self, step)
        if step == 4:
            raise BertfastError("stopped here")

    monkeypatch.setattr(Trainer, "_save", once)
    with pytest.raises(BertfastError, match="stopped here"):
        _run(place, "resumed", **options)
    monkeypatch.setattr(Trainer, "_save", save)
    resumed = _run(place, "resumed", resume=True, **options)
    assert json.loads((resumed.out / FILE).read_text()) == read_evaluations(whole.out)
    assert resumed.best == whole.best


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--valid", "corpus.txt", "--valid-split", "0.1"], "valid and valid-split both name"),
        (["--valid-split", "1.5"], "valid-split is 1.5; it must be a number above 0 and below 1"),
        (["--valid-split", "0.999"], "valid-split is 0.999, and the text has 60 document(s)"),
        (["--evaluate-every", "5"], "evaluate-every needs held-out text"),
        (["--valid", "nothing.txt"], "nothing.txt: no such file"),
        (["--valid", "empty.txt"], "empty.txt: holds no text"),
    ],
)
def test_what_cannot_be_is_one_line(place, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(place)
    (place / "empty.txt").write_text("\n")
    done = run_cli(
        monkeypatch, capfd, "pretrain", "--data", "corpus.txt", "--model", "model", "--steps", "2",
        "--batch-tokens", "128", "--seq-len", "24", "--out", "refused", *arguments
    )  # fmt: skip
    assert done.code == 2
    assert len(done.errors) == 1
    assert said in done.errors[0]
    assert not (place / "refused").exists()


def test_adapting_says_how_far_the_held_out_loss_fell(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    options = ["--batch-tokens", "128", "--seq-len", "24", "--checkpoint-every", "20"]
    done = run_cli(
        monkeypatch, capfd, "adapt", "model", "--data", "corpus.txt", "--out", "adapted", "--lr",
        "3e-3", "--steps", "40", *options
    )  # fmt: skip
    assert done.code == 0, done.err
    found = read_evaluations(place / "adapted")
    assert [line["step"] for line in found] == [0, 20, 40]
    assert f"{found[0]['valid_loss']:.4f} -> {found[-1]['valid_loss']:.4f}" in done.out
    assert type(load(place / "adapted")) is BertForMaskedLM


def test_adapting_that_does_not_help_fails_and_keeps_the_run(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    losses = iter([2.0, 2.5, 2.1])
    monkeypatch.setattr(HeldOut, "__call__", lambda *_, **__: {"valid_loss": next(losses)})
    done = run_cli(
        monkeypatch, capfd, "adapt", "model", "--data", "corpus.txt", "--out", "worse", "--steps",
        "4", "--batch-tokens", "128", "--seq-len", "24", "--checkpoint-every", "2"
    )  # fmt: skip
    assert done.code == 2
    assert "held-out loss did not fall: 2.0000 at the start, 2.1000 at best" in done.errors[0]
    assert checkpoints(place / "worse")


def test_evaluate_gives_the_numbers_that_training_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"))
    for seed, name in enumerate(("corpus.txt", "valid.txt")):
        Path(name).write_text("\n".join(f"{text}.\n" for text, _ in sentences(60, seed)))
    options = ["--batch-tokens", 96, "--seq-len", 20, "--report-to", "none", "--keep", 3]
    trained = run_cli(
        monkeypatch,
        capfd,
        *("pretrain", "--data", "corpus.txt", "--valid", "valid.txt", "--model", "model"),
        *("--out", "run", "--steps", 4, "--checkpoint-every", 2, "--masking", "static", *options),
        *("--mask-rate", 0.4, "--seed", 5),
    )
    assert trained.code == 0, trained
    for line in json.loads(Path("run/evaluations.json").read_text())[1:]:
        step = line.pop("step")
        folder = "run" if step == 4 else f"run/checkpoints/step-{step:08d}"
        found = run_cli(monkeypatch, capfd, "evaluate", folder, "--data", "valid.txt", "--json")
        assert found.code == 0, found
        assert json.loads(found.out) == line
    missing = run_cli(monkeypatch, capfd, "evaluate", "run", "--data", "nowhere.txt")
    assert (missing.code, len(missing.errors)) == (2, 1)
    assert "nowhere.txt: no such file" in missing.errors[0]
