"""The answer to a question, a span of its context, or that there is none. Devlin et al., "BERT",
sections 4.2 and 4.3.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bertfast.config import EncoderConfig
from bertfast.data import squad
from bertfast.data.columns import NONE, Columns
from bertfast.data.squad import Question
from bertfast.data.windows import windows
from bertfast.errors import BertfastError
from bertfast.escape import one_line
from bertfast.packed import PackedBatch
from bertfast.registry import SUMMARIES
from bertfast.scoring import Scorer, mean_of
from bertfast.tokenization import SpecialIds

from .registry import Task, register_task

THRESHOLD = "no_answer_threshold"


@dataclass(frozen=True)
class Passage:
    """A question with a window of its context.

    Attributes:
        ids, segments: of its tokens, special tokens included.
        example: the question's place among the examples.
        first: place of the window's first token of the context.
        spans: of each of the window's tokens of the context, in characters.
        target: the answer's first and last place; both 0, the first token, where the window does
            not hold it. None where there is none to learn.
        truncated: whether the question was cut.
    """

    ids: list[int]
    segments: list[int]
    example: int
    first: int
    spans: list[tuple[int, int]]
    target: tuple[int, int] | None = None
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens the input has."""
        return len(self.ids)


class Candidate(NamedTuple):
    """A span of the context, the sum of its two logits, and its probability."""

    start: int
    end: int
    logit: float
    probability: float


class Found(NamedTuple):
    """The candidates of a question, the best first; and the least sum of logits of no answer over
    its windows, with its probability.
    """

    candidates: list[Candidate]
    null: float
    null_probability: float

    @property
    def doubt(self) -> float:
        """By how much "no answer" is ahead of the best candidate, in logits."""
        return self.null - self.candidates[0].logit if self.candidates else float("inf")


