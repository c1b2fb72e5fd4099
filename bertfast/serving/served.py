"""A folder as the server holds it: what a text becomes before the model, and what the model makes
of it.

The front process keeps the tokenizer and the configuration; each worker the weights too. What goes
between them are `Item`s: a payload that the worker understands, and its number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from bertfast.config import EncoderConfig
from bertfast.data.choices import Choice
from bertfast.data.labelled import Example
from bertfast.data.squad import Question
from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.model import ARCHITECTURES
from bertfast.model.checkpoint import is_adapter
from bertfast.model.models import EncoderModel, MaskedLMModel
from bertfast.resolve import resolve
from bertfast.sentences import SentenceEncoder
from bertfast.sentences.cross_encoder import activation_of, is_cross_encoder
from bertfast.sentences.encoder import Tokenized
from bertfast.sentences.modules import ACTIVATIONS
from bertfast.tasks import Classification, MultiLabel, Regression
from bertfast.tokenization import SpecialIds
from bertfast.training.fill import Blanks, MaskFiller
from bertfast.training.precision import find_device, inference_dtype
from bertfast.training.predict import Predictor, outputs_of

from .limits import Refused

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")
UNCUT = 2**31 - 1  # tokens, of an input that is not to be cut
OCCLUDED = 256  # variants of a text at most


class Item(NamedTuple):
    """One input of a model: what a worker is given, and how many tokens it has."""

    payload: Any
    tokens: int


@dataclass(frozen=True)
class Spec:
    """A model to serve: its name, its folder, and where and how it computes."""

    name: str
    folder: str
    device: str | None = None
    precision: str = "fp32"


class Served:
    """A model in both processes.

    Attributes:
        name: that clients call it by.
        folder: that it came from.
        kind: what it is for: "embedding", "fill" or a task's name.
        tokenizer, special, config, max_length: of the model.
    """

    kind: str
    tokenizer: Tokenizer
    special: SpecialIds
    config: EncoderConfig
    max_length: int
    module: nn.Module

    def __init__(self, spec: Spec) -> None:
        self.name, self.folder, self.precision = spec.name, Path(spec.folder), spec.precision

    def without_weights(self) -> Served:
        """This, with no memory for weights: for the process that only tokenizes."""
        self.module.to("meta")
        return self

    def compute(self, operation: str, payloads: Sequence[Any]) -> Any:
        """What the model makes of each payload; in a worker."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """What `/info` and the page say of the model."""
        return {
            "name": self.name,
            "task": self.kind,
            "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.precision],
            "max_input_length": self.max_length,
            "vocab_size": self.config.vocab_size,
        }

    def check_length(self, tokens: int) -> None:
        """Raises Refused where an input that is not to be cut has more tokens than the model."""
        if tokens > self.max_length:
            raise Refused(
                413,
                f"an input has {tokens} tokens and the model {self.name} takes {self.max_length}; "
                'shorten it, or send "truncate": true',
            )


class Embedder(Served):
    """Texts to vectors."""

    kind = "embedding"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        device, dtype = find_device(spec.device), inference_dtype(spec.precision)
        encoder = SentenceEncoder.from_pretrained(resolve(spec.folder).folder).to(device, dtype)
        self.encoder = self.module = encoder
        assert encoder.special is not None
        self.tokenizer, self.special = encoder.tokenizer, encoder.special
        self.config, self.max_length = encoder.encoder.config, encoder.max_length
        self.width = min(encoder.width, encoder.truncate_dim or encoder.width)

    def described(self) -> dict[str, Any]:
        return super().described() | {
            "width": self.width,
            "pooling": list(self.encoder.pooling),
            "prompts": sorted(self.encoder.prompts),
        }

    def encode_texts(
        self, texts: Sequence[str], prompt_name: str | None, truncate: bool
    ) -> tuple[str, list[Item]]:
        """The operation, and each text's item."""
        try:
            if not truncate:
                self.encoder.max_length = UNCUT
            rows, skip, _ = self.encoder.tokenize(texts, prompt_name=prompt_name)
        finally:
            self.encoder.max_length = self.max_length
        for row in rows:
            self.check_length(len(row))
        return f"embed:{skip}", [Item(row, len(row)) for row in rows]

    def encode_ids(self, rows: Sequence[Sequence[int]], truncate: bool) -> tuple[str, list[Item]]:
        """Likewise of token ids; special tokens are put around a row that does not begin with the
        first of them.
        """
        frame, items = self.special.single, []
        for row in rows:
            for index in row:
                if not 0 <= index < self.config.vocab_size:
                    raise Refused(
                        422,
                        f"a token id is {index}; the ids of the model {self.name} are 0 to "
                        f"{self.config.vocab_size - 1}",
                    )
            framed = bool(row) and row[0] == self.special.cls
            added = 0 if framed else frame.added
            if not truncate:
                self.check_length(len(row) + added)
            kept = list(row)[: self.max_length - added]
            ids = kept if framed else [index for part in frame.around(kept) for index in part]
            items.append(Item(np.array(ids, dtype=np.int32), len(ids)))
        return "embed:0", items

    def compute(self, operation: str, payloads: Sequence[Any]) -> NDArray[np.float32]:
        skip = int(operation.partition(":")[2])
        return self.encoder.encode_tokens(Tokenized(list(payloads), skip, 0))


