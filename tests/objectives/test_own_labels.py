"""An objective whose batches bring tensors of its own trains, and resumes to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import sentences, write_model
from torch import nn
from torch.nn.functional import cross_entropy

import bertfast
from bertfast import BertfastError, PackedBatch
from bertfast.objectives import OBJECTIVES
from bertfast.training.checkpoint import checkpoints
from bertfast.training.metrics import read_metrics


class WithOwn(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden_size, 2)

    def forward(self, batch: PackedBatch, *, seed: Any) -> dict[str, Any]:
        words = self.model(batch, seed=seed)
        states = self.model.base(batch, seed=seed).last_hidden_state
        firsts = states[batch.cu_seqlens[:-1].long()]
        hidden = states[batch.masked_positions]
        losses = {
            "token_loss": cross_entropy(self.head(states), batch.per_token["odd"]),
            "sequence_loss": cross_entropy(self.head(firsts), batch.per_sequence["long"]),
            "masked_loss": cross_entropy(self.head(hidden), batch.per_masked["odd"]),
        }
        return {"loss": words.loss + sum(losses.values()), **losses}


class OwnLabels(bertfast.Objective):
    name = "mlm+own"

    def build(self, setup: Any) -> nn.Module:
        return WithOwn(super().build(setup))

    def finish(self, batch: PackedBatch, spans: Any, rows: Any) -> PackedBatch:
        assert batch.masked_labels is not None
        batch.per_token["odd"] = batch.position_ids % 2
        batch.per_sequence["long"] = (batch.cu_seqlens.diff() > 16).long()
        batch.per_masked["odd"] = batch.masked_labels % 2
        return batch

    def saved(self, model: Any) -> dict[str, Any]:
        return {"": model.model}


class Short(OwnLabels):
    """Brings a tensor that is a token short."""

    name = "mlm+short"

    def finish(self, batch: PackedBatch, spans: Any, rows: Any) -> PackedBatch:
        batch = super().finish(batch, spans, rows)
        batch.per_token["odd"] = batch.per_token["odd"][1:]
        return batch


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for objective in (OwnLabels, Short):
        bertfast.register_objective(objective)
    yield
    for objective in (OwnLabels, Short):
        del OBJECTIVES[objective.name]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    texts = [text for text, _ in sentences(60)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 60, 6)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    return tmp_path


def pretrain(place: Path, out: str, **options: Any) -> Any:
    sizes = {"shape": "bert-tiny", "steps": 6, "batch_tokens": 96, "seq_len": 24, "log_every": 1}
    places = ([place / "corpus.txt"], place / "model", place / out)
    return bertfast.pretrain(*places, **{"objective": "mlm+own", **sizes, **options})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_logs_its_parts_and_resumes_exactly(precision: str, place: Path) -> None:
    options = {"precision": precision, "checkpoint_every": 2}

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise RuntimeError("enough")

    whole = pretrain(place, "whole", **options)
    assert {"token_loss", "sequence_loss", "masked_loss"} <= whole.last.keys()
    with pytest.raises(BertfastError, match=r"_OnLog failed in on_log \(RuntimeError: enough\)"):
        pretrain(place, "parts", on_log=stop, **options)
    assert len(checkpoints(place / "parts")) == 1
    pretrain(place, "parts", resume=True, **options)
    lines = [read_metrics(place / name) for name in ("whole", "parts")]
    parts = [
        [{key: line[key] for key in line if key.endswith(("loss", "step"))} for line in run]
        for run in lines
    ]
    assert parts[0] == parts[1]
    a, b = (load_file(place / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_own_tensor_of_a_wrong_length_is_one_error(place: Path) -> None:
    with pytest.raises(BertfastError, match=r"per_token\['odd'\] has shape"):
        pretrain(place, "run", objective="mlm+short")
