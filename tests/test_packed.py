"""The packed batch and the way between it and the padded form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import BertfastError, PackedBatch
from bertfast.packed import Budget, Padding, runs_of_tokens


def masks():
    """Masks of any pattern: holes, left padding, whole rows out."""
    rows = st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4
        )
    )
    return rows.map(torch.tensor)


@given(masks())
@settings(deadline=None)
def test_unpacking_undoes_packing_and_leaves_zeros_at_the_padding(mask):
    padded = torch.arange(1.0, 1 + mask.numel() * 3).view(*mask.shape, 3)
    padding = Padding(tuple(mask.shape), mask, mask.device)
    packed = padding.pack(padded)
    assert torch.equal(packed, padded[mask])
    assert torch.equal(padding.unpack(packed), padded * mask[..., None])


@given(masks())
@settings(deadline=None)
def test_slack_after_the_tokens_changes_nothing_but_their_number(mask):
    padded = torch.arange(1.0, 1 + mask.numel() * 3).view(*mask.shape, 3)
    padding = Padding(tuple(mask.shape), mask, mask.device, slack=True)
    packed = padding.pack(padded)
    assert len(packed) % 8 == 0
    assert torch.equal(packed[: mask.sum()], padded[mask])
    assert not packed[mask.sum() :].any()
    assert padding.cu_seqlens[-1] == mask.sum()
    assert torch.equal(padding.unpack(packed), padded * mask[..., None])


@given(st.integers(0, 1 << 20))
def test_sizes_are_rounded_up_by_little_and_to_few(size):
    (tokens, sequences, masked, longest) = Budget(size, size, size, 7).rounded()
    assert tokens == sequences == masked
    assert size <= tokens <= max(size * 33 / 32, size + 8)
    assert longest == 7
    assert len({Budget(n, 0, 0, 0).rounded().tokens for n in range(1 << 12)}) < 250


@given(masks())
@settings(deadline=None)
def test_boundaries_follow_the_mask(mask):
    padding = Padding(tuple(mask.shape), mask, mask.device)
    assert padding.cu_seqlens.dtype == torch.int32
    assert padding.cu_seqlens.diff().tolist() == mask.sum(1).tolist()
    assert padding.cu_seqlens[0] == 0
    assert padding.max_seqlen == mask.sum(1).max()


@given(masks())
@settings(deadline=None)
def test_no_mask_is_a_mask_of_ones(mask):
    shape = tuple(mask.shape)
    none, ones = Padding(shape, None, mask.device), Padding(shape, torch.ones(shape), mask.device)
    assert torch.equal(none.cu_seqlens, ones.cu_seqlens)
    assert none.max_seqlen == ones.max_seqlen
    padded = torch.randn(shape)
    assert torch.equal(none.pack(padded), ones.pack(padded))
    assert torch.equal(none.unpack(none.pack(padded)), padded)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 3), (2, 1, 3, 3), (3,)])
def test_a_mask_that_is_not_one_entry_a_token_is_refused(shape):
    with pytest.raises(BertfastError, match="attention_mask has shape"):
        Padding((2, 3), torch.ones(shape), torch.device("cpu"))


def test_gradients_pass_through_packing_and_unpacking():
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    padding = Padding((2, 3), mask, mask.device)
    x = torch.randn(2, 3, 4, requires_grad=True)
    padding.unpack(padding.pack(x)).sum().backward()
    assert torch.equal(x.grad, mask[..., None].expand(2, 3, 4).float())


def test_sequences_are_laid_one_after_another():
    batch = PackedBatch.from_sequences(
        [[5, 6], [], [7, 8, 9]], [[0, 1], [], [0, 0, 1]], labels=[1, 0, 1]
    )
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.segment_ids.tolist() == [0, 1, 0, 0, 1]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 2, 2, 5]
    assert batch.labels.tolist() == [1, 0, 1]
    assert (batch.num_tokens, batch.num_sequences, batch.max_seqlen) == (5, 3, 3)
    assert batch.cu_seqlens.dtype == torch.int32
    assert {batch.input_ids.dtype, batch.segment_ids.dtype, batch.position_ids.dtype} == {
        torch.int64
    }


def test_no_sequences_make_an_empty_batch():
    batch = PackedBatch.from_sequences([])
    assert (batch.num_tokens, batch.num_sequences, batch.max_seqlen) == (0, 0, 0)


def test_moving_a_batch_moves_every_tensor_and_nothing_else():
    batch = PackedBatch.from_sequences([[5, 6], [7]], labels=[1, 0])
    moved = batch.to("meta")
    assert all(x.device.type == "meta" for x in (moved.input_ids, moved.cu_seqlens, moved.labels))
    assert moved.max_seqlen == 2
    assert moved.masked_positions is None
    assert batch.input_ids.device.type == "cpu"


def predicting(labels=None):
    batch = PackedBatch.from_sequences([[5, 6], [7]], labels=labels)
    batch.masked_positions, batch.masked_labels = torch.tensor([1]), torch.tensor([9])
    batch.pair_labels = torch.tensor([0, 1])
    return batch


def test_a_padded_batch_has_the_sizes_of_its_budget_and_the_same_content():
    batch = predicting(labels=[1, 0])
    padded = batch.pad_to(5, 4, 2, 7)
    padded.check()
    assert tuple(padded.sizes) == (5, 4, 2, 7)
    assert padded.input_ids[:3].tolist() == [5, 6, 7]
    assert padded.cu_seqlens.tolist() == [0, 2, 3, 3, 3]
    assert padded.masked_positions.tolist() == [1, -1]
    assert padded.masked_labels.tolist() == [9, -100]
    assert padded.pair_labels.tolist() == [0, 1, -100, -100]
    assert padded.labels.tolist() == [1, 0, -100, -100]
    for name, x in padded.tensors().items():
        assert x.dtype == getattr(batch, name).dtype, name


def test_a_batch_of_its_budgets_sizes_is_left_as_it_is():
    batch = predicting(labels=[0.5, 0.25])
    padded = batch.pad_to(*batch.sizes)
    assert all(torch.equal(x, getattr(batch, name)) for name, x in padded.tensors().items())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ((2, 4, 2, 7), "tokens is 3 and the budget 2"),
        ((5, 1, 2, 7), "sequences is 2 and the budget 1"),
        ((5, 4, 0, 7), "masked is 1 and the budget 0"),
        ((5, 4, 2, 1), "max_seqlen is 2 and the budget 1"),
    ],
)
def test_a_batch_beyond_its_budget_is_refused(budget, message):
    assert not predicting().fits(budget)
    with pytest.raises(BertfastError, match=message):
        predicting().pad_to(*budget)


def test_float_labels_take_no_slack_sequences():
    with pytest.raises(BertfastError, match="ignores no slack sequence"):
        predicting(labels=[0.5, 0.25]).pad_to(5, 4, 2, 7)


@pytest.mark.parametrize(
    "arguments",
    [{"segments": [[0, 0]]}, {"segments": [[0], [0]]}, {"labels": [1]}],
    ids=["missing segments", "short segments", "missing labels"],
)
def test_sequences_whose_company_does_not_fit_are_refused(arguments):
    with pytest.raises(BertfastError):
        PackedBatch.from_sequences([[5, 6], [7]], **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"segment_ids": torch.zeros(2, dtype=torch.int64)},
        {"position_ids": torch.zeros(3, 1, dtype=torch.int64)},
        {"masked_positions": torch.tensor([0])},
        {"masked_labels": torch.tensor([0])},
        {"pair_labels": torch.tensor([0])},
        {"labels": torch.tensor(1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_batch_whose_fields_do_not_fit_is_refused(change):
    batch = PackedBatch.from_sequences([[5, 6], [7]])
    batch.check()
    for name, value in change.items():
        setattr(batch, name, value)
    with pytest.raises(BertfastError, match=next(iter(change))):
        batch.check()


OWN = {
    "per_token": {
        "tag": torch.tensor([3, 4, 5]),
        "weight": torch.tensor([[0.5, 1.0]] * 3),
        "read": torch.tensor([True, True, False]),
        "byte": torch.tensor([7, 8, 9], dtype=torch.uint8),
    },
    "per_sequence": {"length": torch.tensor([2, 1]), "share": torch.tensor([0.5, 0.25])},
    "per_masked": {"rank": torch.tensor([6], dtype=torch.int32)},
}


def with_own(**changes):
    """A batch with tensors of an objective's own."""
    batch = predicting()
    for group, own in OWN.items():
        getattr(batch, group).update(own | changes.get(group, {}))
    return batch


