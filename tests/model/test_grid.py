"""Whichever loop makes a batch, the encoder computes at sizes of the grid and gives back those that
came in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import sentences, write_model, write_table

import bertfast
from bertfast import PackedBatch
from bertfast.config import BertConfig, ElectraConfig
from bertfast.model import ElectraForMaskedLM, ElectraForPreTraining, functional, member_class
from bertfast.objectives.joint import Distillation, ReplacedTokenDetection
from bertfast.training.predict import Predictor

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LENGTHS = (7, 1, 12, 5, 9)  # 34 tokens in 5 sequences


def batch(masked: bool = False, **changes: Any) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    made = PackedBatch.from_sequences(
        [torch.randint(5, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    )
    if masked:
        made.masked_positions = torch.tensor([1, 9, 21])
        made.masked_labels = torch.tensor([5, 6, 7])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def model(head: str, config: Any = None) -> Any:
    torch.manual_seed(0)
    return member_class(config or BertConfig(**SHAPE), head)(config or BertConfig(**SHAPE))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each matrix product of a model has had."""
    seen: list[int] = []
    linear = functional.kernels.linear

    def look(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(x.shape[0])
        return linear(x, *arguments, **options)

    monkeypatch.setattr(functional.kernels, "linear", look)
    return seen


def on_grid(rows: list[int]) -> bool:
    # Two indexes of rows stand one after another in the last block; at these sizes, of eights.
    return bool(rows) and all(count % 8 == 0 for count in rows)


HEADS: dict[str, tuple[Callable[[], PackedBatch], dict[str, Any]]] = {
    "Model": (batch, {}),
    "ForMaskedLM": (lambda: batch(masked=True), {}),
    "ForPreTraining": (
        lambda: batch(masked=True, pair_labels=torch.tensor([0, 1, 0, 1, 1])),
        {},
    ),
    "ForSequenceClassification": (lambda: batch(labels=torch.tensor([0, 1, 0, 1, 1])), {}),
    "ForTokenClassification": (lambda: batch(token_labels=torch.arange(34) % 2), {}),
    "ForQuestionAnswering": (
        lambda: batch(start_positions=torch.zeros(5).long(), end_positions=torch.ones(5).long()),
        {},
    ),
    "ForMultipleChoice": (batch, {"num_choices": 5}),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_every_head_computes_on_the_grid_and_answers_in_the_sizes_it_was_asked(
    head: str, training: bool, rows: list[int]
) -> None:
    net = model(head).train(training)
    make, options = HEADS[head]
    given = make()
    output = net(given, seed=3, output_hidden_states=True, **options)
    assert on_grid(rows)
    sizes = {"last_hidden_state": 34, "pooler_output": 5, "seq_relationship_logits": 5}
    sizes["logits"] = {"ForMultipleChoice": 1, "ForSequenceClassification": 5}.get(head, 34)
    sizes |= {"start_logits": 34, "end_logits": 34}
    for name, x in vars(output).items():
        if isinstance(x, torch.Tensor) and x.dim():
            assert len(x) == sizes[name], name
    assert {len(state) for state in output.hidden_states} == {34}
    if head == "ForMultipleChoice":  # whose sequences are a multiple of the choices
        return
    padded = net(given.on_grid(), seed=3, output_hidden_states=True, **options)
    for name, x in vars(output).items():
        if isinstance(x, torch.Tensor):
            other = getattr(padded, name)
            torch.testing.assert_close(other[: len(x)] if x.dim() else other, x)


def test_one_of_float_labels_too(rows: list[int]) -> None:
    config = BertConfig(**SHAPE, problem_type="regression").with_labels(["score"])
    net, targets = model("ForSequenceClassification", config), torch.rand(5)
    output = net(batch(labels=targets), seed=1)
    torch.testing.assert_close(output.loss, (output.logits.squeeze(1) - targets).square().mean())
    assert {count for count in rows if count != 5} == {40}


def test_padded_input_and_its_masked_words(rows: list[int]) -> None:
    ids = torch.randint(5, 97, (8, 11))
    mask = (torch.arange(11) < torch.tensor([11, 7, 3, 9, 1, 8, 5, 6])[:, None]).long()
    labels = torch.where((torch.arange(11) % 4 == 1) & (mask == 1), ids, -100)
    net = model("ForMaskedLM").train()
    net(ids, mask, labels=labels, seed=1, return_logits=False).loss.backward()
    assert on_grid(rows)


@pytest.mark.parametrize("kind", ["replaced tokens", "distillation"])
def test_two_models_at_once(kind: str, rows: list[int]) -> None:
    if kind == "distillation":
        both: Any = Distillation(model("ForMaskedLM"), model("ForMaskedLM"))
    else:
        config = ElectraConfig(**SHAPE, embedding_size=16)
        both = ReplacedTokenDetection(ElectraForPreTraining(config), ElectraForMaskedLM(config))
    both.train()(batch(masked=True), seed=1).loss.backward()
    assert on_grid(rows)


def test_trainer_finetuning_prediction_and_vectors(tmp_path: Path, rows: list[int]) -> None:
    write_model(tmp_path / "model")
    data = [
        (" ".join(text.split()[: 3 + row % 7]), label)
        for row, (text, label) in enumerate(sentences(30))
    ]
    file = str(write_table(tmp_path / "data.tsv", data))
    for number, options in enumerate(({}, {"freeze_encoder": True})):
        out = str(tmp_path / f"out{number}")
        settings = {"epochs": 1, "batch_size": 7, **options}
        bertfast.finetune(str(tmp_path / "model"), file, file, out, **settings)
        # The head alone reads as many rows as the batch has examples.
        assert {count for count in rows if count % 8} <= ({7, 2, 30} if options else set())
        rows.clear()
    predictor = Predictor(tmp_path / "out0")
    predictor.predict(predictor.read(file))
    encoder = bertfast.SentenceEncoder.from_pretrained(tmp_path / "model")
    texts = [text for text, _ in data[:13]]
    assert encoder.encode(texts, batch_size=5).shape == (13, 32)
    assert on_grid(rows)
    rows.clear()
    made = [batch(masked=True)]
    trainer = bertfast.Trainer(model("ForMaskedLM"), made, out=tmp_path / "run", steps=2)
    trainer.train()
    assert on_grid(rows)


def test_the_drop_in(rows: list[int]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SHAPE)
    live = bertfast.accelerate(transformers.BertModel(config, add_pooling_layer=False))
    lengths = torch.tensor([11, 7, 3])
    mask = (torch.arange(11) < lengths[:, None]).long()
    live(torch.randint(5, 97, (3, 11)), attention_mask=mask)
    assert on_grid(rows)
