"""An update of several batches is one of all that they predict, however many ranks compute it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import POSITIONS

from bertfast import BertConfig, BertForPreTraining, PackedBatch, Trainer
from bertfast.errors import BertfastError
from bertfast.ranks import Place, Ranks
from bertfast.training.config import PretrainConfig
from bertfast.training.metrics import Window, read_metrics
from bertfast.training.parallel import Parallel, every, share_batches
from bertfast.training.pretrain import _settled


def batch(lengths: list[int], masked: list[int], seed: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(seed)
    made = PackedBatch.from_sequences(
        [torch.randint(4, 40, (length,), generator=generator).tolist() for length in lengths]
    )
    positions = torch.tensor(masked)
    return replace(
        made,
        masked_positions=positions,
        masked_labels=made.input_ids[positions],
        pair_labels=torch.randint(0, 2, (len(lengths),), generator=generator),
    )


def together(one: PackedBatch, other: PackedBatch) -> PackedBatch:
    shift = {"cu_seqlens": one.num_tokens, "masked_positions": one.num_tokens}
    tensors = {
        name: torch.cat([x, (other.tensors()[name] + shift.get(name, 0)).to(x.dtype)])
        for name, x in one.tensors().items()
    }
    keep = torch.arange(len(tensors["cu_seqlens"])) != one.num_sequences
    tensors["cu_seqlens"] = tensors["cu_seqlens"][keep]
    return replace(one.with_tensors(tensors), max_seqlen=max(one.max_seqlen, other.max_seqlen))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_uneven_batches_weigh_as_much_as_they_predict(tmp_path: Path, precision: str) -> None:
    """Of words and of sequences, each loss over its own count."""
    first, second = batch([3, 9, 4], [1, 5, 6, 8, 11], 1), batch([11], [2], 2)
    whole = together(first, second)
    assert whole.num_sequences == 4
    norms, losses = [], []
    for name, parts in (("parts", [first, second]), ("whole", [whole])):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        options = {"accumulation": len(parts), "precision": precision, "device": "cpu"}
        trainer = Trainer(
            BertForPreTraining(config), parts, out=tmp_path / name, steps=3, log_every=1, **options
        )
        trainer.train()
        lines = read_metrics(tmp_path / name)
        norms.append([line["gradient_norm"] for line in lines])
        losses.append([line[k] for line in lines for k in ("loss", "mlm_loss", "nsp_loss")])
    rounding = 1e-5 if precision == "fp32" else 0.02
    assert losses[0] == pytest.approx(losses[1], rel=rounding)
    assert norms[0] == pytest.approx(norms[1], rel=rounding)


def test_a_batch_weighs_as_much_as_it_has_targets() -> None:
    parts = [PackedBatch.from_sequences(ids) for ids in ([[1, 2, 3], [4, 5]], [[6]], [])]
    for part, labels in zip(parts, ([0, -100, 1, -100, -100], [-100], []), strict=True):
        part.token_labels = torch.tensor(labels, dtype=torch.int64)
    no_masters: Any = None
    weights, _ = Parallel(torch.nn.Linear(1, 1), no_masters, Ranks()).weights(parts, 3)
    assert [part["sequences"].item() for part in weights] == [2.0, 1.0, 0.0]
    assert [part["labelled"].item() for part in weights] == [3.0, 0.0, 0.0]


def test_batches_are_shared_out_whole() -> None:
    four = Ranks(Place(rank=1, size=4))
    assert share_batches(8, four) == 2
    with pytest.raises(BertfastError, match=r"4 ranks.*Take --accumulation 8"):
        share_batches(6, four)


def test_an_update_takes_a_batch_a_rank_unless_the_run_or_the_user_says_otherwise(tmp_path) -> None:
    config = PretrainConfig(("a.txt",), "tok", "run", shape="bert-tiny")
    two = Ranks(Place(rank=0, size=2))
    assert _settled(config, tmp_path, Ranks()).accumulation == 1
    assert _settled(config, tmp_path, two).accumulation == 2
    assert _settled(replace(config, accumulation=4), tmp_path, two).accumulation == 4
    (tmp_path / "config.yaml").write_text("accumulation: 6\n")
    assert _settled(config, tmp_path, two).accumulation == 6
    assert _settled(config, tmp_path, Ranks()).accumulation == 6
    (tmp_path / "config.yaml").write_text("accumulation: 3\n")
    with pytest.raises(BertfastError, match=r"accumulation is 3.*2 ranks.*Take --accumulation 4"):
        _settled(config, tmp_path, two)


def test_batches_of_a_users_own_are_taken_in_turn() -> None:
    class Own:
        def iterate(self, start: int = 0):
            return iter([(0, number) for number in range(start, 9)])

    assert [number for _, number in every(Own(), 1, 3)] == [1, 4, 7]
    assert [number for _, number in every(Own(), 5, 1)] == [5, 6, 7, 8]


def test_sums_of_ranks_are_gathered_on_the_first() -> None:
    window, doubled = Window(), lambda values: values.mul_(2)
    window.add({"loss": torch.tensor(3.0), "mlm_correct": torch.tensor(4)}, 10, 2)
    window.add_uneven(torch.tensor([0.5, 0.25]))
    window.gather(doubled, keep=True)
    assert (window.parts, window.tokens, window.sequences) == (2, 20, 4)
    line = window.flush(1.0, 0.1, 1.0, 20, 0, 1.0)
    assert (line["loss"], line["token_imbalance"], line["square_imbalance"]) == (3.0, 0.5, 0.25)
    window.add({"loss": torch.tensor(3.0)}, 10, 2)
    window.gather(doubled, keep=False)
    assert window.state()["sums"] == {"loss": 0.0}
    assert window.tokens == 0
