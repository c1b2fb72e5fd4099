"""The special tokens of an encoder's tokenizer, and how they frame a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.model.family import FAMILY

# Hugging Face's names; special tokens come in this order throughout.
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
MPNET_TOKENS = ("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
# Of WordPiece's classes: the special tokens, where a folder names none.
WORDPIECE_TOKENS = {"MPNetTokenizer": MPNET_TOKENS}


def special_names(folder: str | Path) -> dict[str, str]:
    """Role (``mask_token`` and the like) to token, as far as tokenizer_config.json,
    special_tokens_map.json and the tokenizer's class say.
    """
    folder = Path(folder)
    defaults = WORDPIECE_TOKENS.get(tokenizer_class(folder) or "", ())
    said = {
        **dict(zip(ROLES, defaults, strict=False)),
        **read_object(folder / "special_tokens_map.json", optional=True),
        **read_settings(folder),
    }
    contents = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in said.items()
        if role in ROLES
    }
    return {role: content for role, content in contents.items() if isinstance(content, str)}


def special_tokens(tokenizer: Tokenizer, folder: str | Path | None = None) -> dict[str, int | None]:
    """Role to id, None where there is no such token: by the folder's names, or else by the
    spellings of BERT and RoBERTa.
    """
    named = special_names(folder) if folder is not None else {}
    found = {}
    for role, *spellings in zip(ROLES, SPECIAL_TOKENS, ROBERTA_TOKENS, strict=True):
        ids = [
            tokenizer.token_to_id(token)
            for token in (named.get(role), *spellings)
            if token is not None
        ]
        found[role] = next((index for index in ids if index is not None), None)
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    return read_object(folder / "tokenizer_config.json", optional=True)


def named_class(settings: dict[str, Any]) -> str | None:
    name = settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def tokenizer_class(folder: Path) -> str | None:
    """The class that a folder's tokenizer_config.json names, or else that of the member which its
    config.json names; None where neither does.
    """
    kind = read_object(folder / "config.json", optional=True).get("model_type")
    member = FAMILY.get(kind) if isinstance(kind, str) else None
    return named_class(read_settings(folder)) or (member.tokenizer if member else None)


@dataclass(frozen=True)
class Frame:
    """What stands around the token sequences of an input.

    Attributes:
        ids: special tokens in order, -1 where a sequence goes.
        segments: of each of these.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...]

    @property
    def added(self) -> int:
        """How many special tokens there are."""
        return sum(index >= 0 for index in self.ids)

    def around(
        self, *sequences: Sequence | NDArray, special: Sequence | None = None
    ) -> list[Sequence | NDArray]:
        """The parts of the input of these sequences, one after the other; ``special`` in place of
        each special token if it is given.
        """
        left = iter(sequences)
        return [next(left) if index < 0 else special or [index] for index in self.ids]

    def segment_ids(self, *lengths: int) -> NDArray[np.int64]:
        """(tokens,) of the input of sequences of these lengths."""
        left = iter(lengths)
        return np.repeat(
            np.asarray(self.segments, np.int64),
            [1 if index >= 0 else next(left) for index in self.ids],
        )


def bert_frames(cls: int, sep: int) -> tuple[Frame, Frame]:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] with segment 1 from B on."""
    return Frame((cls, -1, sep), (0, 0, 0)), Frame((cls, -1, sep, -1, sep), (0, 0, 0, 1, 1))


def roberta_frames(cls: int, sep: int) -> tuple[Frame, Frame]:
    """<s> A </s>, and <s> A </s></s> B </s>, all of one segment."""
    return Frame((cls, -1, sep), (0, 0, 0)), Frame((cls, -1, sep, sep, -1, sep), (0, 0, 0, 0, 0, 0))


class SpecialIds:
    """The ids of an encoder's special tokens, and how its tokenizer frames one sequence and a pair.

    [CLS] and [SEP] are the first and the last token of what the tokenizer makes of a sequence,
    whatever their names (<s> and </s>). A tokenizer that adds nothing gets BERT's frames.

    Attributes:
        pad, unk, cls, sep, mask: the ids; ``all`` has them in this order.
        single, pair: the frames.

    Args:
        tokenizer: of any member.
        folder: that it came from, if its files are to name the tokens.

    Raises:
        BertfastError: one is missing.
    """

    def __init__(self, tokenizer: Tokenizer, folder: str | Path | None = None) -> None:
        ids = special_tokens(tokenizer, folder)
        text = str(
            tokenizer.id_to_token(ids["mask_token"] or 0)
        )  # a token that every tokenizer here has whole
        self.single, self.pair = (
            _probe(tokenizer.encode(text)),
            _probe(tokenizer.encode(text, text)),
        )
        if self.single.added > 1:
            ids["cls_token"], ids["sep_token"] = self.single.ids[0], self.single.ids[-1]
        missing = [
            (SPECIAL_TOKENS[place], ROBERTA_TOKENS[place])
            for place, role in enumerate(ROLES)
            if ids[role] is None
        ]
        if missing:
            brackets, angles = (", ".join(names) for names in zip(*missing, strict=True))
            raise BertfastError(
                f"the tokenizer has no {brackets} (nor {angles}); an encoder's tokenizer is wanted"
            )
        self.all: tuple[int, ...] = tuple(index for index in ids.values() if index is not None)
        self.pad, self.unk, self.cls, self.sep, self.mask = self.all
        if not self.single.added:
            self.single, self.pair = bert_frames(self.cls, self.sep)


def _probe(encoding: Encoding) -> Frame:
    """What the post-processor put around the sequences."""
    slots, before = [], None
    for index, segment, sequence in zip(
        encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
    ):
        if sequence is None or sequence != before:
            slots.append((index if sequence is None else -1, segment))
        before = sequence
    return Frame(tuple(index for index, _ in slots), tuple(segment for _, segment in slots))
