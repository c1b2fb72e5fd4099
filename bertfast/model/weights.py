"""The tensors of a folder's weights: safetensors, its shards, or a ``.bin`` of nothing else.

Headers are read first, so that weights which do not fit are refused before any is read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.files import SETTINGS, check_file, read_object, write_atomically

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
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


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors stores them: contiguous, on the CPU, with no graph."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file as `bertfast.files.write_atomically` does; errors as there."""
    values = plain(tensors)
    write_atomically(path, lambda draft: save_file(values, draft, metadata))
