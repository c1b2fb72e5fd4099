"""A file of vectors that is searched, beside which stands what made it.

The vectors are a NumPy array, mapped from the disk. ``FILE.json`` beside it names the model, the
texts and how the vectors are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bertfast.errors import BertfastError
from bertfast.files import check_file, read_object, write_atomically, write_text

from .quantization import check_precision, dequantize, quantize
from .search import ROWS, check_vectors, similarity_matrix, top_k

ENGINES = ("exact", "faiss", "usearch")
LINKS = 32  # of a node of faiss' graph
SEARCHED = 128  # nodes that a search of a graph looks at, at least
SETS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint16)


@dataclass(frozen=True)
class Made:
    """What made an index.

    Attributes:
        model: folder or Hub id of the encoder; "" where nobody knows.
        revision: on the Hub.
        texts: file of the texts, a row each; None where they came from standard input.
        precision: of the vectors; see `bertfast.sentences.quantization`.
        width: numbers of a vector.
        ranges: (2, width) as lists, of int8 and uint8.
    """

    model: str = ""
    revision: str | None = None
    texts: str | None = None
    precision: str = "float32"
    width: int = 0
    ranges: list[list[float]] | None = None


@dataclass(frozen=True)
class VectorIndex:
    """Vectors on the disk.

    Attributes:
        path: of the array.
        vectors: (rows, ...), mapped.
        made: what made them.
    """

    path: Path
    vectors: NDArray[Any]
    made: Made = field(default_factory=Made)

    @classmethod
    def open(cls, path: str | Path) -> VectorIndex:
        """The index in a file that `write` or `numpy.save` made.

        Raises:
            BertfastError: it cannot be read, or is no table of numbers, or what stands beside it
                does not fit it.
        """
        path = Path(path)
        check_file(path)
        try:
            vectors = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise BertfastError(
                f"{path}: is no array of NumPy ({' '.join(str(error).split())})"
            ) from None
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not len(vectors):
            raise BertfastError(
                f"{path}: holds {vectors.dtype} of shape {vectors.shape}; vectors of numbers are "
                "wanted, a row each"
            )
        beside = _beside(path)
        known = read_object(beside, optional=True)
        try:
            made = Made(**known) if known else Made(width=vectors.shape[1])
            check_precision(made.precision)
            _check_fits(vectors, made)
        except (TypeError, ValueError, BertfastError) as error:
            raise BertfastError(f"{beside}: does not describe {path.name} ({error})") from None
        return cls(path, vectors, made)

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """These vectors as float32."""
        made = self.made
        ranges = None if made.ranges is None else np.array(made.ranges)
        return dequantize(np.asarray(self.vectors[chosen]), made.precision, made.width, ranges)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int = 10,
        *,
        similarity: str = "cosine",
        engine: str = "exact",
        rescore: VectorIndex | None = None,
        oversample: int = 4,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The most similar rows, as `top_k` gives them.

        Vectors of bits are looked through by the bits in which they differ from the query's. The
        best are then scored anew: ``oversample`` times k of them, by the bits or by ``rescore``.

        Args:
            queries: (queries, width) float32.
            k: how many.
            similarity: cosine, dot, euclidean or manhattan.
            engine: "exact", or "faiss" or "usearch", which look through a graph that is made once
                and kept beside the vectors.
            rescore: the same rows in a higher precision.
            oversample: see above.

        Raises:
            BertfastError: shapes that do not fit, or an engine that is not installed or does not
                compare so.
        """
        check_vectors(queries, "queries", self.made.width)
        if rescore is not None and (
            len(rescore) != len(self) or rescore.made.width != self.made.width
        ):
            raise BertfastError(
                f"{rescore.path}: has {len(rescore)} vectors of {rescore.made.width} numbers and "
                f"{self.path} {len(self)} of {self.made.width}; they must be the same rows"
            )
        if engine not in ENGINES:
            raise BertfastError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
        most = min(len(self), k * oversample)
        if engine != "exact":
            rows = self._neighbours(queries, most, similarity, engine)
        elif self.made.precision in ("binary", "ubinary"):
            rows = self._nearest_bits(queries, most)
        elif rescore is None:
            return self._exact(queries, k, similarity)
        else:
            _, rows = self._exact(queries, most, similarity)
        return (rescore or self)._order(queries, rows, k, similarity)

    def _exact(
        self, queries: NDArray[np.float32], k: int, similarity: str
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self.made.precision == "float32":
            return top_k(queries, self.vectors, k, similarity)
        return top_k(queries, _Widened(self), k, similarity)  # type: ignore[arg-type]

    def _order(
        self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int, similarity: str
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best k of candidates, each row's scored by itself."""
        found = []
        for query, candidates in zip(torch.from_numpy(queries), rows, strict=True):
            candidates = np.sort(candidates)
            vectors = torch.from_numpy(self.rows(candidates))
            like = similarity_matrix(query[None].float(), vectors, similarity)[0]
            order = like.argsort(dim=0, descending=True, stable=True)[:k].numpy()
            found.append((like.numpy()[order], candidates[order]))
        scores, best = (np.stack(column) for column in zip(*found, strict=True))
        return scores, best

    def _nearest_bits(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """(queries, k) rows that differ from the queries' signs in the fewest bits."""
        asked = quantize(queries, "ubinary")
        turned = 128 if self.made.precision == "binary" else 0
        best = np.zeros((len(asked), 0), dtype=np.int64)
        apart = np.zeros((len(asked), 0), dtype=np.int64)
        for start in range(0, len(self), ROWS):
            block = np.asarray(self.vectors[start : start + ROWS])
            block = (block.astype(np.int16) + turned).astype(np.uint8)
            distance = np.stack([SETS[block ^ query].sum(1, dtype=np.int64) for query in asked])
            rows = np.broadcast_to(np.arange(start, start + len(block)), distance.shape)
            best, apart = np.hstack([best, rows]), np.hstack([apart, distance])
            order = np.argsort(apart, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(best, order, 1)
            apart = np.take_along_axis(apart, order, 1)
        return best

    def _neighbours(
        self, queries: NDArray[np.float32], k: int, similarity: str, engine: str
    ) -> NDArray[np.int64]:
        """(queries, k) rows by the graph of another library."""
        if similarity not in ("cosine", "dot"):
            raise BertfastError(
                f"similarity is {similarity!r}; {engine} compares by cosine or dot here"
            )
        unit = similarity == "cosine"
        asked = np.ascontiguousarray(_of_length_one(queries) if unit else queries, np.float32)
        kept = self.path.with_name(f"{self.path.name}.{similarity}.{engine}")
        known = kept.exists() and kept.stat().st_mtime >= self.path.stat().st_mtime
        look = _faiss if engine == "faiss" else _usearch
        return look(self, kept if known else None, kept, asked, k, unit)

    def blocks(self, unit: bool) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of all vectors, with ``unit`` of length 1."""
        for start in range(0, len(self), ROWS):
            rows = self.rows(slice(start, start + ROWS))
            yield start, np.ascontiguousarray(_of_length_one(rows) if unit else rows)


class _Widened:
    """The vectors of an index as float32, block by block."""

    def __init__(self, index: VectorIndex) -> None:
        self.index, self.shape = index, (len(index), index.made.width)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, chosen: slice) -> NDArray[np.float32]:
        return self.index.rows(chosen)


def write_index(path: Path, fill: Callable[[Path], object], made: Callable[[], Made]) -> None:
    """Writes an array of vectors by ``fill``, and beside it what ``made`` says then.

    Raises:
        BertfastError: the files cannot be written.
    """
    write_atomically(path, fill)
    write_text(_beside(path), json.dumps(asdict(made()), ensure_ascii=False) + "\n")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _check_fits(vectors: NDArray[Any], made: Made) -> None:
    """Raises BertfastError where the array is not what its description says."""
    bits = made.precision in ("binary", "ubinary")
    width = -(-made.width // 8) if bits else made.width
    kind = {"binary": "int8", "ubinary": "uint8"}.get(made.precision, made.precision)
    if vectors.shape[1] != width or (made.precision != "float32" and str(vectors.dtype) != kind):
        raise BertfastError(
            f"it says {made.precision} of {made.width} numbers, and the array is {vectors.dtype} "
            f"of shape {vectors.shape}"
        )
    if made.precision in ("int8", "uint8") and np.shape(made.ranges or []) != (2, made.width):
        raise BertfastError(f"it lacks the ranges of {made.precision}")


def _of_length_one(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return F.normalize(torch.as_tensor(np.asarray(vectors, np.float32)), dim=-1).numpy()


def _faiss(
    index: VectorIndex,
    known: Path | None,
    kept: Path,
    queries: NDArray[np.float32],
    k: int,
    unit: bool,
) -> NDArray[np.int64]:
    faiss = _installed("faiss", "faiss-cpu")
    graph = None if known is None else faiss.read_index(str(known))
    if graph is None or graph.ntotal != len(index):
        graph = faiss.IndexHNSWFlat(index.made.width, LINKS, faiss.METRIC_INNER_PRODUCT)
        for _, block in index.blocks(unit):
            graph.add(block)
        write_atomically(kept, lambda draft: faiss.write_index(graph, str(draft)))
    graph.hnsw.efSearch = max(SEARCHED, k)
    rows = graph.search(queries, k)[1]
    return _whole(rows, len(index))


def _usearch(
    index: VectorIndex,
    known: Path | None,
    kept: Path,
    queries: NDArray[np.float32],
    k: int,
    unit: bool,
) -> NDArray[np.int64]:
    library = _installed("usearch.index", "usearch")
    graph = library.Index(ndim=index.made.width, metric="ip", expansion_search=max(SEARCHED, k))
    if known is not None:
        graph.load(str(known))
    if len(graph) != len(index):
        graph.reset()
        for start, block in index.blocks(unit):
            graph.add(np.arange(start, start + len(block)), block)
        write_atomically(kept, lambda draft: graph.save(str(draft)))
    found = graph.search(queries, k)
    return _whole(np.asarray(found.keys, dtype=np.int64).reshape(len(queries), -1), len(index))


def _whole(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows without those that a graph did not find, as many for each query."""
    found = [[row for row in line.tolist() if 0 <= row < count] for line in rows]
    fewest = min(map(len, found))
    return np.array([line[:fewest] for line in found], dtype=np.int64)


def _installed(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise BertfastError(
            f"engine {module.partition('.')[0]!r} is not installed; pip install {package}"
        ) from None
