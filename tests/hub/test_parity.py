"""Same numbers as `transformers` on random weights, both ways: hidden states, logits, loss and every gradient."""

import pytest
import torch

from bertfast import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    PackedBatch,
)
from bertfast.packed import Padding
from support import forced

transformers = pytest.importorskip("transformers", reason="transformers is an extra: pip install 'bertfast[hf]'")

SHAPES = {  # hidden, heads: head sizes 16, 32, 48, 64
    "head16": (64, 4),
    "head32": (384, 12),
    "head48": (96, 2),
    "head64": (128, 2),
}
CLASSES = (BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification)
LENGTHS = (7, 1, 23, 12)
BACKENDS = ("reference", "cpp")


def small(shape="head64", **overrides):
    hidden, heads = SHAPES[shape]
    values = {
        "vocab_size": 211,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**values, **overrides})


def pair(cls, folder, shape="head64", ours_first=False, **overrides):
    """One of ours and its `transformers` twin with the same random weights, gone through a folder in the given direction."""
    config = small(shape, **overrides)
    theirs_class = getattr(transformers, cls.__name__)
    torch.manual_seed(1)
    if ours_first:
        ours = cls(config)
        for parameter in ours.parameters():
            parameter.data.normal_(std=0.1)
        ours.save_pretrained(folder)
        theirs, report = theirs_class.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return ours, theirs
    theirs = theirs_class(transformers.BertConfig(**config.to_dict(), attn_implementation="eager"))
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.1)
    theirs.save_pretrained(folder)
    return cls.from_pretrained(folder), theirs


def padded_batch(side="right", seed=0):
    generator = torch.Generator().manual_seed(seed)
    longest = max(LENGTHS) + 3
    mask = torch.zeros(len(LENGTHS), longest, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        if side == "right":
            mask[row, :length] = 1
        elif side == "left":
            mask[row, longest - length :] = 1
        else:  # holes anywhere, but the first token is real
            mask[row, torch.randperm(longest - 1, generator=generator)[: length - 1] + 1] = 1
            mask[row, 0] = 1
    ids = torch.randint(5, 211, mask.shape, generator=generator) * mask
    segments = (torch.arange(longest) > 4).long().expand_as(mask) * mask
    labels = torch.where((torch.rand(mask.shape, generator=generator) < 0.3) & (mask == 1), ids, -100)
    first = int(mask[2].argmax())
    labels[2, first] = ids[2, first]
    return ids, mask, segments, labels


def task_labels(cls, labels):
    if cls is BertForPreTraining:
        return {"labels": labels, "next_sentence_label": torch.tensor([0, 1, 1, 0])}
    if cls is BertForMaskedLM:
        return {"labels": labels}
    return {"labels": torch.tensor([1, 0, 1, 1])} if cls is BertForSequenceClassification else {}


def objective(output):
    """The loss, or for the bare model a scalar that every output enters."""
    if hasattr(output, "loss"):
        return output.loss
    return output.pooler_output.sin().sum()


def compare_gradients(ours, theirs):
    """Every parameter's gradient; one that theirs does not give is zero or none in ours."""
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = others[name].grad
        if other is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            torch.testing.assert_close(parameter.grad, other, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-to-theirs", "theirs-to-ours"])
@pytest.mark.parametrize(
    ("cls", "side"),
    [
        (cls, side)
        for cls in CLASSES
        for side in ("right", "left", "holes")
        # Under left padding the pooler takes the first real token, that of transformers a padding token.
        if side != "left" or cls is BertForMaskedLM
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_equal_those_of_transformers(backend, cls, side, ours_first, tmp_path):
    ours, theirs = pair(cls, tmp_path, ours_first=ours_first)
    ids, mask, segments, labels = padded_batch(side)
    arguments = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": segments,
        "output_hidden_states": True,
        **task_labels(cls, labels),
    }
    ours.train(), theirs.train()
    wanted = theirs(**arguments)
    with forced(backend):
        got = ours(**arguments)
        objective(got).backward()
    objective(wanted).backward()

    real = mask.bool()
    for mine, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], rtol=1e-5, atol=1e-5)
        assert not mine[~real].any()
    for name in ("loss", "logits", "prediction_logits", "seq_relationship_logits", "pooler_output"):
        other = getattr(wanted, name, None)
        if other is not None:
            mine = getattr(got, name)
            if other.dim() == 3:
                mine, other = mine[real], other[real]
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_head_size_equals_transformers(backend, shape, tmp_path):
    ours, theirs = pair(BertForPreTraining, tmp_path, shape)
    ids, mask, segments, labels = padded_batch()
    arguments = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, "output_hidden_states": True}
    arguments |= task_labels(BertForPreTraining, labels)
    ours.train(), theirs.train()
    with forced(backend):
        got = ours(**arguments)
        got.loss.backward()
    wanted = theirs(**arguments)
    wanted.loss.backward()
    real = mask.bool()
    for mine, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-5, atol=1e-5)
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32], ids=str)
def test_the_mask_may_be_of_any_dtype(dtype, tmp_path):
    ours, _ = pair(BertModel, tmp_path)
    ids, mask, segments, _ = padded_batch("holes")
    with torch.no_grad():
        wanted = ours(ids, mask, segments).last_hidden_state
        assert torch.equal(ours(ids, mask.to(dtype), segments).last_hidden_state, wanted)


