"""What a model's layers say of texts, once and for all on the disk.

This is the feature-based way of Devlin et al., "BERT", section 5.3 and table 7.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from bertfast.data import labelled
from bertfast.data.columns import Columns
from bertfast.data.readers import stream_lines
from bertfast.errors import BertfastError
from bertfast.files import check_new, file_sha256, read_object, whole_folder
from bertfast.model import load
from bertfast.packed import PackedBatch
from bertfast.resolve import Source, resolve
from bertfast.tokenization import check_tokenizer_fits, load_tokenizer

from .precision import find_device, inference_dtype
from .predict import AT_ONCE, batches_by_length

VALUES, OFFSETS, SETTINGS = "features.npy", "offsets.npy", "features.json"
POOLINGS = ("first", "mean", "tokens")
# Of the states of the embeddings and of every layer, in the order of the paper's table.
LAYERS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "embeddings": lambda states: states[0],
    "second-to-last": lambda states: states[-2],
    "last": lambda states: states[-1],
    "sum-last-4": lambda states: torch.stack(tuple(states[-4:])).sum(0),
    "concat-last-4": lambda states: torch.cat(tuple(states[-4:]), -1),
    "sum-all": lambda states: torch.stack(tuple(states[1:])).sum(0),
}


class Features(NamedTuple):
    """A folder of features.

    Attributes:
        values: (texts, width) float32, memory-mapped; with the pooling "tokens" (tokens, width).
        offsets: (texts + 1,) int64, then: text i is rows ``offsets[i]`` to ``offsets[i + 1]``, the
            special tokens among them; None otherwise.
        settings: what they were made of.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int64] | None
    settings: dict[str, Any]


def load_features(folder: str | Path) -> Features:
    """The features of a folder that `features` wrote.

    Raises:
        BertfastError: it is none.
    """
    folder = Path(folder)
    settings = read_object(folder / SETTINGS)
    try:
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
        tokens = (folder / OFFSETS).is_file()
        offsets = np.load(folder / OFFSETS, allow_pickle=False) if tokens else None
    except (OSError, ValueError) as error:
        raise BertfastError(f"{folder}: its features cannot be read ({error})") from error
    return Features(values, offsets, settings)


