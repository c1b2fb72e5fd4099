"""A tag for each word: named entities, parts of speech. Devlin et al., "BERT", section 5.3."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data import tagged, tagging
from bertfast.data.columns import NONE, Columns
from bertfast.data.labels import MOST_CLASSES, listed, quoted
from bertfast.data.tagged import Sentence
from bertfast.data.windows import widest, windows
from bertfast.errors import BertfastError
from bertfast.escape import one_line
from bertfast.packed import IGNORE_INDEX, PackedBatch
from bertfast.registry import SUMMARIES
from bertfast.scoring import LabelTable, Scorer, sums_of
from bertfast.scoring.bootstrap import Array, ratio
from bertfast.tokenization import SpecialIds

from .registry import Task, register_task

FEW_TAGS = 100  # that may be as many as the words


@dataclass(frozen=True)
class Piece:
    """A window of a sentence.

    Attributes:
        ids, segments: of its tokens, special tokens included.
        example: the sentence's place among the examples.
        words: those whose tags this window says.
        spans: of each of ``words`` in the text.
        places: the first token of each of ``words``.
        target: the tag number of each of ``words``; None where there is none.
        truncated: nothing is ever cut.
    """

    ids: list[int]
    segments: list[int]
    example: int
    words: list[int]
    spans: list[tuple[int, int]]
    places: list[int]
    target: list[int] | None = None
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens the window has."""
        return len(self.ids)


