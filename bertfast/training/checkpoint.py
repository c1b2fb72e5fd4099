"""Checkpoints that a kill at any instant leaves whole.

A checkpoint is a folder ``checkpoints/step-N`` in Hugging Face's format with the training state
beside the weights. It is written under another name, flushed to the disk and renamed; only then are
older ones removed. The run's own ``model.safetensors`` is a link to the newest one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.hub import make_folder, write_atomically
from bertfast.hub.checkpoint import WEIGHTS, plain, read_safetensors

STATE_TENSORS, STATE_VALUES = "training_state.safetensors", "training_state.json"
NAME = re.compile(r"step-(\d{8})")
KEEP = 2


@dataclass
class TrainingState:
    """What a resume needs: weights by name, for each model by its folder; AdamW's moments by
    parameter name; and plain values.
    """

    weights: dict[str, dict[str, Tensor]]
    moments: dict[str, Tensor]
    values: dict[str, Any]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Iterable[str], weights: Iterable[Tensor]
) -> dict[str, Tensor]:
    """AdamW's state as flat tensors: ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``."""
    return {
        f"{kind}.{name}": value
        for name, weight in zip(names, weights, strict=True)
        for kind, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Iterable[str],
    weights: Iterable[Tensor],
    tensors: dict[str, Tensor],
) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        BertfastError: a parameter has no state there.
    """
    for name, weight in zip(names, weights, strict=True):
        try:
            optimizer.state[weight] = {
                kind: tensors[f"{kind}.{name}"]
                .to(weight.device if kind != "step" else "cpu")
                .clone()
                for kind in ("step", "exp_avg", "exp_avg_sq")
            }
        except KeyError as error:
            raise BertfastError(
                f"the training state has no {error}; it belongs to another model"
            ) from error


def save_checkpoint(
    run: Path,
    step: int,
    model_files: dict[str, str],
    weights: dict[str, dict[str, Tensor]],
    moments: dict[str, Tensor],
    values: dict[str, Any],
) -> Path:
    """Writes ``run/checkpoints/step-N`` and points the run's own files at it.

    Args:
        run: the run's folder.
        step: N.
        model_files: small text files by path (config.json and the tokenizer's).
        weights: of each model, float32, by name; the model by its folder below the checkpoint's, ""
            for that itself.
        moments: of the optimizer, as `optimizer_tensors` gives them.
        values: plain JSON values.

    Raises:
        BertfastError: the disk is full or cannot be written to; earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for place, own in weights.items():
            (temporary / place).mkdir(parents=True)
            save_file(plain(own), temporary / place / WEIGHTS, metadata={"format": "pt"})
        save_file(plain(moments), temporary / STATE_TENSORS)
        for name, text in {
            **model_files,
            STATE_VALUES: json.dumps({"step": step, **values}, indent=2),
        }.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BertfastError(
            f"{folder}: the checkpoint cannot be written ({error}); earlier checkpoints are untouched"
        ) from error
    for place in weights:
        make_folder(run / place)
        write_atomically(
            run / place / WEIGHTS,
            lambda path, place=place: _link_or_copy(folder / place / WEIGHTS, path),  # type: ignore[misc]
        )
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def clean(run: Path) -> None:
    """Removes what a kill left half-written."""
    for path in [*run.glob(".*.tmp"), *(run / "checkpoints").glob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> TrainingState:
    """A checkpoint's weights and training state.

    Raises:
        BertfastError: a file is missing, truncated or foreign.
    """
    path = folder / STATE_VALUES
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["step"] = int(values["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BertfastError(
            f"{path}: is no training state ({error}); delete {folder} to resume from the checkpoint before it"
        ) from error
    weights = {
        "" if path.parent == folder else path.parent.name: path for path in folder.rglob(WEIGHTS)
    } or {"": folder / WEIGHTS}
    return TrainingState(
        {place: read_safetensors(path) for place, path in weights.items()},
        read_safetensors(folder / STATE_TENSORS),
        values,
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