def test_own_tensors_are_padded_with_what_counts_for_nothing():
    padded = with_own().pad_to(5, 4, 2, 7)
    padded.check()
    assert padded.per_token["tag"].tolist() == [3, 4, 5, -100, -100]
    assert padded.per_token["weight"].tolist() == [[0.5, 1.0]] * 3 + [[0.0, 0.0]] * 2
    assert padded.per_token["read"].tolist() == [True, True, False, False, False]
    assert padded.per_token["byte"].tolist() == [7, 8, 9, 0, 0]
    assert padded.per_sequence["length"].tolist() == [2, 1, -100, -100]
    assert padded.per_sequence["share"].tolist() == [0.5, 0.25, 0.0, 0.0]
    assert padded.per_masked["rank"].tolist() == [6, -100]
    for name, x in padded.tensors().items():
        assert x.dtype == with_own().tensors()[name].dtype, name


def test_own_tensors_go_where_the_batch_goes():
    moved = with_own().to("meta")
    for group, own in OWN.items():
        assert {name: x.device.type for name, x in getattr(moved, group).items()} == dict.fromkeys(
            own, "meta"
        )
    assert with_own().per_token["tag"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_own_tensors_are_pinned_with_the_batch():
    pinned = with_own().pin_memory()
    assert all(x.is_pinned() for x in pinned.tensors().values())
    assert all(torch.equal(x, with_own().tensors()[name]) for name, x in pinned.tensors().items())


def test_own_tensors_take_the_grid_and_lose_the_slack_again():
    batch, padded = with_own(), with_own().on_grid()
    padded.check()
    assert tuple(padded.sizes)[:3] == (8, 8, 8)
    for group, size in (("per_token", 3), ("per_sequence", 2), ("per_masked", 1)):
        for name, x in getattr(padded, group).items():
            assert len(x) == 8
            assert torch.equal(x[:size], getattr(batch, group)[name])
    again = padded.on_grid()
    assert all(torch.equal(x, padded.tensors()[name]) for name, x in again.tensors().items())


@pytest.mark.parametrize("group", OWN)
@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(0, 3), torch.tensor(1.0)])
def test_an_own_tensor_of_a_wrong_length_is_refused_by_its_name(group, wrong):
    with pytest.raises(BertfastError, match=rf"{group}\['mine'\] has shape"):
        with_own(**{group: {"mine": wrong}}).check()


@pytest.mark.parametrize(
    ("lengths", "tokens", "sequences", "runs"),
    [
        ([], 8, None, []),
        ([3, 5, 1, 8], 8, None, [2, 1, 1]),
        ([9, 1, 9], 8, None, [1, 1, 1]),  # one sequence at least, however long
        ([0, 0, 0], 8, None, [3]),
        ([1, 1, 1, 1, 1], 8, 2, [2, 2, 1]),
        ([4, 4, 4, 1], 9, 3, [2, 2]),
    ],
)
def test_runs_hold_at_most_so_many_tokens_and_sequences(lengths, tokens, sequences, runs):
    made = list(runs_of_tokens(lengths, tokens, sequences))
    assert [run.stop - run.start for run in made] == runs
    assert [row for run in made for row in range(run.start, run.stop)] == list(range(len(lengths)))