class Tasked(Served):
    """Whatever a task's model says of an example."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.predictor = Predictor(spec.folder, device=spec.device, precision=spec.precision)
        self.task, self.module = self.predictor.task, self.predictor.model
        self.kind, self.tokenizer = self.task.name, self.predictor.tokenizer
        folder = resolve(spec.folder).folder
        self.special = SpecialIds(self.tokenizer, folder)
        self.config, self.max_length = self.module.config, self.predictor.max_length
        held = read_object(folder / "config.json", optional=True)
        self.activation = ACTIVATIONS[activation_of(folder, held) or "Sigmoid"]()

    def described(self) -> dict[str, Any]:
        found = super().described()
        if self.task.classes:
            found["labels"] = [self.config.id2label[n] for n in range(self.config.num_labels)]
        return found | {"reranks": self.reranks, "classifies": self.classifies}

    @property
    def reranks(self) -> bool:
        """Whether the model gives one number for a pair, as a cross-encoder does."""
        return isinstance(self.task, Regression)

    def encode(self, examples: Sequence[Any], truncate: bool) -> tuple[str, list[Any]]:
        """The operation, and the inputs, which the prediction is made of too."""
        # Tasks whose texts stand in windows cut none.
        windows = self.kind in ("token-classification", "question-answering")
        longest = self.max_length if truncate or windows else UNCUT
        inputs = self.task.encode(examples, self.tokenizer, self.config, longest)
        if not truncate:
            for item in inputs:
                if item.truncated and windows:
                    raise Refused(
                        413,
                        "a question is longer than the model takes; shorten it, or send "
                        '"truncate": true',
                    )
                for part in getattr(item, "parts", (item,)):
                    self.check_length(part.tokens)
        return "task", inputs

    def examples(self, texts: Sequence[str | tuple[str, str]]) -> list[Any]:
        """Texts, and pairs of them, as the task's examples."""
        return [
            self.task.of_text(number, text) if isinstance(text, str) else Example(number, *text)
            for number, text in enumerate(texts, 1)
        ]

    def predictions(
        self, outputs: Sequence[Any], inputs: Sequence[Any], examples: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """The task's predictions."""
        return self.task.predict(outputs, inputs, examples, self.config)

    def values(
        self, outputs: Sequence[Any], inputs: Sequence[Any], examples: Sequence[Any]
    ) -> list[dict[str, float]]:
        """Each label's probability; of a regression its number, as the label "score"."""
        made = self.predictions(outputs, inputs, examples)
        return [one.get("probabilities") or {"score": one["score"]} for one in made]

    @property
    def classifies(self) -> bool:
        """Whether the task gives a text, or a pair, a value for each label."""
        return isinstance(self.task, Classification | MultiLabel | Regression)

    def ranking(self, outputs: Sequence[Tensor], raw: bool) -> list[float]:
        """The scores of a cross-encoder's pairs; past its folder's activation, unless ``raw``."""
        scores = torch.cat(list(outputs))
        return (scores if raw else self.activation(scores)).tolist()

    def logits(self, outputs: Sequence[Tensor]) -> list[dict[str, float]]:
        """Each label's logit."""
        return [
            {self.config.id2label[n]: value for n, value in enumerate(output.tolist())}
            for output in outputs
        ]

    def compute(self, operation: str, payloads: Sequence[Any]) -> list[Any]:
        return outputs_of(self.task, self.module, payloads, self.predictor.device)


class Filler(Served):
    """Words for the masks of a text."""

    kind = "fill"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.filler = MaskFiller(spec.folder, device=spec.device, precision=spec.precision)
        self.module, self.tokenizer = self.filler.model, self.filler.tokenizer
        self.special, self.config = self.filler.special, self.filler.model.config
        self.max_length = self.config.max_length

    def described(self) -> dict[str, Any]:
        mask = str(self.tokenizer.id_to_token(self.special.mask))
        return super().described() | {"mask": mask}

    def encode(
        self, texts: Sequence[str], top: int, truncate: bool
    ) -> tuple[str, list[Item], list[Blanks]]:
        """The operation, the items, and what `MaskFiller.words` makes the answers of."""
        blanks = [self.filler.blanks(text) for text in texts]
        if not truncate and any(one.truncated for one in blanks):
            raise Refused(
                413,
                f"a text has more tokens than the {self.max_length} of the model {self.name}; "
                'shorten it, or send "truncate": true',
            )
        return "fill", [Item((one.ids, top), len(one.ids)) for one in blanks], blanks

    def compute(self, operation: str, payloads: Sequence[Any]) -> list[Any]:
        return self.filler.likeliest([ids for ids, _ in payloads], max(top for _, top in payloads))


def load_served(spec: Spec) -> Served:
    """The model of a folder, whatever it is for.

    Raises:
        BertfastError: the folder holds no model that can be served.
    """
    folder = resolve(spec.folder).folder
    if is_cross_encoder(folder):  # the newest of which have modules too
        return Tasked(spec)
    if (folder / "modules.json").is_file():
        return Embedder(spec)
    settings = read_object(folder / "metrics.json", optional=True).get("settings")
    if is_adapter(folder) or (isinstance(settings, dict) and "task" in settings):
        return Tasked(spec)
    named = read_object(folder / "config.json").get("architectures") or [None]
    name = named[0] if isinstance(named, list) else named
    known = ARCHITECTURES.get(name) if isinstance(name, str) else EncoderModel
    if known is not None and issubclass(known, EncoderModel):
        return Embedder(spec)
    if known is not None and issubclass(known, MaskedLMModel):
        return Filler(spec)
    return Tasked(spec)


def specs_of(models: Sequence[str], device: str | None, precision: str) -> list[Spec]:
    """What ``bertfast serve`` was given: folders, Hub ids, or NAME=DIR; names are unlike.

    Raises:
        BertfastError: there is no such folder, or two have one name.
    """
    specs: dict[str, Spec] = {}
    for model in models:
        name, equals, folder = model.partition("=")
        if not equals or Path(model).is_dir():
            name, folder = "", model
        source = resolve(folder)
        # "." has no name of its own.
        name = name or (source.folder.resolve().name if source.revision is None else folder)
        if name in specs:
            raise BertfastError(
                f"{model}: another model is named {name!r} already; give NAME=DIR to name them"
            )
        specs[name] = Spec(name, str(source.folder), device, precision)
    return list(specs.values())


def occluded(text: str) -> tuple[list[tuple[int, int]], list[str]]:
    """The spans of a text's words, and the text without each; neighbours go together where there
    are more than `OCCLUDED`.
    """
    words = [match.span() for match in WORD.finditer(text)]
    group = -(-len(words) // OCCLUDED) or 1
    spans = [
        (words[start][0], words[min(start + group, len(words)) - 1][1])
        for start in range(0, len(words), group)
    ]
    return spans, [f"{text[:start]}{text[end:]}" for start, end in spans]


def question(context: str, asked: str, number: int = 1) -> Question:
    """An example of question answering."""
    return Question(number, str(number), asked, context)


def choice(text: str, asked: str, choices: Sequence[str], number: int = 1) -> Choice:
    """An example of multiple choice."""
    return Choice(number, text, asked, tuple(choices))


def entries(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first."""
    return [
        {"label": label, "score": value}
        for label, value in sorted(values.items(), key=lambda pair: -pair[1])
    ]


def chunks(texts: Sequence[str], characters: int) -> Iterator[slice]:
    """Runs of texts of so many characters, one text at least."""
    start = size = 0
    for end, text in enumerate(texts):
        if end > start and size + len(text) > characters:
            yield slice(start, end)
            start, size = end, 0
        size += len(text)
    if len(texts) > start:
        yield slice(start, len(texts))
