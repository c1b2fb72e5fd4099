"""Cross-encoders, in the folders of sentence-transformers.

They give a score of a query and a document that are read together (Nogueira and Cho, "Passage
Re-ranking with BERT", 2019).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from bertfast.errors import BertfastError
from bertfast.files import read_object, write_text
from bertfast.kernels.linear import constant_weights
from bertfast.model import load_config, member_class
from bertfast.model.models import ForSequenceClassification
from bertfast.packed import PackedBatch, runs_of_tokens
from bertfast.progress import LiveBar
from bertfast.resolve import resolve
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer, save_tokenizer

from .encoder import BATCH_TOKENS, MANY
from .folder import EXTRA
from .modules import ACTIVATIONS

HEAD = "ForSequenceClassification"
Pairs = Sequence[tuple[str, str]]


class CrossEncoder(nn.Module):
    """A sequence classifier whose number, or numbers, are of pairs of texts.

    Attributes:
        model: the classifier.
        tokenizer: its tokenizer.
        max_length: tokens that a pair is cut to; it may be set.
        activation: what is made of the numbers: the name of one of torch's modules.

    Args:
        model: of any member.
        tokenizer: that gives its ids.
        max_length: as above; None is the model's positions.
        activation: as above; None is Sigmoid of one number, and Identity of several.
        special: the tokenizer's special tokens, where their names came with it.

    Raises:
        BertfastError: an unknown activation.
    """

    def __init__(
        self,
        model: ForSequenceClassification,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        activation: str | None = None,
        special: SpecialIds | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.special = model, tokenizer, special
        most = model.config.max_length
        self.max_length = most if max_length is None else min(max_length, most)
        self.activation = activation or ("Sigmoid" if self.num_labels == 1 else "Identity")
        if self.activation not in ACTIVATIONS:
            raise BertfastError(
                f"activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def num_labels(self) -> int:
        """Numbers of a pair."""
        return self.model.config.num_labels

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def forward(self, batch: PackedBatch, *, seed: int | Tensor | None = None) -> Tensor:
        """(pairs, labels) of a packed batch, before the activation, with gradients."""
        logits: Tensor = self.model(batch, seed=seed).logits
        return logits

    def tokenize(self, pairs: Pairs) -> list[tuple[list[int], list[int]]]:
        """The ids and the segments of pairs; of one that is too long the longer text is cut.

        Raises:
            BertfastError: what is no pair of texts.
        """
        for number, pair in enumerate(pairs):
            if (
                isinstance(pair, str)
                or len(pair) != 2
                or not all(isinstance(text, str) for text in pair)
            ):
                raise BertfastError(f"pair {number} is {pair!r:.80}; it must be of two texts")
        self.tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        try:
            found = self.tokenizer.encode_batch_fast([tuple(pair) for pair in pairs])
        except TypeError as error:
            raise BertfastError(
                "a text holds half of a surrogate pair, which is no character"
            ) from error
        finally:
            self.tokenizer.no_truncation()
        return [(one.ids, one.type_ids) for one in found]

    def predict(
        self,
        pairs: Pairs | tuple[str, str],
        *,
        batch_size: int | None = None,
        activation: str | None = None,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
    ) -> Any:
        """The scores of pairs, (pairs,) float32, or (pairs, labels) of several; of one pair by
        itself, without the first size.

        Args:
            pairs: of texts, or one pair.
            batch_size: pairs of a batch at most; None is as many as fill a number of tokens that
                suits the device.
            activation: in place of the model's.
            show_progress_bar: on standard error.
            convert_to_tensor: give a tensor on the model's device.

        Raises:
            BertfastError: what is no pair of texts, a batch size below 1, or an unknown activation.
        """
        single = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        rows = self.tokenize([pairs] if single else pairs)  # type: ignore[list-item,arg-type]
        name = activation or self.activation
        if name not in ACTIVATIONS:
            raise BertfastError(
                f"activation is {name!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )
        if batch_size is not None and batch_size < 1:
            raise BertfastError(f"batch_size is {batch_size}; it must be at least 1")
        scores = self._scores(rows, batch_size, show_progress_bar)
        found = ACTIVATIONS[name]()(torch.from_numpy(scores))
        if self.num_labels == 1:
            found = found[:, 0]
        found = found[0] if single else found
        return found.to(self.device) if convert_to_tensor else found.numpy()

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents in the order of their scores, the best first: ``corpus_id``, ``score``, and
        with ``return_documents`` ``text``.

        Args:
            query: see above.
            documents: see above.
            top_k: how many; None for all.
            return_documents: as above.
            options: of `predict`.

        Raises:
            BertfastError: as of `predict`, or the model gives several numbers.
        """
        if self.num_labels != 1:
            raise BertfastError(
                f"the model gives {self.num_labels} numbers a pair; documents are ordered by one"
            )
        documents = list(documents)
        options.pop("convert_to_tensor", None)
        scores = self.predict([(query, document) for document in documents], **options)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [
            {"corpus_id": int(row), "score": float(scores[row])}
            | ({"text": documents[row]} if return_documents else {})
            for row in order
        ]

    def _scores(
        self,
        rows: Sequence[tuple[list[int], list[int]]],
        batch_size: int | None,
        show_progress: bool,
    ) -> NDArray[np.float32]:
        """(pairs, labels), before the activation."""
        scores = np.empty((len(rows), self.num_labels), dtype=np.float32)
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        longest_first = np.argsort(-lengths, kind="stable")
        budget = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        progress = LiveBar(len(rows), label="rerank") if show_progress and len(rows) else None
        was_training, done = self.training, 0
        self.eval()
        try:
            many = lengths.sum() >= MANY
            with (
                torch.inference_mode(),
                constant_weights() if many else nullcontext(),
                progress or nullcontext(),
            ):
                for run in runs_of_tokens(lengths[longest_first].tolist(), budget, batch_size):
                    chosen = longest_first[run]
                    batch = pack_pairs([rows[row] for row in chosen]).to(self.device)
                    scores[chosen] = self(batch).float().cpu().numpy()
                    done += len(chosen)
                    if progress is not None:
                        progress.advance(done, "")
        finally:
            self.train(was_training)
        return scores

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        num_labels: int | None = None,
    ) -> Self:
        """From a folder of `CrossEncoder` of sentence-transformers, or of a sequence classifier; on
        this machine, or on the Hub.

        Args:
            model: the folder, or the Hub id.
            revision: branch, tag or commit on the Hub.
            num_labels: of a new head over another encoder; None refuses a folder without a head.

        Raises:
            BertfastError: the folder cannot be read, or a weight is missing or misshapen.
        """
        folder = resolve(model, revision).folder
        config, held = load_config(folder), read_object(folder / "config.json")
        headed = any(HEAD in str(name) for name in held.get("architectures") or ())
        if not headed and num_labels is None:
            raise BertfastError(
                f"{folder}: has no head that scores pairs; train one with bertfast rerank"
            )
        if not headed:
            config = config.overridden(num_labels=num_labels)
        made = member_class(config, HEAD).from_pretrained(
            folder, config=config, new_head_ok=not headed
        )
        assert isinstance(made, ForSequenceClassification)
        tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(tokenizer, config, f"{folder}: the tokenizer")
        return cls(
            made,
            tokenizer,
            max_length=_longest(folder),
            activation=activation_of(folder, held),
            special=SpecialIds(tokenizer, folder),
        ).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `CrossEncoder` of sentence-transformers loads, and `transformers` as
        a sequence classifier.

        Raises:
            BertfastError: the folder cannot be written to.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        segments = self.model.config.type_vocab_size > 1
        save_tokenizer(self.tokenizer, folder, self.max_length, self.special, segments)
        kind = ACTIVATIONS[self.activation]
        config = read_object(folder / "config.json")
        config["sentence_transformers"] = {
            "activation_fn": f"{kind.__module__}.{kind.__name__}",
            "version": "4.0.0",
        }
        write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def pack_pairs(rows: Sequence[tuple[list[int], list[int]]]) -> PackedBatch:
    """The ids and segments of pairs, packed."""
    return PackedBatch.from_sequences([ids for ids, _ in rows], [kinds for _, kinds in rows])


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder says that it is a `CrossEncoder` of sentence-transformers."""
    if read_object(folder / EXTRA, optional=True).get("model_type") == "CrossEncoder":
        return True
    return "activation_fn" in _said(read_object(folder / "config.json", optional=True))


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """What sentence-transformers says in a config.json, in its releases' places."""
    said = config.get("sentence_transformers")
    said = said if isinstance(said, dict) else {}
    old = config.get("sbert_ce_default_activation_function")
    return said if old is None else {"activation_fn": old, **said}


def activation_of(folder: Path, config: dict[str, Any]) -> str | None:
    """The name of the activation that a folder says.

    Raises:
        BertfastError: it is none of torch's.
    """
    said = _said(config).get("activation_fn") or read_object(folder / EXTRA, optional=True).get(
        "activation_fn"
    )
    if said is None:
        return None
    name = str(said).rpartition(".")[2]
    if not str(said).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise BertfastError(
            f"{folder}: activation_fn is {said}; supported are {', '.join(ACTIVATIONS)}"
        )
    return name


def _longest(folder: Path) -> int | None:
    """Tokens of a pair that a folder's tokenizer takes; None where it does not say."""
    length = read_object(folder / "tokenizer_config.json", optional=True).get("model_max_length")
    whole = isinstance(length, int) and not isinstance(length, bool) and length > 3
    return length if whole else None
