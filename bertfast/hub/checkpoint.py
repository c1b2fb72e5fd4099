"""Weights and configuration between a Hugging Face folder and a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertfast.config import BertConfig
from bertfast.errors import BertfastError
from bertfast.model import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    cls.__name__: cls for cls in (BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification)
}
# Names that old releases wrote, and buffers and tied copies that hold nothing of their own.
RENAMED = ((".gamma", ".weight"), (".beta", ".bias"))
DECODER_WEIGHT, DECODER_BIAS, MLM_BIAS = (
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.bias",
)
TABLE = "bert.embeddings.word_embeddings.weight"


def load_config(folder: str | Path) -> BertConfig:
    """The configuration in a model folder.

    Raises:
        BertfastError: no such folder, or its config.json is missing or unsupported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(f"{folder}: no such folder; a model folder holds config.json and {WEIGHTS}")
    return BertConfig.from_json_file(folder / "config.json")


def load(path: str | Path) -> PreTrainedModel:
    """The model in a Hugging Face folder, of the class that its config.json names (`BertModel` where it names none).

    Raises:
        BertfastError: the folder cannot be read, or holds an architecture that is not supported.
    """
    config = load_config(path)
    names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("architectures") or ["BertModel"]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BertfastError(f"{path}: architecture {name} is not supported; supported are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].from_pretrained(path, config=config)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        BertfastError: the file is missing, truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise BertfastError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BertfastError(f"{path}: truncated, or no safetensors file ({error})") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        try:
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted({str(name) for name in places.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BertfastError(f"{folder / INDEX}: cannot be read as an index of weights ({error})") from error
        weights: dict[str, Tensor] = {}
        for name in files:
            if Path(name).name != name:
                raise BertfastError(f"{folder / INDEX}: names {name!r}, which is not a file of this folder")
            weights |= read_safetensors(folder / name)
        return weights
    if (folder / "pytorch_model.bin").exists():
        path = folder / "pytorch_model.bin"
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a bad file
            raise BertfastError(f"{path}: cannot be read as plain weights; convert it to {WEIGHTS}") from error
        if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise BertfastError(f"{path}: holds no plain weights; convert it to {WEIGHTS}")
        return loaded
    raise BertfastError(f"{folder}: holds no {WEIGHTS}")


def _canonical(weights: dict[str, Tensor], base_only: bool) -> dict[str, Tensor]:
    """Current names with the ``bert.`` prefix, tied copies resolved."""
    result = {}
    for name, tensor in weights.items():
        for old, new in RENAMED:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name.endswith("embeddings.position_ids"):
            continue
        result[f"bert.{name}" if base_only else name] = tensor
    bias = result.pop(DECODER_BIAS, None)
    if bias is not None:
        result.setdefault(MLM_BIAS, bias)
    decoder = result.pop(DECODER_WEIGHT, None)
    if decoder is not None:
        table = result.setdefault(TABLE, decoder)
        if table.shape != decoder.shape or not torch.equal(table, decoder):
            raise BertfastError(f"{DECODER_WEIGHT} is not tied to {TABLE}; such checkpoints are not supported")
    return result


def load_weights(model: PreTrainedModel, folder: str | Path, *, new_head_ok: bool = False) -> list[str]:
    """Reads a folder's weights into ``model``; returns the names of head weights that keep their initial values.

    A head that the model lacks is left out of the folder's weights; nothing of the encoder is ever left random.

    Raises:
        BertfastError: a file that cannot be read, or weights missing, unknown or of another shape: each is named.
    """
    folder = Path(folder)
    loaded = _read_weights(folder)
    found = _canonical(loaded, base_only=not any(name.startswith("bert.") for name in loaded))
    own = model.state_dict()
    prefix = "bert." if isinstance(model, BertModel) else ""
    wanted = {prefix + name: name for name in own}

    missing = [name for name in wanted if name not in found]
    # A pooler is a head where the checkpoint was trained without one.
    kept = (
        [name for name in missing if not name.startswith("bert.") or name.startswith("bert.pooler.")]
        if new_head_ok
        else []
    )
    absent = [f"missing {name}" for name in missing if name not in kept]
    unknown = [
        f"unknown {name}"
        for name in found
        if name not in wanted and name.startswith("bert.") and not name.startswith("bert.pooler.")
    ]
    misshapen = []
    for name, target in wanted.items():
        if name in found and found[name].shape != own[target].shape:
            shapes = f"{tuple(found[name].shape)}, the config wants {tuple(own[target].shape)}"
            if new_head_ok and name.startswith("classifier."):
                kept.append(name)
            else:
                misshapen.append(f"{name} is {shapes}")
    if problems := [*misshapen, *unknown, *absent]:
        raise BertfastError(f"{folder}: the weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, target in wanted.items():
            if name not in kept:
                own[target].copy_(found[name])
    return kept


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path beside ``path``, flushes it to the disk and renames it: never half a file.

    Raises:
        BertfastError: the disk is full or cannot be written to; what stood at ``path`` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise BertfastError(f"{path}: cannot be written ({error}); what was there before is untouched") from error


def make_folder(folder: Path) -> None:
    """Makes ``folder`` and those above it, unless it is there.

    Raises:
        BertfastError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BertfastError(f"{folder}: cannot be made ({error})") from error


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors stores them: contiguous, on the CPU, with no graph."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in Hugging Face's format, creating the folder.

    Raises:
        BertfastError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    weights = plain(model.state_dict())
    config = json.dumps(model.config.to_dict(type(model).__name__), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", lambda path: path.write_text(config, encoding="utf-8"))
