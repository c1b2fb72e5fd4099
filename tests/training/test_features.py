"""Features on the disk are the model's hidden states, of any layer, in the order of the texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import run_cli, sentences, write_model, write_table

from bertfast.errors import BertfastError
from bertfast.model import load
from bertfast.packed import PackedBatch
from bertfast.tokenization import load_tokenizer
from bertfast.training import features as module
from bertfast.training.features import LAYERS, features, load_features

TEXTS = [
    text if place % 3 else " ".join(text.split()[:place])
    for place, (text, _) in enumerate(sentences(9))
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_model(folder / "model", num_hidden_layers=4)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return folder


def states_of_each(place: Path) -> list[list[np.ndarray]]:
    """The states of each text alone."""
    model, tokenizer = load(place / "model").base.eval(), load_tokenizer(place / "model")
    made = []
    for text in TEXTS:
        batch = PackedBatch.from_sequences([tokenizer.encode(text).ids])
        with torch.no_grad():
            found = model(batch, output_hidden_states=True)
        made.append([state.numpy() for state in found.hidden_states])
    return made


@pytest.mark.slow_unless(
    lambda layers, pooling: (layers, pooling) in (("3", "first"), ("concat-last-4", "tokens"))
)
@pytest.mark.parametrize("pooling", module.POOLINGS)
@pytest.mark.parametrize("layers", [*LAYERS, "0", "3"])
def test_rows_are_the_states_of_each_text_alone(
    layers: str, pooling: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    options: dict[str, Any] = {"layers": layers, "pooling": pooling}
    found = features(place / "model", place / "texts.txt", tmp_path / "out", **options)
    assert isinstance(found.values, np.memmap)
    for number, states in enumerate(states_of_each(place)):
        expected = {
            "embeddings": states[0],
            "0": states[0],
            "3": states[3],
            "second-to-last": states[3],
            "last": states[4],
            "sum-last-4": sum(states[1:]),
            "concat-last-4": np.concatenate(states[1:], -1),
            "sum-all": sum(states[1:]),
        }[layers]
        if pooling == "tokens":
            assert found.offsets is not None
            rows = found.values[found.offsets[number] : found.offsets[number + 1]]
        else:
            expected = expected[0] if pooling == "first" else expected.mean(0)
            rows = found.values[number]
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert (found.offsets is None) == (pooling != "tokens")


def test_they_are_computed_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(
        tmp_path / "pairs.tsv",
        [(a, b, "x") for a, b in pairwise(TEXTS)],
        ("sentence1", "sentence2", "label"),
    )
    given = (place / "model", tmp_path / "pairs.tsv", tmp_path / "out")
    first = features(*given)
    assert len(first.values) == len(TEXTS) - 1
    monkeypatch.setattr(module, "load_tokenizer", None)  # nothing is encoded again
    again = features(*given)
    np.testing.assert_array_equal(first.values, again.values)
    with pytest.raises(BertfastError, match="exists already"):
        features(*given, layers="1")
    np.testing.assert_array_equal(load_features(tmp_path / "out").values, first.values)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--layers", "5"], "from 0, the embeddings, to 4"),
        (["--layers", "-1"], "layers is '-1'"),
        (["--pooling", "max"], "pooling is 'max'"),
        (["--max-length", "3"], "max-length is 3"),
        (["--text-column", "x"], "has no columns"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    options: list[str],
    named: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = (place / "model", place / "texts.txt", "--out", tmp_path / "out")
    done = run_cli(monkeypatch, capfd, "features", *given, *options)
    assert (done.code, done.out) == (2, "")
    assert [named in line for line in done.errors] == [True], done.err
    assert not list(tmp_path.iterdir())
