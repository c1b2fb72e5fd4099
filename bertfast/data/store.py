"""The token store: a corpus as flat ids with sentence and document boundaries, in files that are
mapped, not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bertfast.checks import number
from bertfast.errors import BertfastError
from bertfast.files import MissingFileError, check_file, file_sha256, read_object, read_text

from .readers import read_documents

# A line is cut into sentences after end punctuation and a space; a corpus of one paragraph a line
# gets several segments so.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
LINES_AT_A_TIME = 4096
PARTS = ("ids.bin", "dtype.txt", "sentences.npy", "documents.npy")
DTYPES = ("uint16", "int32")  # of ids


class TokenStore:
    """Token ids of a corpus.

    Attributes:
        ids: (tokens,) uint16 or int32.
        sentences: (sentences + 1,) int64 offsets into ids.
        documents: (documents + 1,) int64 offsets into sentences.
        digest: SHA-256 of all of it, in hexadecimal digits; empty for a store that is in no file.
    """

    def __init__(
        self, ids: NDArray, sentences: NDArray, documents: NDArray, digest: str = ""
    ) -> None:
        self.ids, self.sentences, self.documents, self.digest = ids, sentences, documents, digest

    @property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        return len(self.ids)

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.documents) - 1

    def split(self, share: float) -> tuple[TokenStore, TokenStore]:
        """The first documents and the last ones, which are this share of all documents, rounded, of
        at least one; the ids are not copied.

        Raises:
            BertfastError: the share is not between 0 and 1, or there are too few documents.
        """
        number("valid_split", share, above=0, below=1)
        last = max(1, round(share * self.num_documents))
        if last >= self.num_documents:
            raise BertfastError(
                f"valid-split is {share}, and the text has {self.num_documents} document(s); a "
                "blank line divides documents, and --valid names a file of its own"
            )
        cut = self.num_documents - last
        first, rest = self.some(0, cut), self.some(cut, self.num_documents)
        first.digest, rest.digest = f"{self.digest}[:{cut}]", f"{self.digest}[{cut}:]"
        return first, rest

    def some(self, first: int, last: int) -> TokenStore:
        """The documents from ``first`` up to ``last``; the ids are not copied."""
        sentences = self.documents[first : last + 1]
        tokens = self.sentences[sentences[0] : sentences[-1] + 1]
        return TokenStore(
            self.ids[tokens[0] : tokens[-1]], tokens - tokens[0], sentences - sentences[0]
        )

    @classmethod
    def build(
        cls,
        paths: Iterable[str | Path],
        tokenizer: Tokenizer,
        folder: str | Path,
        text_field: str = "text",
        on_progress: Callable[[int], None] | None = None,
    ) -> TokenStore:
        """Tokenises the files into ``folder``, or opens what an earlier run with the same files and
        tokenizer put there. One that was damaged since is made again.

        Args:
            paths: of the text, as `read_documents` takes them.
            tokenizer: whose ids are stored, without special tokens.
            folder: of the store; written beside and renamed, so it is whole or not there.
            text_field: of JSON lines.
            on_progress: called with the count of tokens so far.

        Raises:
            BertfastError: a file that cannot be used, or the folder cannot be written to.
        """
        files, folder = [Path(path) for path in paths], Path(folder)
        origin = _origin(files, tokenizer, text_field)
        try:
            stored = read_object(folder / "origin.json")
        except BertfastError:
            stored = {}
        sums = stored.pop("sums", None)
        try:
            if stored == origin and isinstance(sums, dict | None):
                return cls.open(folder, sums)
        except BertfastError as error:
            print(f"bertfast: {error}; making it again from the text", file=sys.stderr)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.int32
        sentences, documents, total = [0], [0], 0
        try:
            temporary.mkdir(parents=True)
            with open(temporary / "ids.bin", "wb") as out:
                for batch in _batches(read_documents(files, text_field), LINES_AT_A_TIME):
                    flat = [sentence for document in batch for sentence in document]
                    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
                    for document in batch:
                        for encoding in islice(encoded, len(document)):
                            if encoding.ids:
                                np.asarray(encoding.ids, dtype).tofile(out)
                                total += len(encoding.ids)
                                sentences.append(total)
                        if len(sentences) - 1 > documents[-1]:
                            documents.append(len(sentences) - 1)
                    if on_progress is not None:
                        on_progress(total)
            if total == 0:
                raise BertfastError("the data holds no text that the tokenizer knows")
            np.save(temporary / "sentences.npy", np.asarray(sentences, np.int64))
            np.save(temporary / "documents.npy", np.asarray(documents, np.int64))
            (temporary / "dtype.txt").write_text(np.dtype(dtype).name)
            sums = _sums(temporary)
            (temporary / "origin.json").write_text(json.dumps({**origin, "sums": sums}))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except OSError as error:
            raise BertfastError(f"{folder}: the token store cannot be written ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, sums: dict[str, str] | None = None) -> TokenStore:
        """An existing store, memory-mapped.

        Args:
            folder: of the store.
            sums: the SHA-256 that each of its files must have; None checks their lengths alone.

        Raises:
            BertfastError: the folder holds no whole store.
        """
        folder = Path(folder)
        try:
            for name in PARTS:
                check_file(folder / name)
            found = _sums(folder)
            damaged = [name for name in PARTS if sums is not None and sums.get(name) != found[name]]
            if damaged:
                raise BertfastError(f"{folder / damaged[0]}: is damaged: its checksum is another")
            dtype = read_text(folder / "dtype.txt")
            if dtype not in DTYPES:
                raise ValueError(f"dtype.txt says {dtype!r}")
            ids = np.memmap(folder / "ids.bin", dtype, mode="r")
            # Mapped first: a header may claim more than the file has.
            sentences, documents = (
                np.array(np.load(folder / name, mmap_mode="r", allow_pickle=False))
                for name in ("sentences.npy", "documents.npy")
            )
            for ends in (sentences, documents):
                if ends.dtype != np.int64 or ends.ndim != 1 or not len(ends):
                    raise ValueError("boundaries of another form")
        except (MissingFileError, OSError, EOFError, ValueError, TypeError) as error:
            raise BertfastError(
                f"{folder}: holds no whole token store ({error}); delete it to have it made again"
            ) from error
        if sentences[-1] != len(ids) or documents[-1] != len(sentences) - 1:
            raise BertfastError(
                f"{folder}: the token store is cut short; delete it to have it made again"
            )
        digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        return cls(ids, sentences, documents, digest)


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a store."""
    return {name: file_sha256(folder / name) for name in PARTS}


def _batches(documents: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    """Documents cut into sentences, gathered until there are ``size`` sentences.

    A sentence has the space before it that it has in running text: to a byte-level BPE it is part
    of the first word.
    """
    batch: list[list[str]] = []
    count = 0
    for document in documents:
        first, *others = [sentence for line in document for sentence in SENTENCE_END.split(line)]
        batch.append([first, *(f" {sentence}" for sentence in others)])
        count += len(batch[-1])
        if count >= size:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _origin(paths: list[Path], tokenizer: Tokenizer, text_field: str) -> dict:
    """What the store was made of; a change in any of it makes it again."""
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            raise BertfastError(f"{path}: no such file") from None
        files.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return {
        "files": files,
        "text_field": text_field,
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    }
