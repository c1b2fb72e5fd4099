"""Sentence embeddings in batches of 64: ours packed, sentence-transformers' sorted by length and
padded, from text and from tokens.

Without a text the paragraphs are made up: as many words, each a token of its own, as WikiText's
paragraphs have tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data.readers import open_text
from bertfast.errors import BertfastError
from bertfast.model import member_class
from bertfast.model.models import EncoderModel
from bertfast.sentences import SentenceEncoder
from bertfast.tokenization import SPECIAL_TOKENS, wordpiece_tokenizer

from . import floors, options
from .case import Case, Setup, reason
from .lengths import Lengths
from .timing import Side

BATCH = 64
LONGEST = 256  # tokens, as all-MiniLM-L6-v2 has it
# bfloat16 rounds at every layer, and sides round at different places.
TOLERANCE = {"float32": 2e-4, "bfloat16": 8e-2}


def case(
    setup: Setup, *, tokenized: bool = False, text: Path | None = None, folder: Path | None = None
) -> Case:
    """Paragraphs to vectors, with tokenization or past it.

    Args:
        setup: where neither a text nor a folder is given, its lengths are those of the made-up
            paragraphs, and its configuration the model's.
        tokenized: leave tokenization out.
        text: a paragraph a line, of which as many are taken as the setup has lengths; headings and
            empty lines are left out.
        folder: of a model for it.

    Raises:
        BertfastError: the text or the folder cannot be read, or one is given without the other.
    """
    options.check_text(text, folder)
    torch.manual_seed(0)
    if text is not None and folder is not None:
        paragraphs = read_paragraphs(text, len(setup.lengths.values))
        model, source = (
            SentenceEncoder.from_pretrained(folder),
            f"{len(paragraphs)} paragraphs of {text.name}",
        )
    else:
        paragraphs = made_up(setup.lengths, setup.config)
        model, source = random_model(setup.config), setup.lengths.name
    model = model.to(setup.device, setup.dtype)
    lengths = Lengths(source, tuple(len(row) for row in model.tokenize(paragraphs).rows))
    sides = [_ours(model, paragraphs, tokenized)]
    peers, missing, fill = _peers(model, paragraphs, tokenized, setup)
    config = model.encoder.config
    floor = floors.inference(config, lengths, setup.itemsize)
    return Case(
        "sentence_embedding",
        f"{source}, {'from tokens' if tokenized else 'from text'}",
        setup.dtype_name,
        [*sides, *peers],
        floor,
        products=True,
        tolerance=TOLERANCE[setup.dtype_name],
        facts={
            "fill": fill,
            "tokens": lengths.tokens,
            "model": (
                f"{config.num_hidden_layers} layers of {config.hidden_size}, batches of {BATCH}"
            ),
        },
        missing=missing,
    )


def read_paragraphs(path: Path, most: int) -> list[str]:
    """The first lines of a text with something on them that are no headings (`` = Title = ``).

    Raises:
        BertfastError: the file cannot be read, or has no such line.
    """
    with open_text(path) as stream:
        lines = (line.strip() for line in stream)
        chosen = [
            line for line in lines if line and not (line.startswith("= ") and line.endswith(" ="))
        ][:most]
    if not chosen:
        raise BertfastError(f"{path}: holds no paragraph")
    return chosen


def made_up(lengths: Lengths, config: EncoderConfig) -> list[str]:
    """Texts of so many tokens, [CLS] and [SEP] counted."""
    draw = np.random.default_rng(0)
    words = range(len(SPECIAL_TOKENS), config.vocab_size)
    return [
        " ".join(f"w{word}" for word in draw.choice(words, max(length - 2, 0)))
        for length in lengths.values
    ]


def _made_up_tokenizer(config: EncoderConfig) -> Tokenizer:
    words = [
        *SPECIAL_TOKENS,
        *(f"w{word}" for word in range(len(SPECIAL_TOKENS), config.vocab_size)),
    ]
    return wordpiece_tokenizer({word: index for index, word in enumerate(words)}, lowercase=True)


def random_model(config: EncoderConfig) -> SentenceEncoder:
    """A model for `made_up` texts, its weights as drawn."""
    encoder = member_class(config, "Model")(config)
    assert isinstance(encoder, EncoderModel)
    return SentenceEncoder(
        encoder, _made_up_tokenizer(config), max_length=min(LONGEST, config.max_length)
    ).eval()


def _ours(model: SentenceEncoder, texts: list[str], tokenized: bool) -> Side:
    tokens = model.tokenize(texts)

    def run() -> np.ndarray:
        return model.encode_tokens(tokens if tokenized else model.tokenize(texts), batch_size=BATCH)

    return Side("bertfast", "ours", run, lambda: (torch.from_numpy(run()),))


def _peers(
    model: SentenceEncoder, texts: list[str], tokenized: bool, setup: Setup
) -> tuple[list[Side], dict[str, str], float]:
    """sentence-transformers with each attention, and accelerated by us; why some could not run; the
    share of real tokens in its batches.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        return [], {"sentence-transformers": reason(error)}, 1.0
    from bertfast.hub.accelerate import accelerate

    sides: list[Side] = []
    missing: dict[str, str] = {}
    fill = 1.0
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, attention, change in (
            ("sentence-transformers", None, None),
            ("sentence-transformers eager", "eager", None),
            ("sentence-transformers, bertfast.accelerate", None, accelerate),
        ):
            try:
                options = {"attn_implementation": attention} if attention else {}
                theirs = sentence_transformers.SentenceTransformer(
                    folder, device=setup.device, model_kwargs=options | {"dtype": setup.dtype}
                )
                if change is not None:
                    change(theirs)
                batches = _batches(theirs, texts)
                real = sum(int(batch["attention_mask"].sum()) for batch, _ in batches)
                fill = real / sum(batch["attention_mask"].numel() for batch, _ in batches)
                run = (
                    partial(_forward, theirs, batches)
                    if tokenized
                    else partial(_encode, theirs, texts)
                )
                run()
            except Exception as error:  # of versions that fit neither of us; the record says how
                missing[name] = reason(error)
            else:
                sides.append(Side(name, "peer" if change is None else "backend", run, _probe(run)))
    return sides, missing, fill


def _probe(run: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (run().float().cpu(),)


def _encode(theirs: Any, texts: list[str]) -> Tensor:
    out: Tensor = theirs.encode(
        texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False
    )
    return out


def _batches(theirs: Any, texts: list[str]) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The padded batches that its `encode` makes, sorted by the texts' lengths, and the places of
    their texts.
    """
    order = np.argsort([-len(text) for text in texts])
    places = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    prepare = getattr(theirs, "preprocess", None) or theirs.tokenize  # before release 5.4
    return [(prepare([texts[place] for place in chosen]), chosen) for chosen in places]


@torch.inference_mode()
def _forward(theirs: Any, batches: Sequence[tuple[dict[str, Any], np.ndarray]]) -> Tensor:
    """What `encode` does past tokenization."""
    found: list[Tensor] = [torch.empty(0)] * sum(len(places) for _, places in batches)
    for batch, places in batches:
        features = {
            name: x.to(theirs.device) if isinstance(x, Tensor) else x for name, x in batch.items()
        }
        for place, vector in zip(places, theirs(features)["sentence_embedding"], strict=True):
            found[place] = vector
    return torch.stack(found)
