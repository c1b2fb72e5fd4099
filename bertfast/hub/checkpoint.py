"""Weights and configuration between a Hugging Face folder and a model."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.files import SETTINGS, check_file, read_object
from bertfast.model import ARCHITECTURES, PreTrainedModel, member_class
from bertfast.model.memory import check_memory
from bertfast.model.models import MaskedLMModel

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
RENAMED = ((".gamma", ".weight"), (".beta", ".bias"))  # names that old releases wrote
BUFFERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "inv_freq",
)  # which hold nothing of their own
FEW_LAYERS = 64  # which take no time to make, and to hold against the weights one by one
NAMED = 8  # problems that an error names; the rest it counts
# The data types of safetensors under PyTorch's names; others keep theirs.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, of which the header alone has been read.

    Attributes:
        shape: its sizes.
        dtype: PyTorch's name of the data type, without ``torch.``.
        read: gives the tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @property
    def is_floating(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.startswith(("float", "bfloat"))


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


def load(path: str | Path, **options: Any) -> PreTrainedModel:
    """The model in a Hugging Face folder, of the class that its config.json names (the bare encoder
    where it names none); options as of `PreTrainedModel.from_pretrained`.

    Raises:
        BertfastError: the folder cannot be read, or holds an architecture that is not supported.
    """
    config = load_config(path)
    names = read_object(Path(path) / "config.json").get("architectures")
    if not names:
        return member_class(config, "Model").from_pretrained(path, config=config, **options)
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BertfastError(
            f"{path}: architecture {name} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name].from_pretrained(path, config=config, **options)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; errors as of `open_safetensors`."""
    return {name: stored.read() for name, stored in open_safetensors(path).items()}


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, by its header.

    Raises:
        BertfastError: the file is missing, truncated or not safetensors.
    """
    size = check_file(path)
    try:
        with open(path, "rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > size - 8 or header > SETTINGS:
            raise ValueError(f"a header of {header:,} bytes in a file of {size:,}")
        file = safe_open(path, framework="pt")
        stored = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            view = file.get_slice(name)
            kind = view.get_dtype()

            def read(name: str = name) -> Tensor:
                return file.get_tensor(name)

            stored[name] = StoredTensor(tuple(view.get_shape()), DTYPES.get(kind, kind), read)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise BertfastError(f"{path}: truncated, or no safetensors file ({error})") from error
    except MemoryError as error:  # mapping takes addresses alone, which may be limited too
        raise BertfastError(
            f"{path}: its {size / 1e9:,.1f} GB are more than this process may map ({error})"
        ) from error
    return stored


def _open_pickled(path: Path) -> dict[str, StoredTensor]:
    """What a ``.bin`` holds, of which nothing but tensors is ever unpickled."""
    size = check_file(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            # torch.save compresses nothing, so that no entry is larger than the file.
            if any(entry.file_size > size for entry in entries):
                raise ValueError("compressed")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except Exception as error:  # torch raises many kinds for a bad file
        raise BertfastError(
            f"{path}: cannot be read as plain weights; convert it to {WEIGHTS}"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value)
        for name, value in loaded.items()
    ):
        raise BertfastError(f"{path}: holds no plain weights; convert it to {WEIGHTS}")
    return {name: _stored(tensor) for name, tensor in loaded.items()}


def _stored(tensor: Tensor) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(tuple(tensor.shape), dtype, lambda: tensor)


def _is_plain(tensor: Tensor) -> bool:
    """Whether every number of it stands in the file: not sparse, not one number stretched."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder; errors as of `open_weights`."""
    return {name: stored.read() for name, stored in open_weights(folder).items()}


def open_weights(folder: str | Path) -> dict[str, StoredTensor]:
    """What a folder's weights are, by the headers of its safetensors file, its shards, or a
    ``.bin`` that holds nothing else.

    Raises:
        BertfastError: there are none, or a file cannot be read.
    """
    folder = Path(folder)
    for name, read in ((WEIGHTS, open_safetensors), (PICKLED, _open_pickled)):
        if os.path.lexists(folder / name):
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if os.path.lexists(index):
            return _open_shards(index, read)
    raise BertfastError(f"{folder}: holds no {WEIGHTS}")


