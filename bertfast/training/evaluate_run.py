"""The held-out numbers of a pretraining run, of its newest checkpoint or any other, on any text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from bertfast.data.mixture import Chain, sources_of
from bertfast.data.shards import ShardedStore
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.files import read_yaml
from bertfast.objectives import OBJECTIVES
from bertfast.tokenization import SpecialIds, load_tokenizer

from .config import PretrainConfig
from .held_out import HeldOut, held_out_batches
from .precision import find_device
from .pretrain import RunSetup

SETTINGS = "config.yaml"


def run_of(folder: Path) -> Path | None:
    """The pretraining run that this folder is, or is a checkpoint of; None of any other folder."""
    for run in (folder, folder.parent.parent):
        path = run / SETTINGS
        if path.is_file():
            found = read_yaml(path)
            if isinstance(found, dict) and "batch_tokens" in found and "objective" in found:
                return run
    return None


@torch.no_grad()
def evaluate_run(
    folder: str | Path,
    data: Sequence[str],
    text_field: str | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """What training on ``--valid`` this text says of these weights, number for number.

    Args:
        folder: of a pretraining run, or of one of its checkpoints.
        data: files of text, or stores of `prepare`.
        text_field: of JSON lines; None is the run's.
        device: None is the GPU where there is one.
        precision: "fp32", or "bf16" as of a run that trained so.

    Raises:
        BertfastError: the folder is no run's, or the text cannot be used.
    """
    folder = Path(folder)
    run = run_of(folder)
    if run is None:
        raise BertfastError(f"{folder}: is no pretraining run, nor a checkpoint of one")
    saved = read_yaml(run / SETTINGS)
    known = {field.name for field in fields(PretrainConfig)}
    mine = {
        "data": tuple(data),
        "model": str(folder),
        "tokenizer": str(folder),
        "text_field": text_field or saved.get("text_field", "text"),
        **dict.fromkeys(("shape", "revision", "valid", "valid_split", "evaluate_every", "branch")),
        "report_to": ("none",),
    }
    config = PretrainConfig(**{**{k: v for k, v in saved.items() if k in known}, **mine})
    place = find_device(device)
    words = load_tokenizer(folder)
    objective = OBJECTIVES.find(config.objective)
    model = objective.build(RunSetup(config, words)).to(place).eval()
    if precision == "bf16":
        model.bfloat16()
    elif precision != "fp32":
        raise BertfastError(f"precision is {precision!r}; of a run it is fp32 or bf16")
    special = SpecialIds(words, folder)
    vocab_size = objective.saved(model)[""].config.vocab_size
    with tempfile.TemporaryDirectory(prefix="bertfast-") as temporary:
        stores: list[TokenStore | ShardedStore] = []
        for store, _ in sources_of(config.data, Path(temporary), 4 << 30):
            store.check_tokenizer(words, str(folder))
            stores.append(store)
        if not stores:
            tokens = Path(temporary) / "tokens"
            stores = [TokenStore.build(config.data, words, tokens, config.text_field)]
        batches = [held_out_batches(config, store, special, vocab_size) for store in stores]
        held_out = HeldOut(Chain(batches) if len(batches) > 1 else batches[0])
        return held_out(model, place)
