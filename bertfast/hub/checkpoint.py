"""Weights and configuration between a Hugging Face folder and a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.model import ARCHITECTURES, PreTrainedModel, member_class
from bertfast.model.models import MaskedLMModel

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
RENAMED = ((".gamma", ".weight"), (".beta", ".bias"))  # names that old releases wrote
BUFFERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "inv_freq",
)  # which hold nothing of their own
NAMED = 8  # problems that an error names; the rest it counts


def load_config(folder: str | Path) -> EncoderConfig:
    """The configuration in a model folder.

    Raises:
        BertfastError: no such folder, or its config.json is missing or unsupported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(
            f"{folder}: no such folder; a model folder holds config.json and {WEIGHTS}"
        )
    return EncoderConfig.from_json_file(folder / "config.json")


def load(path: str | Path) -> PreTrainedModel:
    """The model in a Hugging Face folder, of the class that its config.json names (the bare encoder
    where it names none).

    Raises:
        BertfastError: the folder cannot be read, or holds an architecture that is not supported.
    """
    config = load_config(path)
    names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get(
        "architectures"
    )
    if not names:
        return member_class(config, "Model").from_pretrained(path, config=config)
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BertfastError(
            f"{path}: architecture {name} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
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


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin``, of which nothing but tensors is ever unpickled."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BertfastError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for a bad file
        raise BertfastError(
            f"{path}: cannot be read as plain weights; convert it to {WEIGHTS}"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise BertfastError(f"{path}: holds no plain weights; convert it to {WEIGHTS}")
    return loaded


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder: of its safetensors file, its shards, or a ``.bin`` that holds
    nothing else.

    Raises:
        BertfastError: there are none, or a file cannot be read.
    """
    for name, read in ((WEIGHTS, read_safetensors), (PICKLED, _read_pickled)):
        if (folder / name).exists():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_shards(index, read)
    raise BertfastError(f"{folder}: holds no {WEIGHTS}")


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the files that an index names, each from the file that it names for it."""
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = sorted({Path(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BertfastError(f"{index}: cannot be read as an index of weights ({error})") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        if len(file.parts) != 1 or not file.suffix:
            raise BertfastError(f"{index}: names {str(file)!r}, which is not a file of this folder")
        weights |= read(index.parent / file)
    absent = [name for name in places if name not in weights]
    if absent:
        raise BertfastError(
            f"{index}: names {absent[0]} in {places[absent[0]]}, which does not hold it"
        )
    return weights


def _canonical(
    weights: dict[str, Tensor], model: PreTrainedModel, folder: Path
) -> dict[str, Tensor]:
    """Current names with the encoder's prefix; copies of what is tied to another weight left out.

    Raises:
        BertfastError: a copy is another's, where the model has a masked-LM head to read it.
    """
    member = model.member
    base_only = not any(name.startswith(f"{member.base}.") for name in weights)
    result = {}
    for name, tensor in weights.items():
        for old, new in RENAMED:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if not name.endswith(BUFFERS):
            result[f"{member.base}.{name}" if base_only else name] = tensor
    decoder, word = member.lm.decoder, f"{member.base}.{member.module_paths['word']}.weight"
    for copy, original in ((f"{decoder}.weight", word), (f"{decoder}.bias", member.lm.bias)):
        if copy == original or (tied := result.pop(copy, None)) is None:
            continue
        kept = result.setdefault(original, tied)
        same = kept.shape == tied.shape and torch.equal(kept, tied.to(kept.dtype))
        if not same and isinstance(model, MaskedLMModel):
            raise BertfastError(
                f"{folder}: {copy} is not tied to {original}; such checkpoints are not supported"
            )
    return result


def load_weights(
    model: PreTrainedModel, folder: str | Path, *, new_head_ok: bool = False
) -> list[str]:
    """Reads a folder's weights into ``model``; returns the names of head weights that keep their
    initial values.

    A head that the model lacks is left out of the folder's weights; nothing of the encoder is ever
    left random. A model on the meta device gets its memory once its weights are known to fit, and
    head weights of no particular values.

    Raises:
        BertfastError: a file that cannot be read, or weights missing, unknown or of another shape:
            each is named.
    """
    folder = Path(folder)
    found = _canonical(read_weights(folder), model, folder)
    own = model.state_dict()
    base, member = f"{model.member.base}.", model.member
    pooler = f"{base}pooler."  # a head, where the checkpoint was trained without one
    prefix = base if model.base is model else ""
    wanted = {prefix + name: name for name in own}

    missing = [name for name in wanted if name not in found]
    kept = (
        [name for name in missing if not name.startswith(base) or name.startswith(pooler)]
        if new_head_ok
        else []
    )
    absent = [f"missing {name}" for name in missing if name not in kept]
    heads = member.head_paths - {name.rpartition(".")[0] for name in wanted}
    if isinstance(model, MaskedLMModel):
        heads -= set(member.lm.paths.values())
    unknown = [
        f"unknown {name}"
        for name in found
        if name not in wanted
        and not name.startswith(pooler)
        and name not in heads
        and name.rpartition(".")[0] not in heads
        # DeBERTa v3 was published with a table that it does not use.
        and name != f"{base}{member.module_paths.get('position')}.weight"
    ]
    misshapen = [
        f"{name} holds {str(found[name].dtype).removeprefix('torch.')}"
        for name in wanted
        if name in found and not found[name].is_floating_point()
    ]
    for name, target in wanted.items():
        if name in found and found[name].shape != own[target].shape:
            shapes = f"{tuple(found[name].shape)}, the config wants {tuple(own[target].shape)}"
            if new_head_ok and name.rpartition(".")[0] in member.head_paths - set(
                member.lm.paths.values()
            ):
                kept.append(name)
            else:
                misshapen.append(f"{name} is {shapes}")
    if problems := [*misshapen, *unknown, *absent]:
        shown = "; ".join(problems[:NAMED]) + (
            f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        )
        raise BertfastError(f"{folder}: the weights do not fit {type(model).__name__}: {shown}")
    if any(tensor.is_meta for tensor in own.values()):
        own = model.to_empty(device=torch.get_default_device()).state_dict()
    with torch.no_grad():
        for name, target in wanted.items():
            if name not in kept:
                own[target].copy_(found[name])
    return [wanted[name] for name in kept]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path beside ``path``, flushes it to the disk and renames it:
    never half a file.

    Raises:
        BertfastError: the disk is full or cannot be written to; what stood at ``path`` is left as
            it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise BertfastError(
            f"{path}: cannot be written ({error}); what was there before is untouched"
        ) from error


def file_sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _masters(model: PreTrainedModel) -> dict[str, Tensor]:
    """The float32 masters of weights that are trained in bfloat16, by name.

    A weight that something else wrote to since, so that it is no rounded master, has none.
    """
    return {
        name: master.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if isinstance(master := getattr(parameter, "master", None), Tensor)
        and parameter.dtype != master.dtype
        and torch.equal(parameter.detach(), master.detach().to(parameter.dtype))
    }


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in Hugging Face's format, creating the
    folder.

    Raises:
        BertfastError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    weights = plain(model.state_dict() | _masters(model))
    config = (
        json.dumps(model.config.to_dict(type(model).__name__), indent=2, ensure_ascii=False) + "\n"
    )
    write_atomically(
        folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"})
    )
    write_atomically(folder / "config.json", lambda path: path.write_text(config, encoding="utf-8"))