def _open_shards(
    index: Path, read: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """The tensors of the files that an index names, each from the file that it names for it."""
    try:
        places = dict(read_object(index)["weight_map"])
        files = sorted({Path(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BertfastError(f"{index}: cannot be read as an index of weights ({error})") from error
    weights: dict[str, StoredTensor] = {}
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


def check_layers(config: EncoderConfig, stored: dict[str, StoredTensor], folder: object) -> None:
    """Raises BertfastError if there are fewer weights than layers in the configuration: before a
    model of so many is made.
    """
    groups = getattr(config, "num_hidden_groups", config.num_hidden_layers)  # ALBERT shares layers
    layers = groups * getattr(config, "inner_group_num", 1)
    if layers > max(len(stored), FEW_LAYERS):
        raise BertfastError(
            f"{folder}: the weights do not fit: config.json asks for {layers} layers, and the "
            f"weights are {len(stored)} tensors in all"
        )


def _canonical(
    weights: dict[str, StoredTensor], model: PreTrainedModel
) -> tuple[dict[str, StoredTensor], list[tuple[str, StoredTensor, str]]]:
    """Current names with the encoder's prefix; beside them what is tied to another weight, each
    with its name and the other's.
    """
    member = model.member
    base_only = not any(name.startswith(f"{member.base}.") for name in weights)
    result = {}
    for name, stored in weights.items():
        for old, new in RENAMED:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if not name.endswith(BUFFERS):
            result[f"{member.base}.{name}" if base_only else name] = stored
    decoder, word = member.lm.decoder, f"{member.base}.{member.module_paths['word']}.weight"
    copies = []
    for copy, original in ((f"{decoder}.weight", word), (f"{decoder}.bias", member.lm.bias)):
        if copy == original or (tied := result.pop(copy, None)) is None:
            continue
        if result.setdefault(original, tied) is not tied:
            copies.append((copy, tied, original))
    return result, copies


def load_weights(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    new_head_ok: bool = False,
    mismatched_ok: bool | None = None,
    stored: dict[str, StoredTensor] | None = None,
) -> list[str]:
    """Reads a folder's weights into ``model``; returns the names of head weights that keep their
    initial values.

    A head that the model lacks is left out of the folder's weights; nothing of the encoder is ever
    left random. A model on the meta device gets its memory once its weights are known to fit, and
    head weights of no particular values. The files' headers are held against the model before any
    weight is read. ``stored`` is `open_weights` of the folder, where that was called already;
    ``mismatched_ok``, by default ``new_head_ok``, lets head weights of another shape be new too.

    Raises:
        BertfastError: a file that cannot be read, or weights missing, unknown or of another shape:
            each is named.
    """
    found, copies = _canonical(stored or open_weights(folder), model)
    mismatched_ok = new_head_ok if mismatched_ok is None else mismatched_ok
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
        f"{name} holds {found[name].dtype}"
        for name in wanted
        if name in found and not found[name].is_floating
    ]
    for name, target in wanted.items():
        if name in found and found[name].shape != tuple(own[target].shape):
            shapes = f"{found[name].shape}, the config wants {tuple(own[target].shape)}"
            if mismatched_ok and name.rpartition(".")[0] in member.head_paths - set(
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
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:
        check_memory(model, folder)
    if isinstance(model, MaskedLMModel):
        for copy, tied, original in copies:
            kept_shape = found[original].shape
            if tied.shape != kept_shape or not _equal(found[original].read(), tied.read()):
                raise BertfastError(
                    f"{folder}: {copy} is not tied to {original}; such checkpoints are not supported"
                )
    if on_meta:
        own = model.to_empty(device=torch.get_default_device()).state_dict()
    with torch.no_grad():
        for name, target in wanted.items():
            if name not in kept:
                own[target].copy_(found[name].read())
    return [wanted[name] for name in kept]


def _equal(kept: Tensor, tied: Tensor) -> bool:
    return torch.equal(kept, tied.to(kept.dtype))


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