def test_defaults_equal_those_of_transformers(tmp_path):
    ours, theirs = pair(BertModel, tmp_path)
    ids = torch.randint(5, 211, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
        embeds = torch.randn(3, 9, 128)
        torch.testing.assert_close(
            ours(inputs_embeds=embeds).last_hidden_state,
            theirs(inputs_embeds=embeds).last_hidden_state,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_input_gives_what_padded_input_gives(backend, tmp_path):
    ours, _ = pair(BertForPreTraining, tmp_path)
    ids, mask, segments, labels = padded_batch()
    padding = Padding(tuple(ids.shape), mask, ids.device)
    packed_labels = padding.pack(labels)
    positions = (packed_labels != -100).nonzero().squeeze(1)
    following = torch.tensor([0, 1, 1, 0])
    batch = PackedBatch(
        padding.pack(ids),
        padding.pack(segments),
        padding.pack(torch.arange(ids.shape[1]).expand_as(ids)),
        padding.cu_seqlens,
        padding.max_seqlen,
        positions,
        packed_labels[positions],
        following,
    )
    with forced(backend):
        packed = ours(batch, output_hidden_states=True)
        padded = ours(ids, mask, segments, labels=labels, next_sentence_label=following, output_hidden_states=True)
    assert packed.prediction_logits is None
    torch.testing.assert_close(packed.loss, padded.loss)
    torch.testing.assert_close(padding.unpack(packed.hidden_states[-1]), padded.hidden_states[-1])
    predicted = padded.prediction_logits.argmax(-1)
    assert packed.mlm_correct == ((predicted == labels) & (labels != -100)).sum()
    assert packed.mlm_count == (labels != -100).sum()


def test_regression_and_multi_label_losses_equal_transformers(tmp_path):
    ids, mask, segments, _ = padded_batch()
    for labels, names in ((torch.randn(4), ["score"]), (torch.randint(2, (4, 3)).float(), ["a", "b", "c"])):
        kind = "regression" if len(names) == 1 else "multi_label_classification"
        ours, theirs = pair(
            BertForSequenceClassification,
            tmp_path / kind,
            id2label=dict(enumerate(names)),
            problem_type=kind,
        )
        theirs.eval()
        with torch.no_grad():
            got = ours(ids, mask, segments, labels=labels).loss
            torch.testing.assert_close(got, theirs(ids, mask, token_type_ids=segments, labels=labels).loss)