@register_task
class TokenClassification(Task):
    """Words with tags: entities in BIO, IO, IOB1, BIOES or BILOU, or plain tags.

    A word's tag is that of its first token; its other tokens are neither trained nor read. A
    sentence longer than an input stands in windows, and each word is trained and predicted once, in
    the window with most context around it.
    """

    name, summary = "token-classification", SUMMARIES["task"]["token-classification"]
    options = MappingProxyType({"tag_scheme": tagging.AUTO, "overlap": 128})
    scores: ClassVar = {
        "f1": "entity F1",
        "precision": "entity precision",
        "recall": "entity recall",
        "accuracy": "token accuracy",
    }
    classes = "one"
    head = "ForTokenClassification"
    pipeline = "token-classification"
    usage = ('"some text" "another"', '"some text", aggregation_strategy="first"')

    def recognizes(self, path: Path) -> bool:
        return tagged.is_tagged(path)

    def reads(self, path: Path) -> bool:
        return tagged.has_words(path)

    def columns(self, path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
        return tagged.find_columns(path, columns, trained)

    def read(self, path: str | Path, columns: Columns, labels: bool = True) -> list[Sentence]:
        return tagged.read_sentences(path, columns, labels, self.options["tag_scheme"])

    def of_text(self, line: int, text: str) -> Sentence:
        return Sentence(line, text)

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        counts: dict[str, int] = {}
        for row in examples:
            for tag, line in zip(row.tags, row.lines, strict=True):
                counts.setdefault(tag, line)
        if len(counts) < 2:
            raise BertfastError(
                f"{source}: the training data has {len(counts)} tag(s) ({listed(counts)}); "
                "tagging needs two at least"
            )
        words = sum(len(row.tags) for row in examples)
        if len(counts) > min(MOST_CLASSES, max(FEW_TAGS, words // 2)):
            tag, line = list(counts.items())[-1]
            raise BertfastError(
                f"{source}, line {line}: the tag {quoted(tag)} is one of {len(counts)} different "
                f"ones of {words} words. They look like words or ids, not like tags: "
                "--label-column names another column"
            )
        whole = all(tag.isdecimal() for tag in counts)
        return config.with_labels(sorted(counts, key=int if whole else _in_order))

    def of_model(self, config: EncoderConfig) -> Self:
        """With the scores of entities where its tags are of them."""
        made = copy.copy(self)
        if not tagging.is_bio(config.label2id):
            made.scores = {"accuracy": self.scores["accuracy"]}  # type: ignore[misc]
        return made

    def targets(
        self, examples: Sequence[Any], config: EncoderConfig, source: str | Path
    ) -> list[list[int]]:
        known = config.label2id
        for example in examples:
            for tag, line in zip(example.tags, example.lines, strict=True):
                if tag not in known:
                    raise BertfastError(
                        f"{source}, line {line}: the tag {quoted(tag)} was not seen in training; "
                        f"known are {listed(known)}"
                    )
        return [[known[tag] for tag in example.tags] for example in examples]

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: EncoderConfig,
        max_length: int,
        source: str | Path | None = None,
    ) -> list[Piece]:
        special = SpecialIds(tokenizer)
        targets = None if source is None else self.targets(examples, config, source)
        texts = [example.text for example in examples]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        pieces: list[Piece] = []
        for number, (example, encoding) in enumerate(zip(examples, encodings, strict=True)):
            spans = example.spans
            if spans is None:
                spans = words_of(example.text, encoding)
            ids, firsts = first_pieces(example.text, spans, encoding, special.unk)
            room = max_length - special.single.added
            parts = windows(len(ids), room, self.options["overlap"])
            chosen: list[list[int]] = [[] for _ in parts]
            for word, place in enumerate(firsts):
                chosen[widest(parts, place, len(ids))].append(word)
            before = special.single.ids.index(-1)
            for (start, end), words in zip(parts, chosen, strict=True):
                if not words:  # the middle of a word that is longer than a window
                    continue
                around = special.single.around(ids[start:end])
                pieces.append(
                    Piece(
                        ids=[index for part in around for index in part],
                        segments=special.single.segment_ids(end - start).tolist(),
                        example=number,
                        words=words,
                        spans=[spans[word] for word in words],
                        places=[firsts[word] - start + before for word in words],
                        target=None if targets is None else [targets[number][w] for w in words],
                    )
                )
        return pieces

    def batch(self, inputs: Sequence[Any]) -> PackedBatch:
        batch = PackedBatch.from_sequences(
            [item.ids for item in inputs], [item.segments for item in inputs]
        )
        if inputs and inputs[0].target is not None:
            labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
            rows = _rows(inputs)
            labels[rows] = torch.tensor([tag for item in inputs for tag in item.target])
            batch.token_labels = labels
        return batch

    def outputs(self, output: Any, inputs: Sequence[Any]) -> list[Tensor]:
        """(words, labels) of each window: the logits of its words."""
        logits = output.logits.float()
        rows = _rows(inputs).to(logits.device)
        return list(logits[rows].cpu().split([len(item.places) for item in inputs]))

    def class_targets(self, inputs: Sequence[Any]) -> list[Any]:
        return [tag for item in inputs for tag in item.target]

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        predicted = self._tags(outputs, inputs, examples, config)
        return sums_of(count(predicted, [example.tags for example in examples]), measures)

    def report(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """``table``: a row for each type of entity, or for each plain tag."""
        predicted = self._tags(outputs, inputs, examples, config)
        return {"table": table(predicted, [example.tags for example in examples]).rows()}

    def each(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> NDArray[np.float64]:
        """The share of words with the right tag: a sentence may have no entity."""
        predicted = self._tags(outputs, inputs, examples, config)
        sums = count(predicted, [example.tags for example in examples])
        return measures(sums)["accuracy"]

    def stratum(self, example: Any) -> Hashable:
        """The type of the sentence's first entity."""
        return next((tag[2:] for tag in example.tags if tag.startswith("B-")), None)

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``words`` and their ``tags``, and of entities also ``entities``.

        Each entity has its ``label``, its ``text``, its ``start`` and ``end`` in characters, and
        its ``score``, the mean probability of its words' tags.
        """
        made = []
        of_entities = tagging.is_bio(config.label2id)
        for example, (spans, logits) in zip(
            examples, self._sentences(outputs, inputs, examples), strict=True
        ):
            best = logits.softmax(-1).max(-1)
            tags = [config.id2label[index] for index in best.indices.tolist()]
            values = best.values.double().tolist()
            prediction: dict[str, Any] = {}
            if of_entities:
                prediction["entities"] = [
                    {
                        "label": kind,
                        "text": example.text[spans[start][0] : spans[end - 1][1]],
                        "start": spans[start][0],
                        "end": spans[end - 1][1],
                        "score": sum(values[start:end]) / (end - start),
                    }
                    for kind, start, end in tagging.spans(tags)
                ]
            words = [example.text[start:end] for start, end in spans]
            made.append({**prediction, "words": words, "tags": tags})
        return made

    def echo(self, example: Any) -> dict[str, Any]:
        return {"text": example.text}

    def wanted(self, example: Any) -> str:
        if not tagging.is_bio(set(example.tags)):
            return " ".join(map(one_line, example.tags))
        words = example.words
        return (
            ", ".join(
                f"{one_line(' '.join(words[start:end]))} [{one_line(kind)}]"
                for kind, start, end in tagging.spans(example.tags)
            )
            or "-"
        )

    def shown(self, prediction: dict[str, Any]) -> str:
        found = prediction.get("entities")
        if found is None:
            return " ".join(map(one_line, prediction["tags"]))
        return ", ".join(f"{one_line(e['text'])} [{one_line(e['label'])}]" for e in found) or "-"

    def _tags(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[list[str]]:
        """The likeliest tag of each word."""
        return [
            [config.id2label[index] for index in logits.argmax(-1).tolist()]
            for _, logits in self._sentences(outputs, inputs, examples)
        ]

    def _sentences(
        self, outputs: Sequence[Tensor], inputs: Sequence[Any], examples: Sequence[Any]
    ) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """The spans of each example's words, and their logits, (words, labels)."""
        of: list[list[int]] = [[] for _ in examples]
        for place, item in enumerate(inputs):
            of[item.example].append(place)
        for places in of:
            words = [word for place in places for word in inputs[place].words]
            order = sorted(range(len(words)), key=words.__getitem__)
            spans = [span for place in places for span in inputs[place].spans]
            logits = torch.cat([outputs[place] for place in places] or [torch.zeros(0, 1)])
            yield [spans[row] for row in order], logits[order]


def score(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """`measures` of these tags.

    Args:
        predicted, right: each sentence's tags, in BIO.
    """
    sums = count(predicted, right).sum(0, keepdims=True)
    return {name: float(values[0]) for name, values in measures(sums).items()}


def measures(sums: Array) -> dict[str, Array]:
    """Strict precision, recall and F1 of entities, and the share of words with the right tag.

    The first three are over all entities (micro), as in seqeval with its strict mode and IOB2. What
    is over nothing is 0.

    Args:
        sums: (draws, 5), of what `count` counts.
    """
    both, found, there, same, words = sums.T
    return {
        "f1": ratio(2 * both, found + there),
        "precision": ratio(both, found),
        "recall": ratio(both, there),
        "accuracy": ratio(same, words),
    }


def count(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> Array:
    """(sentences, 5): the entities that were rightly found, those that were found, those that are
    there, the words with the right tag, and the words.
    """
    rows = []
    for said, true in zip(predicted, right, strict=True):
        found, there = set(tagging.entities(said)), set(tagging.entities(true))
        same = sum(one == other for one, other in zip(said, true, strict=True))
        rows.append((len(found & there), len(found), len(there), same, len(true)))
    return np.array(rows, np.float64).reshape(-1, 5)


def table(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> LabelTable:
    """Precision, recall and F1 of each type of entity, or of each tag where none is of one."""
    of_entities = tagging.is_bio({tag for tags in right for tag in tags})
    spans = tagging.entities if of_entities else _single
    rows = [
        (set(spans(said)), set(spans(true))) for said, true in zip(predicted, right, strict=True)
    ]
    types = sorted({one.type for both in rows for found in both for one in found})
    number = {kind: place for place, kind in enumerate(types)}
    counts = np.zeros((3, len(rows), len(types)))
    for place, (said, true) in enumerate(rows):
        for part, found in zip(counts, (said & true, true, said), strict=True):
            for one in found:
                part[place, number[one.type]] += 1
    return LabelTable.of_counts(types, *counts)


def _single(tags: Sequence[str]) -> list[tagging.Entity]:
    """Plain tags as entities of a word each."""
    return [tagging.Entity(tag, place, place + 1) for place, tag in enumerate(tags)]


def words_of(text: str, encoding: Encoding) -> list[tuple[int, int]]:
    """The words of a text: those of the tokenizer, parted at punctuation where a token begins."""
    found: dict[int, tuple[int, int]] = {}
    begins = set()
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        while start < end and text[start].isspace():
            start += 1
        if word is not None and start < end:
            begins.add(start)
            first, last = found.get(word, (start, end))
            found[word] = (min(first, start), max(last, end))
    spans: list[tuple[int, int]] = []
    for start, end in sorted(found.values()):
        parts = BertPreTokenizer().pre_tokenize_str(text[start:end])
        cuts = [start + left for _, (left, _) in parts[1:] if start + left in begins]
        spans += zip([start, *cuts], [*cuts, end], strict=True)
    return spans


def first_pieces(
    text: str, spans: Sequence[tuple[int, int]], encoding: Encoding, unk: int
) -> tuple[list[int], list[int]]:
    """The token ids, and the place of each word's first one.

    A word that the tokenizer leaves nothing of (a control character, say) gets the unknown token,
    so that it has a tag too.
    """
    ids: list[int] = []
    firsts: list[int] = []
    for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        while start < end and text[start].isspace():
            start += 1
        word = len(firsts)
        while word < len(spans) and spans[word][1] <= start:
            word += 1
        inside = word < len(spans) and spans[word][0] <= start < min(end, spans[word][1])
        if inside:  # the first token of this word; those between have none
            for _ in range(len(firsts), word):
                firsts.append(len(ids))
                ids.append(unk)
            firsts.append(len(ids))
        ids.append(index)
    for _ in range(len(firsts), len(spans)):
        firsts.append(len(ids))
        ids.append(unk)
    return ids, firsts


def _rows(inputs: Sequence[Any]) -> Tensor:
    """The rows of the words' first tokens in the batch."""
    rows, start = [], 0
    for item in inputs:
        rows += [start + place for place in item.places]
        start += item.tokens
    return torch.tensor(rows, dtype=torch.int64)


def _in_order(tag: str) -> tuple[bool, str, str]:
    """O first, then types by spelling, B before I."""
    letter, _, kind = tag.partition("-")
    return tag != tagging.OUTSIDE, kind, letter
