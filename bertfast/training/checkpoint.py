"""Checkpoints that a kill at any instant leaves whole, and in which a flipped bit is noticed.

A checkpoint is a folder ``checkpoints/step-N`` in Hugging Face's format with the training state
beside the weights. It is written under another name, flushed to the disk and renamed; only then are
older ones removed. The run's own ``model.safetensors`` is a link to the newest one.

``training_state.json`` holds the SHA-256 of every other file, and ``training_state.sha256`` its
own, in the form that ``sha256sum --check`` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.files import file_sha256, make_folder, parse_object, read_bytes, write_atomically
from bertfast.model.weights import WEIGHTS, plain, read_safetensors

STATE_TENSORS, STATE_VALUES = "training_state.safetensors", "training_state.json"
STATE_SUM = "training_state.sha256"
FILES = "files"  # of STATE_VALUES: each other file's SHA-256
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


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What any optimizer keeps, by the names of its parameters.

    Returns:
        Its tensors as ``KIND.NAME`` (of AdamW ``exp_avg``, ``exp_avg_sq`` and ``step``), and its
        plain values: of each parameter, and of each group.

    Raises:
        BertfastError: it keeps something else.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for weight, state in optimizer.state.items():
        name = names[weight]
        values[name] = {}
        for kind, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{kind}.{name}"] = value
            elif _is_plain(value):
                values[name][kind] = value
            else:
                raise BertfastError(
                    f"the optimizer {type(optimizer).__name__} keeps {kind} as a "
                    f"{type(value).__name__}; a checkpoint holds tensors, numbers and text"
                )
    groups = [
        {key: value for key, value in group.items() if key != "params" and _is_plain(value)}
        for group in optimizer.param_groups
    ]
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "state": values}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: dict[Tensor, str],
    tensors: dict[str, Tensor],
    values: dict[str, Any] | None = None,
) -> None:
    """The inverse of `optimizer_state`; ``values`` is None for a checkpoint of AdamW without them.

    Raises:
        BertfastError: the state is another optimizer's or another model's.
    """
    own = type(optimizer).__name__
    if values is not None and values["kind"] != own:
        raise BertfastError(
            f"the training state is of the optimizer {values['kind']}; the run has {own}"
        )
    found: dict[str, dict[str, Any]] = {
        name: dict(kept) for name, kept in (values or {}).get("state", {}).items()
    }
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        found.setdefault(name, {})[kind] = tensor
    foreign = [name for name in found if name not in set(names.values())]
    absent = [name for name in names.values() if values is None and name not in found]
    if foreign or absent:
        raise BertfastError(
            f"the training state {'has' if foreign else 'lacks'} {(foreign or absent)[0]}; "
            "it belongs to another model"
        )
    state_dict = optimizer.state_dict()
    state_dict["state"] = {}
    number = 0
    for index, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            if names[weight] in found:
                state_dict["state"][number] = found[names[weight]]
            number += 1
        if values is not None:
            kept = state_dict["param_groups"][index]
            for key, value in values["groups"][index].items():
                kept[key] = tuple(value) if isinstance(kept.get(key), tuple) else value
    optimizer.load_state_dict(state_dict)


def save_checkpoint(
    run: Path,
    step: int,
    model_files: dict[str, str],
    weights: dict[str, dict[str, Tensor]],
    moments: dict[str, Tensor],
    values: dict[str, Any],
    keep: int = KEEP,
    best: int | None = None,
) -> Path:
    """Writes ``run/checkpoints/step-N`` and points the run's own files at it.

    Args:
        run: the run's folder.
        step: N.
        model_files: small text files by path (config.json and the tokenizer's).
        weights: of each model, float32, by name; the model by its folder below the checkpoint's, ""
            for that itself.
        moments: of the optimizer, as `optimizer_state` gives them.
        values: plain JSON values.
        keep: how many of the newest checkpoints stay.
        best: the step of one that stays too.

    Raises:
        BertfastError: the disk is full or cannot be written to; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for subfolder, own in weights.items():
            (temporary / subfolder).mkdir(parents=True)
            save_file(plain(own), temporary / subfolder / WEIGHTS, metadata={"format": "pt"})
        save_file(plain(moments), temporary / STATE_TENSORS)
        for name, text in model_files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        sums = {
            path.relative_to(temporary).as_posix(): file_sha256(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        state = json.dumps({"step": step, **values, FILES: sums}, indent=2).encode()
        (temporary / STATE_VALUES).write_bytes(state)
        (temporary / STATE_SUM).write_bytes(_sum_line(state))
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        _remove(folder)
        os.replace(temporary, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BertfastError(
            f"{folder}: the checkpoint cannot be written ({error}); "
            "earlier checkpoints are untouched"
        ) from error
    show(run, folder)
    for old in checkpoints(run)[:-keep]:
        if best is None or old != checkpoint_folder(run, best):
            _remove(old)
    return folder


def show(run: Path, folder: Path) -> None:
    """Makes the run's own ``model.safetensors`` (and its parts') those of a checkpoint."""
    for path in _weight_files(folder):
        shown = run / path.relative_to(folder)
        if not (shown.exists() and shown.samefile(path)):
            make_folder(shown.parent)
            write_atomically(shown, lambda target, path=path: _link_or_copy(path, target))  # type: ignore[misc]


def _remove(folder: Path) -> None:
    """Deletes a checkpoint, under another name first: a kill leaves none that is half there."""
    if folder.exists():
        going = folder.with_name(f".{folder.name}.old.tmp")
        shutil.rmtree(going, ignore_errors=True)
        os.replace(folder, going)
        shutil.rmtree(going, ignore_errors=True)


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a run's checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:08d}"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps a second process out of the run.

    Raises:
        BertfastError: one is there already.
    """
    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BertfastError(f"{run}: another process is training there") from None
    try:
        yield
    finally:
        lock.release()


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def clean(run: Path) -> None:
    """Removes what a kill left half-written."""
    # A run of two models has the second one's folder below its own. In this order a folder comes
    # before what is in it.
    for path in sorted(run.rglob(".*.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def resume_from(run: Path) -> tuple[Path, TrainingState] | None:
    """The newest whole checkpoint of a run and what it holds; None where there is no checkpoint.

    Damaged ones after it are named on standard error and set aside as ``step-N.damaged``.

    Raises:
        BertfastError: there are checkpoints and each is damaged; nothing is changed.
    """
    found = checkpoints(run)
    damaged: list[tuple[Path, BertfastError]] = []
    for folder in reversed(found):
        try:
            state = load_checkpoint(folder)
        except BertfastError as error:
            damaged.append((folder, error))
            continue
        for other, fault in damaged:
            aside = other.with_name(f"{other.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(other, aside)
            print(f"bertfast: {fault}; {other.name} is set aside as {aside}", file=sys.stderr)
        if damaged:
            print(f"bertfast: going back to the whole checkpoint {folder}", file=sys.stderr)
        show(run, folder)
        return folder, state
    if damaged:
        reasons = "; ".join(str(fault) for _, fault in damaged)
        raise BertfastError(
            f"{run}: no whole checkpoint is left to resume from ({reasons}); nothing was changed. "
            "Put a backup in place, or start a new run with another --out"
        )
    return None


def _values(path: Path, text: bytes) -> dict[str, Any]:
    try:
        return parse_object(path, text)
    except BertfastError as error:
        raise BertfastError(f"{path}: is no training state ({error})") from error


def load_checkpoint(folder: Path) -> TrainingState:
    """A checkpoint's weights and training state, once every file's checksum was found right.

    Raises:
        BertfastError: a file is missing, damaged or foreign; the file is named.
    """
    path = folder / STATE_VALUES
    try:
        text = read_bytes(path)
        stored_sum = read_bytes(folder / STATE_SUM) if os.path.lexists(folder / STATE_SUM) else None
        if stored_sum not in (None, _sum_line(text)):
            raise BertfastError(f"{path}: is damaged: it does not match {STATE_SUM}")
        values = _values(path, text)
        values["step"] = int(values["step"])
        sums = values.pop(FILES, None)
        if (sums is None) != (stored_sum is None):
            raise BertfastError(f"{path}: is damaged: it and {STATE_SUM} do not belong together")
        for name, expected in (sums or {}).items():
            if not (folder / name).is_file():
                raise BertfastError(f"{folder / name}: is missing")
            if file_sha256(folder / name) != expected:
                raise BertfastError(f"{folder / name}: is damaged: its checksum is another")
    except (OSError, OverflowError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BertfastError(f"{path}: is no training state ({error})") from error
    if sums is None:
        print(f"bertfast: {folder} is of a release without checksums", file=sys.stderr)
    weights = _weight_files(folder) or [folder / WEIGHTS]
    return TrainingState(
        {
            "" if path.parent == folder else path.parent.name: read_safetensors(path)
            for path in weights
        },
        read_safetensors(folder / STATE_TENSORS),
        values,
    )


def check_branch(state: TrainingState, name: str | Path, steps: int) -> None:
    """Raises BertfastError unless a run of so many steps can go on from a checkpoint."""
    if state.values["step"] >= steps:
        raise BertfastError(
            f"{name}: is of step {state.values['step']}, and steps is {steps}; a branch goes on to "
            "a later step"
        )


def _sum_line(state: bytes) -> bytes:
    """What ``training_state.sha256`` holds beside these bytes of ``training_state.json``."""
    return f"{hashlib.sha256(state).hexdigest()}  {STATE_VALUES}\n".encode()


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a checkpoint's models."""
    return sorted(folder.rglob(WEIGHTS))


def _flush(path: Path) -> None:
    folder = path.is_dir()
    try:
        # Windows flushes no file that is open for reading alone, and opens no folder.
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def hidden_run(target: Path) -> Iterator[Path]:
    """The hidden folder of the checkpoints of a run that leaves ``target`` alone; it goes with
    success, and where it holds none.
    """
    run = target.with_name(f".{target.name}.run")
    run.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run):
            yield run
    except BaseException:
        if not checkpoints(run):
            shutil.rmtree(run, ignore_errors=True)
        raise
    shutil.rmtree(run, ignore_errors=True)
