"""Tokenizes a corpus once, for all runs: text in, a store of shards out.

One process reads the text and writes the shards, others tokenize; the shards are the same with any
number of them. A journal beside the shards says after each how far the text was read. So the same
command goes on after a kill: no text is lost, and none is there twice.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from bertfast.errors import BertfastError
from bertfast.files import make_folder, write_text
from bertfast.resolve import resolve
from bertfast.tokenization import load_tokenizer, save_tokenizer

from .corpus import LONGEST, Part, Piece, find_parts, is_address, read_pieces
from .shards import (
    JOURNAL,
    MANIFEST,
    Shard,
    ShardedStore,
    describe,
    ids_digest,
    write_shard,
)
from .tokenizing import PERMUTATIONS, Tokenized, Tokenizing, dtype_of, start_worker, work

SHARD_TOKENS, FEWEST = 1 << 25, 1 << 12
TASK_SIZE = 1 << 18  # characters that a worker tokenizes at a time
WORKER_BYTES = 1 << 22  # of a corpus that a worker more is worth starting for
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Prepared:
    """A finished store.

    Attributes:
        out: its folder.
        tokens, sentences, documents, shards: how many it has.
        duplicates, near_duplicates: documents that were left out.
    """

    out: Path
    tokens: int
    sentences: int
    documents: int
    shards: int
    duplicates: int
    near_duplicates: int


def prepare(
    data: Iterable[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    text_field: str = "text",
    drop_duplicates: bool = False,
    near_duplicates: float | None = None,
    engine: str = "local",
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Prepared:
    """Tokenizes a corpus into a store for `pretrain`; the command ``bertfast prepare`` as a
    function. What a killed call has done is kept, and the same call goes on from there.

    Workers are processes that import the main script, which must stand under ``if __name__ ==
    "__main__"``.

    Args:
        data: files, folders, globs, addresses and Hub ids (see `find_parts`).
        tokenizer: folder or Hub id.
        out: folder of the store.
        workers: processes that tokenize; None is one for each processor, and fewer for a small
            corpus. 1 works in this process.
        shard_tokens: tokens of a shard at most.
        text_field: of records.
        drop_duplicates: leave out documents whose lines were all seen before.
        near_duplicates: leave out documents whose runs of five words are shared with an earlier
            one's to this degree (Jaccard's index), as MinHash estimates it.
        engine: "local", or "ray" for the workers of a Ray cluster.
        on_progress: called with the bytes read, all bytes, and the tokens written so far.

    Raises:
        BertfastError: a file, the tokenizer or the folder cannot be used. What is done stays.
    """
    if is_address(str(out)):
        raise BertfastError(f"{out}: out is a folder on this machine; copy the store afterwards")
    out = Path(out)
    if engine not in ENGINES:
        raise BertfastError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if isinstance(shard_tokens, bool) or shard_tokens < FEWEST:
        raise BertfastError(f"shard-tokens is {shard_tokens!r}; it must be at least {FEWEST}")
    if workers is not None and workers < 1:
        raise BertfastError(f"workers is {workers!r}; it must be at least 1")
    if near_duplicates is not None:
        if not 0 < near_duplicates < 1:
            raise BertfastError(
                f"drop-near-duplicates is {near_duplicates!r}; it must be above 0 and below 1"
            )
        _check_installed("datasketch", "drop-near-duplicates", "dedup")
    if engine == "ray":
        _check_installed("ray", "engine ray", "ray")
    words = load_tokenizer(resolve(str(tokenizer), tokenizer_only=True).folder)
    parts = find_parts(data)
    origin = {
        "parts": [[part.name, part.size, part.written] for part in parts],
        "tokenizer": ids_digest(words),
        "shard_tokens": shard_tokens,
        "text_field": text_field,
        "drop_duplicates": drop_duplicates,
        "near_duplicates": near_duplicates,
    }
    make_folder(out)
    with _locked(out):
        if (out / MANIFEST).exists() and not (out / JOURNAL).exists():
            return _finished(out, origin)
        others = [path.name for path in out.iterdir() if path.name not in (".lock", JOURNAL)]
        if others and not (out / JOURNAL).exists():
            raise BertfastError(
                f"{out}: holds other things ({', '.join(sorted(others)[:3])}); choose another --out"
            )
        tasks = Tokenizing, words.to_str(), near_duplicates is not None
        with _no_sqlite_errors(out), closing(_Journal(out / JOURNAL, origin)) as journal:
            writer = _Writer(out, journal, dtype_of(words), shard_tokens, near_duplicates)
            writer.drops = drop_duplicates
            size = sum(part.size for part in parts)
            run = _workers(engine, workers, size, *tasks)
            try:
                _run(parts, text_field, shard_tokens, run, writer, on_progress)
            except OSError as error:
                raise BertfastError(
                    f"{out}: the store cannot be written ({error}); what is done is kept, and the "
                    "same command goes on"
                ) from error
            if not writer.shards:
                raise BertfastError("the data holds no text that the tokenizer knows")
            made = _result(out, writer.shards, journal.dropped())
            save_tokenizer(words, out / "tokenizer")
            text = describe(
                words,
                writer.shards,
                origin=origin,
                duplicates=made.duplicates,
                near_duplicates=made.near_duplicates,
            )
            write_text(out / MANIFEST, text)
        for ending in ("", "-wal", "-shm", "-journal"):
            (out / f"{JOURNAL}{ending}").unlink(missing_ok=True)
        return made


def _check_installed(module: str, option: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise BertfastError(f"{option} needs {module}; pip install 'bertfast[{extra}]'")


def _result(out: Path, shards: Sequence[Shard], dropped: tuple[int, int]) -> Prepared:
    return Prepared(
        out,
        sum(shard.tokens for shard in shards),
        sum(shard.sentences for shard in shards),
        sum(shard.documents for shard in shards),
        len(shards),
        *dropped,
    )


def _finished(out: Path, origin: dict[str, Any]) -> Prepared:
    """The store that is there, if it is what was asked for."""
    store = ShardedStore(str(out))
    described = store._described()
    if described.get("origin") != json.loads(json.dumps(origin)):
        raise BertfastError(
            f"{out}: exists already, of other text, another tokenizer or other options; choose "
            "another --out"
        )
    store.verify()
    print(f"bertfast: {out} is complete; every checksum is right", file=sys.stderr)
    dropped = int(described["duplicates"]), int(described["near_duplicates"])
    return _result(out, store.shards, dropped)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BertfastError(f"{out}: another process is preparing it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _no_sqlite_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BertfastError(
            f"{out / JOURNAL}: the journal cannot be used ({error}); where the disk is not full, "
            "delete the folder and prepare the text again"
        ) from error


class _Journal:
    """Which shards are done, up to where the text was read for each, and what was seen of it.

    What one shard adds is there whole, or not at all.
    """

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.execute("pragma synchronous = full")
        self.base.executescript(
            "create table if not exists origin (text);"
            "create table if not exists shards (entry, part, pieces);"
            "create table if not exists seen (hash blob primary key) without rowid;"
            "create table if not exists sketches (id integer primary key, signature blob);"
            "create table if not exists bands (band blob, id);"
            "create index if not exists by_band on bands (band);"
            "create table if not exists dropped (same, near);"
        )
        text = json.dumps(origin)
        found = self.base.execute("select text from origin").fetchone()
        if found is None:
            self.base.execute("insert into origin values (?)", (text,))
            self.base.execute("insert into dropped values (0, 0)")
        elif found[0] != text:
            self.close()
            raise BertfastError(
                f"{path.parent}: was begun with other text, another tokenizer or other options, "
                "and is not finished. Run the command that it was begun with, or choose another "
                "--out"
            )
        self.base.execute("begin")

    def close(self) -> None:
        self.base.close()

    def shards(self) -> list[Shard]:
        rows = self.base.execute("select entry from shards order by rowid")
        return [Shard(**json.loads(entry)) for (entry,) in rows]

    def position(self) -> tuple[int, int]:
        """The part of the text, and how many of its pieces are done."""
        found = self.base.execute("select part, pieces from shards order by rowid desc limit 1")
        return found.fetchone() or (0, 0)

    def dropped(self) -> tuple[int, int]:
        return self.base.execute("select same, near from dropped").fetchone()

    def commit(self, shard: Shard, part: int, pieces: int) -> None:
        entry = json.dumps(shard.__dict__)
        self.base.execute("insert into shards values (?, ?, ?)", (entry, part, pieces))
        self.base.execute("commit")
        self.base.execute("begin")

    def is_new(self, key: bytes) -> bool:
        """Whether this text was not seen before; now it was."""
        new = self.base.execute("insert or ignore into seen values (?)", (key,)).rowcount == 1
        if not new:
            self.base.execute("update dropped set same = same + 1")
        return new

    def is_unlike(self, signature: NDArray[np.uint32], bands: int, rows: int, least: float) -> bool:
        """Whether no text that was kept before is so alike; this one is kept then."""
        keys = [
            n.to_bytes(2, "little") + signature[n * rows : (n + 1) * rows].tobytes()
            for n in range(bands)
        ]
        compared = set()
        for key in keys:
            for number, kept in self.base.execute(
                "select id, signature from bands natural join sketches where band = ?", (key,)
            ):
                if number in compared:
                    continue
                compared.add(number)
                if np.mean(np.frombuffer(kept, np.uint32) == signature) >= least:
                    self.base.execute("update dropped set near = near + 1")
                    return False
        found = self.base.execute(
            "insert into sketches (signature) values (?)", (signature.tobytes(),)
        )
        self.base.executemany(
            "insert into bands values (?, ?)", [(key, found.lastrowid) for key in keys]
        )
        return True


@dataclass
class _Writer:
    """Gathers what was tokenized, in the order of the text, and writes a shard when one is full."""

    out: Path
    journal: _Journal
    dtype: type
    shard_tokens: int
    near: float | None
    drops: bool = False
    shards: list[Shard] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shards = self.journal.shards()
        self.part, self.pieces = self.journal.position()
        self.tokens = sum(shard.tokens for shard in self.shards)
        known = {shard.name for shard in self.shards}
        for path in self.out.iterdir():
            if path.is_dir() and path.name not in known:
                shutil.rmtree(path)  # of a shard that was not finished
        if self.near is not None:
            from datasketch import MinHashLSH

            index = MinHashLSH(threshold=self.near, num_perm=PERMUTATIONS)
            self.bands, self.rows = index.b, index.r
        self._clear()

    def _clear(self) -> None:
        self.ids: list[NDArray] = []
        self.counts: list[NDArray[np.int64]] = []
        self.sentences, self.documents = 0, [0]
        self.size = 0
        self.open = False  # whether the last document may go on

    def add(self, part: int, pieces: Sequence[Piece], made: Tokenized) -> None:
        """The next pieces, of this part of the text."""
        token = sentence = 0
        for number, piece in enumerate(pieces):
            counts = made.counts[sentence : sentence + made.sentences[number]]
            sentence += made.sentences[number]
            ids = made.ids[token : token + int(counts.sum())]
            token += len(ids)
            if self.size and self.size + len(ids) > self.shard_tokens:
                self.flush()
            if part != self.part:
                self.part, self.pieces = part, 0
            self.pieces += 1
            counts = counts[counts > 0]
            if not len(counts) or not self._is_wanted(made, number):
                self.open = False
                continue
            if not (piece.goes_on and self.open):
                self.documents.append(self.sentences)
            self.open = True
            self.sentences += len(counts)
            self.documents[-1] = self.sentences
            self.ids.append(ids)
            self.counts.append(counts)
            self.size += len(ids)

    def _is_wanted(self, made: Tokenized, number: int) -> bool:
        if self.drops and not self.journal.is_new(made.hashes[number]):
            return False
        return self.near is None or self.journal.is_unlike(
            made.sketches[number], self.bands, self.rows, self.near
        )

    def flush(self) -> None:
        """Writes the shard that was gathered, if there is anything."""
        if not self.size:
            return
        counts = np.concatenate(self.counts)
        shard = write_shard(
            self.out / f"shard-{len(self.shards):06d}",
            np.concatenate(self.ids).astype(self.dtype, copy=False),
            np.concatenate([[0], np.cumsum(counts)]),
            np.asarray(self.documents, np.int64),
        )
        self.journal.commit(shard, self.part, self.pieces)
        self.shards.append(shard)
        self.tokens += self.size
        self._clear()


def _run(
    parts: Sequence[Part],
    text_field: str,
    shard_tokens: int,
    run: Callable[[Iterable[Sequence[Piece]]], Iterator[Tokenized]],
    writer: _Writer,
    on_progress: Callable[[int, int, int], None] | None,
) -> None:
    total = sum(part.size for part in parts)
    pending: deque[tuple[int, Sequence[Piece], int]] = deque()
    longest = min(LONGEST, max(shard_tokens // 4, 1))  # a character is four bytes at most
    first, done = writer.part, writer.pieces

    def tasks() -> Iterator[Sequence[Piece]]:
        before = sum(part.size for part in parts[:first])
        for number in range(first, len(parts)):
            part = parts[number]
            batch: list[Piece] = []
            size = place = 0
            for index, (piece, place) in enumerate(read_pieces(part, text_field, longest)):
                if number == first and index < done:
                    continue
                batch.append(piece)
                size += piece.size
                if size >= TASK_SIZE:
                    pending.append((number, batch, before + place))
                    yield batch
                    batch, size = [], 0
            if batch:
                pending.append((number, batch, before + place))
                yield batch
            before += part.size

    for made in run(tasks()):
        number, pieces, place = pending.popleft()
        writer.add(number, pieces, made)
        if on_progress is not None:
            on_progress(min(place, total), total, writer.tokens + writer.size)
    writer.flush()


def _workers(
    engine: str,
    workers: int | None,
    size: int,
    make: Callable[..., Tokenizing],
    *arguments: Any,
) -> Callable[[Iterable[Sequence[Piece]]], Iterator[Tokenized]]:
    """What maps tasks to results, in their order."""
    if engine == "ray":
        return partial(_on_ray, make=partial(make, *arguments), workers=workers)
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = workers or min(processors, 1 + size // WORKER_BYTES)
    if count == 1:
        return partial(map, make(*arguments))
    return partial(_on_processes, workers=count, make=partial(make, *arguments))


def _on_processes(
    tasks: Iterable[Sequence[Piece]], workers: int, make: Callable[[], Tokenizing]
) -> Iterator[Tokenized]:
    import multiprocessing

    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A fork of a process with threads of PyTorch's or the tokenizers' may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (make,))
    try:
        yield from _in_order(
            tasks, lambda task: pool.submit(work, task), lambda job: job.result(), workers
        )
    except BrokenProcessPool as error:
        raise BertfastError(
            "a worker is gone (killed, or out of memory); what is done is kept, and the same "
            "command goes on; fewer --workers need less memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _on_ray(
    tasks: Iterable[Sequence[Piece]], make: Callable[[], Tokenizing], workers: int | None
) -> Iterator[Tokenized]:
    """Tokenizes on actors of a Ray cluster: the one that RAY_ADDRESS names, or one of this
    machine.
    """
    import ray
    from ray.exceptions import RayError

    class Worker:
        def __init__(self) -> None:
            self.tokenize = make()

        def work(self, pieces: Sequence[Piece]) -> Tokenized:
            return self.tokenize(pieces)

    started = not ray.is_initialized()
    try:
        if started:
            ray.init(log_to_driver=False, configure_logging=False)
        count = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        remote = ray.remote(num_cpus=1)(Worker)
        actors: list[Any] = [remote.remote() for _ in range(count)]
        turn = iter(range(sys.maxsize))
        yield from _in_order(
            tasks, lambda task: actors[next(turn) % count].work.remote(task), ray.get, count
        )
    except (RayError, ConnectionError) as error:
        raise BertfastError(
            f"Ray failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}); what is "
            "done is kept, and the same command goes on"
        ) from error
    finally:
        if started and ray.is_initialized():
            ray.shutdown()


def _in_order(
    tasks: Iterable[Sequence[Piece]],
    submit: Callable[[Sequence[Piece]], Any],
    result: Callable[[Any], Tokenized],
    workers: int,
) -> Iterator[Tokenized]:
    """The results in the tasks' order, a few tasks a worker ahead."""
    running: deque[Any] = deque()
    for task in tasks:
        running.append(submit(task))
        if len(running) > 3 * workers:
            yield result(running.popleft())
    while running:
        yield result(running.popleft())