def features(
    model: str | Path,
    file: str | Path,
    out: str | Path,
    *,
    layers: str = "last",
    pooling: str = "first",
    text_column: str | None = None,
    pair_column: str | None = None,
    max_length: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
    revision: str | None = None,
) -> Features:
    """Computes features of the texts of a file, unless ``out`` has these very ones already.

    Args:
        model: folder or Hub id.
        file: a table, of which the texts or the pairs of texts are taken, or plain text, a text a
            line.
        out: folder to write.
        layers: one of `LAYERS`, or a layer's number: 0 is the embeddings, 1 the first layer.
        pooling: "first" for the first token's vector, "mean" for that of all tokens, or "tokens"
            for each.
        text_column, pair_column: None for the usual ones.
        max_length: tokens of a text at most; None is the model's positions.
        device, precision: of the computation.
        revision: of the model on the Hub.

    Raises:
        BertfastError: an option, the model or the file cannot be used, or ``out`` has something
            else.
    """
    source, path, target = resolve(model, revision), Path(file), Path(out)
    where, dtype = find_device(device), inference_dtype(precision)
    if pooling not in POOLINGS:
        raise BertfastError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
    encoder = load(source.folder).base.eval().to(where, dtype)
    config = encoder.config
    choose = chosen_layers(layers, config.num_hidden_layers)
    if max_length is not None and not 4 <= max_length <= config.max_length:
        raise BertfastError(
            f"max-length is {max_length}; it must be from 4 to the model's {config.max_length}"
        )
    longest = max_length or config.max_length
    columns = Columns(text_column, pair_column)
    table = labelled.is_task_file(path)
    if table:
        columns = labelled.find_columns(path, columns)._replace(label=None)
    elif columns != Columns():
        raise BertfastError(f"{file}: has no columns; give a .tsv, .csv or .jsonl file")
    settings = {
        "model": _digest(source),
        "file": file_sha256(path) if path.is_file() else str(path.absolute()),
        "columns": list(columns[:2]),
        "layers": layers,
        "pooling": pooling,
        "max_length": longest,
        "precision": precision,
    }
    if (target / SETTINGS).is_file() and read_object(target / SETTINGS) == settings:
        return load_features(target)
    check_new(target)
    tokenizer = load_tokenizer(source.folder)
    check_tokenizer_fits(tokenizer, config, f"{model}: the tokenizer")

    def rows() -> Iterator[labelled.Example]:
        if table:
            yield from labelled.stream_task(path, *columns, require_labels=False)
        else:
            for number, line in enumerate(stream_lines(str(path)), 1):
                yield labelled.Example(number, line)

    remaining, offsets = rows(), [0]
    with whole_folder(target.absolute()) as folder:
        with _writer(folder / VALUES) as write, torch.no_grad():
            while chunk := list(islice(remaining, AT_ONCE)):
                texts, pairs = [row.text for row in chunk], [row.pair for row in chunk]
                inputs = labelled.encode(tokenizer, texts, pairs, longest)
                found: dict[int, NDArray[np.float32]] = {}
                for places in batches_by_length(inputs):
                    batch = PackedBatch.from_sequences(
                        [inputs[place].ids for place in places],
                        [inputs[place].segments for place in places],
                    ).to(where)
                    states = encoder.encode(batch, every_row=True).hidden_states(True)
                    assert states is not None
                    parts = _pooled(choose(states), batch.cu_seqlens, pooling)
                    found |= zip(places, parts, strict=True)
                for number in range(len(chunk)):
                    write(found[number])
                    offsets.append(offsets[-1] + len(found[number]))
        if len(offsets) == 1:
            raise BertfastError(f"{file}: has no text")
        if pooling == "tokens":
            np.save(folder / OFFSETS, np.array(offsets, np.int64))
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return load_features(target)


def chosen_layers(name: str, layers: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """What is taken of the states of the embeddings and of so many layers.

    Raises:
        BertfastError: there is no such layer.
    """
    if name.isdecimal() and int(name) <= layers:
        number = int(name)
        return lambda states: states[number]
    if name in LAYERS and (layers >= 4 or not name.endswith("-4")):
        return LAYERS[name]
    known = [known for known in LAYERS if layers >= 4 or not known.endswith("-4")]
    raise BertfastError(
        f"layers is {name!r}; it must be one of {', '.join(known)}, or a number from 0, the "
        f"embeddings, to {layers}"
    )


def _pooled(x: Tensor, cu_seqlens: Tensor, pooling: str) -> list[NDArray[np.float32]]:
    """(1, width) of each sequence, or (its tokens, width)."""
    if pooling == "first":
        x = x[cu_seqlens[:-1].long()].unsqueeze(1)
        return list(x.float().cpu().numpy())
    lengths = cu_seqlens.diff().tolist()
    parts = x[: sum(lengths)].float().cpu().split(lengths)
    if pooling == "mean":
        return [part.mean(0, keepdim=True).numpy() for part in parts]
    return [part.numpy() for part in parts]


@contextmanager
def _writer(path: Path) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """A function that appends rows to a .npy file, whose header says how many at the end."""
    shape = [0, 0]

    def header() -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        npy.write_array_header_1_0(stream, description)

    def write(rows: NDArray[np.float32]) -> None:
        if not shape[1]:
            shape[1] = rows.shape[1]
            header()
        shape[0] += len(rows)
        stream.write(np.ascontiguousarray(rows, "<f4").tobytes())

    with open(path, "wb") as stream:
        yield write
        # NumPy leaves room for a first size of any length, so that the header's length stays.
        stream.seek(0)
        header()


def _digest(source: Source) -> str:
    files = sorted(path for path in source.folder.iterdir() if path.is_file())
    return "".join(file_sha256(path) for path in files if path.suffix != ".md")
