"""What the server takes, and how it answers what it does not."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from bertfast.errors import LONGEST, BertfastError
from bertfast.files import read_bytes

KEYS = "BERTFAST_API_KEYS"  # in the environment, separated by commas
MIB = 1 << 20


class Refused(Exception):
    """An answer that is no success.

    Attributes:
        status: of HTTP.
        kind: one word of text-embeddings-inference's ``error_type``.
        code: of OpenAI's errors; None for none.
        retry_after: seconds after which to try again; None for no word of it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "Validation",
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message[:LONGEST])
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after


@dataclass(frozen=True)
class Limits:
    """What the server takes at most.

    Attributes:
        max_batch_tokens: tokens of a packed batch; a longer input is a batch by itself.
        max_wait_ms: how long a batch waits for more, where a worker is idle.
        max_queue: texts that are taken and not yet answered; more are refused with 429.
        max_batch: texts of a request.
        max_chars: characters of a text.
        max_body: bytes of a request's body.
        timeout: seconds until an answer, or 504.
        read_timeout: seconds in which a client sends its headers, and then its body.
        max_connections: at a time; more are refused with 503.
        truncate: whether inputs beyond the model's length are cut where the client does not say.

    Raises:
        BertfastError: a value is out of range; it is named.
    """

    max_batch_tokens: int = 2048
    max_wait_ms: float = 2.0
    max_queue: int = 8192
    max_batch: int = 2048
    max_chars: int = 100_000
    max_body: int = 16 * MIB
    timeout: float = 30.0
    read_timeout: float = 10.0
    max_connections: int = 8192
    truncate: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name == "max_wait_ms" else 1
            if not math.isfinite(value) or (one.name != "truncate" and value < least):
                raise BertfastError(f"{one.name} is {value}; it must be at least {least}")
        if self.max_batch > self.max_queue:
            raise BertfastError(
                f"max_batch is {self.max_batch} and max_queue {self.max_queue}; "
                "a queue must hold a whole request"
            )


def api_keys(path: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, one a line, and of the environment's `KEYS`; none asks for none.

    Raises:
        BertfastError: the file cannot be read, or holds no key.
    """
    found = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    if path is not None:
        try:
            lines = read_bytes(path, MIB).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise BertfastError(f"{path}: is no text; a key a line is wanted") from None
        if not any(line.strip() for line in lines):
            raise BertfastError(f"{path}: holds no key; a key a line is wanted")
        found += [line.strip() for line in lines]
    return tuple(key.encode() for key in found if key)
