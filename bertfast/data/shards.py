"""A prepared corpus: shards of token ids with their checksums, opened one after another.

``store.json`` describes the store; each shard is a folder with the files of a `TokenStore`. A store
lies in a folder, or at an address of fsspec's, from which shards come through a bounded cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bertfast.errors import BertfastError
from bertfast.files import MIB, file_sha256, parse_object, read_bytes

from .corpus import file_system, is_address, reaching
from .store import TokenStore

MANIFEST, FORMAT = "store.json", 1
ARRAYS = ("ids.npy", "sentences.npy", "documents.npy")
MOST_BYTES = 256 * MIB  # of a manifest: some million shards
# Shards whose examples are shuffled together, in tokens.
MIXED_TOKENS = 1 << 27
CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Shard:
    """One shard, or some of its documents.

    Attributes:
        name: of its folder in the store.
        tokens, sentences, documents: how many it has.
        sums: SHA-256 of each of its files.
        sizes: bytes of each of its files.
        first, last: the documents that are meant; all of them where ``last`` is None.
    """

    name: str
    tokens: int
    sentences: int
    documents: int
    sums: dict[str, str]
    sizes: dict[str, int]
    first: int = 0
    last: int | None = None

    @property
    def count(self) -> int:
        """Documents that are meant."""
        return (self.documents if self.last is None else self.last) - self.first


def ids_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides the ids of a text, special tokens left out."""
    described = json.loads(tokenizer.to_str())
    deciding = {
        part: described.get(part)
        for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def write_shard(
    folder: Path, ids: NDArray, sentences: NDArray[np.int64], documents: NDArray[np.int64]
) -> Shard:
    """Writes a shard's folder, flushed to the disk and renamed: whole or not there.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, array in zip(ARRAYS, (ids, sentences, documents), strict=True):
            with open(temporary / name, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        paths = [temporary / name for name in ARRAYS]
        sums = {path.name: file_sha256(path) for path in paths}
        sizes = {path.name: path.stat().st_size for path in paths}
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Shard(folder.name, len(ids), len(sentences) - 1, len(documents) - 1, sums, sizes)


def is_store(location: str) -> bool:
    """Whether a prepared corpus is there, finished or not.

    Raises:
        BertfastError: it is an address that cannot be reached.
    """
    if is_address(location):
        with reaching(location):
            system, path = file_system(f"{location.rstrip('/')}/{MANIFEST}")
            return bool(system.exists(path))
    folder = Path(location)
    return any((folder / name).is_file() for name in (MANIFEST, JOURNAL))


JOURNAL = ".prepare.sqlite"  # of a store that is not finished


class ShardedStore:
    """A prepared corpus, of which nothing is read but what was asked for.

    Args:
        location: the store's folder or address.
        cache: the folder that shards of an address are copied to.
        cache_bytes: what they may take there; what is in use stays.

    Raises:
        BertfastError: there is no whole store.
    """

    def __init__(
        self, location: str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.location = location.rstrip("/")
        self.remote = is_address(location)
        described = self._described()
        try:
            if described["format"] != FORMAT:
                raise BertfastError(
                    f"{location}: is a store of form {described['format']}, and this release reads "
                    f"form {FORMAT}; prepare it again"
                )
            self.tokenizer = str(described["tokenizer"])
            self.shards = [_shard(entry) for entry in described["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BertfastError(
                f"{location}/{MANIFEST}: is damaged ({error!r}); prepare the store again"
            ) from error
        if not self.shards:
            raise BertfastError(f"{location}: is a store of no shard; prepare it again")
        sums = [shard.sums for shard in self.shards]
        self.digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
        self.checked: set[str] = set()
        if self.remote:
            if cache is None:
                raise BertfastError(f"{location}: an address needs a folder to copy shards to")
            self.cache = _Cache(self.location, cache / self.digest[:16], cache_bytes)
        else:
            for shard in self.shards:
                self._check_sizes(shard, Path(self.location) / shard.name)

    def _described(self) -> dict[str, Any]:
        name = f"{self.location}/{MANIFEST}"
        if self.remote:
            with reaching(name):
                system, path = file_system(name)
                return parse_object(name, system.cat_file(path))
        if (Path(self.location) / JOURNAL).exists():
            raise BertfastError(
                f"{self.location}: is a store that is not finished; the bertfast prepare that "
                "began it goes on when it is run again"
            )
        return parse_object(name, read_bytes(name, MOST_BYTES))

    @property
    def num_tokens(self) -> int:
        """How many tokens the shards have."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """How many documents are meant."""
        return sum(shard.count for shard in self.shards)

    def check_tokenizer(self, tokenizer: Tokenizer, name: str) -> None:
        """Raises BertfastError unless the ids are this tokenizer's, which the user calls so."""
        if ids_digest(tokenizer) != self.tokenizer:
            raise BertfastError(
                f"{self.location}: was prepared with another tokenizer than {name}; give "
                f"--tokenizer {self.location}/tokenizer, or prepare the text again"
            )

    def split(self, share: float) -> tuple[ShardedStore, ShardedStore]:
        """As `TokenStore.split`: the first documents, and this share of all, the last ones.

        Raises:
            BertfastError: the share is not between 0 and 1, or there are too few documents.
        """
        if not 0 < share < 1:
            raise BertfastError(f"valid-split is {share!r}; it must be above 0 and below 1")
        last = max(1, round(share * self.num_documents))
        cut = self.num_documents - last
        if cut < 1:
            raise BertfastError(
                f"valid-split is {share}, and {self.location} has {self.num_documents} "
                "document(s); --valid names a file of its own"
            )
        first: list[Shard] = []
        rest: list[Shard] = []
        for shard in self.shards:
            here = min(max(cut, 0), shard.count)
            cut -= here
            middle = shard.first + here
            if here:
                first.append(replace(shard, last=middle))
            if here < shard.count:
                rest.append(replace(shard, first=middle, last=shard.first + shard.count))
        return self._with(first), self._with(rest)

    def _with(self, shards: list[Shard]) -> ShardedStore:
        other = object.__new__(ShardedStore)
        other.__dict__.update(self.__dict__)
        other.shards = shards
        meant = [(shard.name, shard.first, shard.last) for shard in shards]
        other.digest = hashlib.sha256(f"{self.digest}{meant}".encode()).hexdigest()
        return other

    def windows(self, order: Sequence[int] | NDArray[np.int64]) -> Iterator[list[Shard]]:
        """The shards in this order, as many at a time as are shuffled together."""
        window: list[Shard] = []
        for index in order:
            shard = self.shards[int(index)]
            if window and sum(other.tokens for other in window) + shard.tokens > MIXED_TOKENS:
                yield window
                window = []
            window.append(shard)
        if window:
            yield window

    def load(self, window: Sequence[Shard]) -> TokenStore:
        """These shards as one store; each one's checksums are looked at when it is first opened.

        Raises:
            BertfastError: a shard is missing or damaged.
        """
        return joined([self._open(shard) for shard in window])

    def expect(self, window: Sequence[Shard]) -> None:
        """Says what is loaded next, so that an address is read meanwhile."""
        if self.remote:
            self.cache.expect(window)

    def verify(self, on_progress: Callable[[int], None] = lambda tokens: None) -> None:
        """Reads every shard.

        Raises:
            BertfastError: one is missing or damaged.
        """
        done = 0
        for shard in self.shards:
            self._open(shard)
            done += shard.tokens
            on_progress(done)

    def _check_sizes(self, shard: Shard, folder: Path) -> None:
        for name, size in shard.sizes.items():
            try:
                found = (folder / name).stat().st_size
            except OSError:
                raise BertfastError(
                    f"{folder / name}: is missing of the store; prepare it again with another "
                    "--out, or put the file back"
                ) from None
            if found != size:
                raise BertfastError(
                    f"{folder / name}: is damaged: it has {found:,} bytes, and had {size:,}; put "
                    "the file back, or prepare the text again with another --out"
                )

    def _check(self, shard: Shard, folder: Path) -> None:
        self._check_sizes(shard, folder)
        for name in ARRAYS:
            if file_sha256(folder / name) != shard.sums[name]:
                raise BertfastError(
                    f"{folder / name}: is damaged: its checksum is another; put the file back, or "
                    "prepare the text again with another --out"
                )

    def _open(self, shard: Shard) -> TokenStore:
        folder = self.cache.get(shard) if self.remote else Path(self.location) / shard.name
        if self.remote or shard.name not in self.checked:
            try:
                self._check(shard, folder)
            except BertfastError:
                if self.remote:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            self.checked.add(shard.name)
        try:
            ids, sentences, documents = (
                np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ARRAYS
            )
        except (OSError, ValueError, EOFError) as error:
            raise BertfastError(f"{folder}: cannot be read ({error})") from error
        if self.remote:
            self.cache.opened(shard)
        store = TokenStore(ids, sentences, documents)
        return store if shard.last is None else store.some(shard.first, shard.last)


def _shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(
        str(entry["name"]),
        int(entry["tokens"]),
        int(entry["sentences"]),
        int(entry["documents"]),
        {name: str(entry["sums"][name]) for name in ARRAYS},
        {name: int(entry["sizes"][name]) for name in ARRAYS},
    )
    if Path(shard.name).name != shard.name or shard.name in ("", ".", ".."):
        raise ValueError(f"a shard is called {shard.name!r}")
    return shard


def describe(tokenizer: Tokenizer, shards: Sequence[Shard], **others: Any) -> str:
    """The text of ``store.json``."""
    entries = [
        {key: value for key, value in asdict(shard).items() if key not in ("first", "last")}
        for shard in shards
    ]
    found = {"format": FORMAT, "tokenizer": ids_digest(tokenizer), **others, "shards": entries}
    return json.dumps(found, indent=1) + "\n"


class _Joined:
    """Ids of several stores, by their numbers in the whole."""

    def __init__(self, parts: Sequence[NDArray]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray:
        part = np.searchsorted(self.ends, index, side="right")
        found = np.empty(len(index), self.parts[0].dtype)
        for number in np.unique(part):
            here = part == number
            start = self.ends[number] - len(self.parts[number])
            found[here] = self.parts[number][index[here] - start]
        return found


def joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Several stores as one; their ids stay where they are."""
    if len(stores) == 1:
        return stores[0]
    tokens = np.cumsum([0, *(store.num_tokens for store in stores)])
    counts = np.cumsum([0, *(len(store.sentences) - 1 for store in stores)])
    sentences = [store.sentences[:-1] + tokens[n] for n, store in enumerate(stores)]
    documents = [store.documents[:-1] + counts[n] for n, store in enumerate(stores)]
    return TokenStore(
        _Joined([store.ids for store in stores]),  # type: ignore[arg-type]
        np.concatenate([*sentences, tokens[-1:]]),
        np.concatenate([*documents, counts[-1:]]),
    )


class _Cache:
    """Shards of an address, copied to a folder of bounded size."""

    def __init__(self, address: str, folder: Path, most: int) -> None:
        self.address, self.folder, self.most = address, folder, most
        self.used: list[Shard] = []  # the least recently used first
        self.coming: dict[str, Future[Path]] = {}  # asked for, and not opened yet
        self.pool = ThreadPoolExecutor(1, "bertfast-shards")

    def expect(self, window: Sequence[Shard]) -> None:
        for shard in window:
            if shard.name not in self.coming:
                self.coming[shard.name] = self.pool.submit(self._fetch, shard)

    def get(self, shard: Shard) -> Path:
        self.expect([shard])
        return self.coming[shard.name].result()

    def opened(self, shard: Shard) -> None:
        """From now on it may go: what is mapped stays readable without its name."""
        self.coming.pop(shard.name, None)

    def _fetch(self, shard: Shard) -> Path:
        folder = self.folder / shard.name
        self.used = [other for other in self.used if other.name != shard.name]
        self._make_room(sum(shard.sizes.values()))
        self.used.append(shard)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, size in shard.sizes.items():
                file = folder / name
                if file.exists() and file.stat().st_size == size:
                    continue
                address = f"{self.address}/{shard.name}/{name}"
                with reaching(address):
                    system, path = file_system(address)
                    system.get_file(path, str(folder / f".{name}.tmp"))
                os.replace(folder / f".{name}.tmp", file)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise BertfastError(f"{folder}: a shard cannot be copied there ({error})") from error
        return folder

    def _make_room(self, size: int) -> None:
        for other in list(self.used):
            if size + sum(sum(shard.sizes.values()) for shard in self.used) <= self.most:
                return
            if other.name not in self.coming:
                shutil.rmtree(self.folder / other.name, ignore_errors=True)
                self.used.remove(other)
