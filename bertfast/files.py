"""Reads the files of a folder, and writes them.

A folder can come from anyone. A file in it may be a pipe that never ends, gigabytes of text, or
JSON that no parser survives. Each is one `BertfastError` that names the file: regular files alone
are read, of bounded size and nesting. What is written is never half a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from .errors import BertfastError

MIB = 1 << 20
SETTINGS = 16 * MIB  # bytes of a configuration, an index or a list of modules at most
VOCABULARY = 256 * MIB  # bytes of a tokenizer's file at most
DEPTH = 64  # lists and objects within one another at most
DIGITS = 100  # of a whole number at most; published files have one of 31
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class MissingFileError(BertfastError):
    """There is no file of that name."""


def check_file(path: str | Path) -> int:
    """The bytes of a regular file; a link to one counts as one. The file is not opened.

    Raises:
        MissingFileError: there is nothing of that name.
        BertfastError: it is a pipe, a device, a folder or a loop of links, or cannot be looked at.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _regular(path, status)


def read_bytes(path: str | Path, most: int = SETTINGS) -> bytes:
    """The content of a regular file of at most ``most`` bytes; errors as of `check_file`.

    Raises:
        BertfastError: the file is larger, or cannot be read.
    """
    check_file(path)
    try:
        # Of a pipe that nobody writes to, a plain open would not return.
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, os.O_RDONLY | flags)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    with open(descriptor, "rb") as file:
        size = _regular(path, os.fstat(descriptor))
        try:
            data = file.read(most + 1) if size <= most else b""
        except OSError as error:
            raise _unreadable(path, error) from None
    if size > most or len(data) > most:
        raise BertfastError(
            f"{path}: has {max(size, len(data)):,} bytes; a file of this kind has at most {most:,}"
        )
    return data


def read_text(path: str | Path, most: int = SETTINGS) -> str:
    """The text of a UTF-8 file; arguments and errors as of `read_bytes`."""
    return _decoded(path, read_bytes(path, most))


def _decoded(path: str | Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BertfastError(
            f"{path}: is not UTF-8 text ({error.reason}: byte {error.object[error.start]:#04x})"
        ) from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file of settings.

    Raises:
        BertfastError: as of `read_text`, or the file is no JSON, or nested deeper than `DEPTH`. Or
            it holds a number of more than `DIGITS` digits, or half of a surrogate pair.
    """
    return _parse_json(path, read_text(path))


def _parse_json(path: str | Path, text: str) -> Any:
    try:
        value = json.loads(text, parse_int=_whole_number)
        _check_nesting(value)
    except RecursionError:
        raise BertfastError(
            f"{path}: cannot be read as JSON (nested deeper than {DEPTH} levels)"
        ) from None
    except ValueError as error:
        raise BertfastError(f"{path}: cannot be read as JSON ({error})") from None
    return value


def read_object(path: str | Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; with ``optional`` empty where there is no file. Errors as of
    `read_json`.
    """
    try:
        data = read_bytes(path)
    except MissingFileError:
        if optional:
            return {}
        raise
    return parse_object(path, data)


def parse_object(path: str | Path, data: bytes) -> dict[str, Any]:
    """The object in the bytes of a JSON file, which messages name; errors as of `read_json`."""
    value = _parse_json(path, _decoded(path, data))
    if not isinstance(value, dict):
        raise BertfastError(f"{path}: holds a {type(value).__name__}; a JSON object is wanted")
    return value


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file of settings, in which nothing stands twice by an alias.

    Raises:
        BertfastError: as of `read_text`, or it is no YAML, nested too deep, or has an alias.
    """
    text = read_text(path, MIB)
    try:
        value = yaml.load(text, _PlainLoader)
        _check_nesting(value)
    except RecursionError:
        raise BertfastError(
            f"{path}: cannot be read as YAML (nested deeper than {DEPTH} levels)"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise BertfastError(f"{path}: cannot be read as YAML ({reason})") from None
    return value


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
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise BertfastError(
            f"{path}: cannot be written ({error}); what was there before is untouched"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as `write_atomically` does; errors as there."""
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


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


def check_new(out: str | Path) -> None:
    """Raises BertfastError where there is something at ``out`` but an empty folder."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BertfastError(f"{out}: exists already; choose another --out")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at the end: that is there whole or not at all.

    It is made at once, so that a place that cannot be written to is found before the work and not
    after it.

    Raises:
        BertfastError: it cannot be written.
    """
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        if target.is_dir():
            target.rmdir()
        os.replace(folder, target)
    except OSError as error:
        raise BertfastError(f"{target}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)


def _regular(path: str | Path, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise BertfastError(f"{path}: is {kind}; a file is wanted")
    return status.st_size


def _unreadable(path: str | Path, error: OSError | ValueError) -> BertfastError:
    if isinstance(error, ValueError):  # of a zero byte
        return BertfastError(f"{str(path)!r}: is no path ({error})")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.islink(path):
            return BertfastError(f"{path}: is a link to a file that is not there")
        return MissingFileError(f"{path}: no such file")
    return BertfastError(f"{path}: cannot be read ({error.strerror})")


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits; at most {DIGITS} are read")
    return int(digits)


def _check_nesting(value: Any) -> None:
    """Raises RecursionError beyond `DEPTH`, ValueError for text that has no UTF-8 form."""
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise RecursionError
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list | tuple | set):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError("text with half of a surrogate pair") from None
        level, depth = below, depth + 1