@register_task
class QuestionAnswering(Task):
    """Answers that stand in a context, as in SQuAD 1.1 and 2.0.

    A context longer than an input stands in windows that overlap. Where training has questions
    without an answer, the threshold from which on none is given is chosen on the dev data.
    """

    name, summary = "question-answering", SUMMARIES["task"]["question-answering"]
    options = MappingProxyType(
        {"overlap": 128, "max_question_length": 64, "max_answer_length": 30, "n_best": 5}
    )
    scores: ClassVar = {"f1": "F1", "exact": "exact match"}
    head = "ForQuestionAnswering"
    pipeline = "question-answering"
    usage = ('"a question?" "a context"', 'question="a question?", context="a context"')

    def recognizes(self, path: Path) -> bool:
        return squad.is_squad(path)

    def columns(self, path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
        return squad.find_columns(path, columns, trained)

    def read(self, path: str | Path, columns: Columns, labels: bool = True) -> list[Question]:
        return squad.read_questions(path, columns, labels)

    def of_text(self, line: int, text: str) -> Question:
        raise BertfastError(
            f"line {line}: is a text alone, and a question has a context; give SQuAD's JSON, or a "
            "table with the columns question and context"
        )

    def of_arguments(self, arguments: Sequence[str]) -> list[Question]:
        if len(arguments) % 2:
            raise BertfastError(f"got {len(arguments)} texts; give a question and its context")
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        return [Question(n, str(n), *pair) for n, pair in enumerate(pairs, 1)]

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        if not any(example.answers for example in examples):
            raise BertfastError(
                f"{source}: no question has an answer; there is nothing to learn but silence"
            )
        return config

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: EncoderConfig,
        max_length: int,
        source: str | Path | None = None,
    ) -> list[Passage]:
        for name in ("max_question_length", "max_answer_length", "n_best"):
            if self.options[name] < 1:
                raise BertfastError(f"{name} is {self.options[name]}; it must be at least 1")
        frame = SpecialIds(tokenizer).pair
        # A context that many questions share is encoded once.
        texts = list(dict.fromkeys(example.context for example in examples))
        contexts = dict(
            zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True)
        )
        questions = tokenizer.encode_batch_fast(
            [example.text for example in examples], add_special_tokens=False
        )
        room = max_length - frame.added
        longest = min(self.options["max_question_length"], max(1, room // 2))
        passages = []
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            context, asked = contexts[example.context], question.ids[:longest]
            learned = None if source is None else _places(example, context.offsets)
            for start, end in windows(len(context.ids), room - len(asked), self.options["overlap"]):
                parts = frame.around(asked, context.ids[start:end])
                first = sum(map(len, parts[: frame.ids.index(-1, frame.ids.index(-1) + 1)]))
                target = None
                if source is not None:
                    inside = learned is not None and start <= learned[0] and learned[1] < end
                    target = (0, 0)
                    if learned is not None and inside:
                        target = (learned[0] - start + first, learned[1] - start + first)
                passages.append(
                    Passage(
                        ids=[index for part in parts for index in part],
                        segments=frame.segment_ids(len(asked), end - start).tolist(),
                        example=number,
                        first=first,
                        spans=context.offsets[start:end],
                        target=target,
                        truncated=len(question.ids) > longest,
                    )
                )
        return passages

    def batch(self, inputs: Sequence[Any]) -> PackedBatch:
        batch = PackedBatch.from_sequences(
            [item.ids for item in inputs], [item.segments for item in inputs]
        )
        if inputs and inputs[0].target is not None:
            targets = torch.tensor([item.target for item in inputs])
            batch.start_positions, batch.end_positions = targets[:, 0], targets[:, 1]
        return batch

    def outputs(self, output: Any, inputs: Sequence[Any]) -> list[NDArray[np.float32]]:
        """(tokens + 1, 2) of each window: the logits of its first token, which stands for no
        answer, and those of its tokens of the context.
        """
        logits = torch.stack([output.start_logits, output.end_logits], -1).float().cpu().numpy()
        found, start = [], 0
        for item in inputs:
            first = start + item.first
            context = logits[first : first + len(item.spans)]
            found.append(np.concatenate([logits[start : start + 1], context]))
            start += item.tokens
        return found

    def scorer(
        self,
        outputs: Sequence[Any],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        """Of the threshold that is kept, or else of the best one for these examples."""
        found, kept = self._found(outputs, inputs, examples), self.kept
        threshold = kept[THRESHOLD] if THRESHOLD in kept else best_threshold(found, examples)
        texts = answers_of(found, examples, threshold)
        rows = count(texts, [_right(example) for example in examples])
        return mean_of({"f1": rows[:, 0], "exact": rows[:, 1]})

    def stratum(self, example: Any) -> Hashable:
        """Whether there is an answer."""
        return bool(example.answers)

    def fit(
        self,
        outputs: Sequence[Any],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """`THRESHOLD`: how far ahead "no answer" must be, in logits, to be given; None for never,
        where every question has an answer.
        """
        return {THRESHOLD: best_threshold(self._found(outputs, inputs, examples), examples)}

    def predict(
        self,
        outputs: Sequence[Any],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``answer``, its ``start`` and ``end`` in characters of the context, its ``score`` (a
        probability), and the ``n_best``, each likewise.

        No answer is "", with ``start`` and ``end`` null.
        """
        found = self._found(outputs, inputs, examples)
        threshold = self.kept.get(THRESHOLD)
        made = []
        for example, one in zip(examples, found, strict=True):
            nothing = {"answer": "", "start": None, "end": None, "score": one.null_probability}
            best = [
                {
                    "answer": example.context[start:end],
                    "start": start,
                    "end": end,
                    "score": probability,
                }
                for start, end, _, probability in one.candidates
            ]
            silent = not best or (threshold is not None and one.doubt > threshold)
            if threshold is not None:
                best = sorted([*best, nothing], key=lambda answer: -answer["score"])
            made.append(
                {
                    **(nothing if silent else next(a for a in best if a["answer"])),
                    "n_best": best[: self.options["n_best"]],
                }
            )
        return made

    def echo(self, example: Any) -> dict[str, Any]:
        return {"question": example.text, "id": example.id}

    def wanted(self, example: Any) -> str:
        return " / ".join(dict.fromkeys(one_line(answer.text) for answer in example.answers)) or "-"

    def shown(self, prediction: dict[str, Any]) -> str:
        return f"{one_line(prediction['answer']) or '-'}\t{prediction['score']:.3f}"

    def _found(
        self, outputs: Sequence[Any], inputs: Sequence[Any], examples: Sequence[Any]
    ) -> list[Found]:
        of: list[list[int]] = [[] for _ in examples]
        for place, item in enumerate(inputs):
            of[item.example].append(place)
        options = self.options["max_answer_length"], self.options["n_best"]
        return [
            candidates(
                [outputs[place] for place in places], [inputs[p].spans for p in places], *options
            )
            for places in of
        ]


def candidates(
    logits: Sequence[NDArray[np.float32]],
    spans: Sequence[Sequence[tuple[int, int]]],
    longest: int,
    most: int,
) -> Found:
    """The likeliest spans of a question's windows.

    Their order is that of the sums of their logits, over all windows. A probability is the product
    of those of a start and of an end. Each is a softmax over the tokens of every window, the first
    ones included. With one window that is the score of the pipeline of `transformers`.

    Args:
        logits: (tokens + 1, 2) of each window, the first token's before those of the context.
        spans: of each window's tokens of the context.
        longest: tokens of a candidate at most.
        most: candidates.
    """
    total = np.concatenate(logits).astype(np.float64)
    top = total.max(0)
    norm = top + np.log(np.exp(total - top).sum(0))
    null = min(float(window[0].astype(np.float64).sum()) for window in logits)
    best: dict[tuple[int, int], float] = {}
    for window, places in zip(logits, spans, strict=True):
        rows = window[1:].astype(np.float64)
        tokens = len(rows)
        if not tokens:
            continue
        width = min(longest, tokens)
        ends = np.pad(rows[:, 1], (0, width - 1), constant_values=-np.inf)
        sums = rows[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, width)
        # Spans that differ in tokens may be one in characters: a few more are looked at.
        wanted = min(sums.size, 2 * most + 10)
        flat = sums.ravel()
        for place in np.argpartition(-flat, wanted - 1)[:wanted].tolist():
            first, length = divmod(place, width)
            if np.isinf(flat[place]):
                continue
            span = places[first][0], places[first + length][1]
            if span[0] < span[1]:
                best[span] = max(best.get(span, -np.inf), float(flat[place]))
    order = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:most]
    whole = float(norm.sum())
    return Found(
        [Candidate(*span, logit, float(np.exp(logit - whole))) for span, logit in order],
        null,
        float(np.exp(null - whole)),
    )


def answers_of(
    found: Sequence[Found], examples: Sequence[Any], threshold: float | None
) -> list[str]:
    """The text of each question's answer; "" where no answer is ahead by more than a threshold."""
    texts = []
    for one, example in zip(found, examples, strict=True):
        silent = not one.candidates or (threshold is not None and one.doubt > threshold)
        texts.append("" if silent else example.context[slice(*one.candidates[0][:2])])
    return texts


def best_threshold(found: Sequence[Found], examples: Sequence[Any]) -> float | None:
    """The threshold of the highest F1, halfway between two questions' doubts; None where every
    question has an answer.
    """
    if all(example.answers for example in examples):
        return None
    doubts = np.array([one.doubt for one in found])
    texts = answers_of(found, examples, None)
    rights = [_right(example) for example in examples]
    gains = np.array(
        [f1(text, right) - f1("", right) for text, right in zip(texts, rights, strict=True)]
    )
    order = np.argsort(doubts, kind="stable")
    doubts, sums = doubts[order], np.concatenate([[0.0], gains[order].cumsum()])
    # A cut between two equal doubts is none.
    cuts = [
        place
        for place in range(len(doubts) + 1)
        if place in (0, len(doubts)) or doubts[place - 1] < doubts[place]
    ]
    cut = max(cuts, key=lambda place: sums[place])
    finite = doubts[np.isfinite(doubts)]
    if not len(finite):
        return 0.0
    below = doubts[cut - 1] if cut else finite[0] - 2.0
    above = doubts[cut] if cut < len(doubts) else finite[-1] + 2.0
    return float(min(below, finite[-1]) + min(above, finite[-1] + 2.0)) / 2


def score(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 and exact match, means over questions, as shares of 1: a hundredth of what SQuAD's script
    prints.

    Args:
        predicted: each question's answer; "" for none.
        right: each question's right answers; none where it has none.
    """
    rows = count(predicted, right)
    return dict(zip(("f1", "exact"), rows.mean(0).tolist(), strict=True))


def count(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """(questions, 2): each question's F1 and exact match, of the right answer that fits best."""
    rows = [
        (f1(text, texts), exact(text, texts)) for text, texts in zip(predicted, right, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 2)


def normalized(text: str) -> str:
    """The text in lower case, less ASCII punctuation, articles and doubled spaces."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact(text: str, right: Sequence[str]) -> float:
    """1 where the normalized text is one of the right answers, else 0."""
    return float(any(normalized(text) == normalized(other) for other in _meant(right)))


def f1(text: str, right: Sequence[str]) -> float:
    """The overlap of the normalized text's words with those of the right answer that fits best."""
    return max(_overlap(normalized(text).split(), normalized(o).split()) for o in _meant(right))


_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _meant(right: Sequence[str]) -> Sequence[str]:
    """The right answers that have any word; [""] where none has: no answer is right."""
    return [text for text in right if normalized(text)] or [""]


def _overlap(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    same = sum((Counter(words) & Counter(others)).values())
    return 2 * same / (len(words) + len(others))


def _right(example: Any) -> list[str]:
    return [answer.text for answer in example.answers]


def _places(example: Any, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token of the first answer; None where there is no answer, or no token
    of it.
    """
    if not example.answers:
        return None
    text, start = example.answers[0]
    end = start + len(text)
    inside = [place for place, (left, right) in enumerate(offsets) if left < end and right > start]
    return (inside[0], inside[-1]) if inside else None
