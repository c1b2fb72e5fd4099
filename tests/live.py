"""Tiny models of `transformers` with random weights, of every member and head, and what it means
that two give the same.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from bertfast.model.encoder import Encoder

transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
)
transformers.logging.set_verbosity_error()

FIVE = int(transformers.__version__.split(".")[0]) >= 5
POSITIONS, WIDTH = 24, 18
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROBERTA = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": POSITIONS + 2,
}
MEMBERS = {  # and what their configurations have of their own
    "Bert": {},
    "Roberta": {**ROBERTA, "type_vocab_size": 1},
    "XLMRoberta": {**ROBERTA, "type_vocab_size": 1},
    "Camembert": {**ROBERTA, "type_vocab_size": 1},
    "MPNet": ROBERTA,
    "Albert": {
        "embedding_size": 16,
        "num_hidden_layers": 4,
        "num_hidden_groups": 2,
        "classifier_dropout_prob": 0.0,
    },
    "DistilBert": {
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "qa_dropout": 0.0,
    },
    "Electra": {"embedding_size": 16, "summary_last_dropout": 0.0},
    "DebertaV2": {
        "relative_attention": True,
        "position_buckets": 4,
        "max_relative_positions": 16,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "type_vocab_size": 0,
    },
    "ModernBert": {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "local_attention": 6,
        "num_hidden_layers": 4,
    },
}
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
CLASSES = [f"{member}{head}" for member in MEMBERS for head in HEADS]
CLASSES += [f"{member}ForPreTraining" for member in ("Bert", "Albert", "Electra")]
CLASSES = [
    name for name in CLASSES if hasattr(transformers, name)
]  # ModernBERT came without two of them
BASES = [f"{member}Model" for member in MEMBERS]
LENGTHS = (7, 1, WIDTH, 12)


def make(name, seed=1, **overrides):
    """A model of that class with random weights, in training mode, its dropouts at 0 where not
    asked for otherwise.
    """
    member = max((m for m in MEMBERS if name.startswith(m)), key=len)
    shape = {
        key: value
        for key, value in SHAPE.items()
        if not (member == "ModernBert" and "dropout" in key)
    }
    if member == "DistilBert":
        shape = {key: value for key, value in shape.items() if not key.endswith("_prob")}
    config = getattr(transformers, f"{member}Config")(**{**shape, **MEMBERS[member], **overrides})
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.tie_weights()
    return model.train()


def mask_of(pattern):
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        if pattern == "right":
            mask[row, :length] = 1
        elif pattern == "left":
            mask[row, WIDTH - length :] = 1
        elif pattern == "holes":  # column 0 among them
            mask[row, torch.randperm(WIDTH, generator=generator)[:length]] = 1
        elif pattern == "empty row":
            mask[row, :length] = row != 1
    return mask


def inputs_for(name, pattern="right", seed=0):
    """What a model of that class takes, with labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(pattern)
    rows = len(mask)
    ids = torch.randint(5, 97, mask.shape, generator=generator)
    pad = 1 if name.startswith(("Roberta", "XLMRoberta", "Camembert", "MPNet")) else 0
    arguments = {"input_ids": ids.where(mask == 1, torch.tensor(pad)), "attention_mask": mask}
    if name.startswith(("Bert", "Albert", "Electra")):
        arguments["token_type_ids"] = (torch.arange(WIDTH) > 4).long().expand_as(mask) * mask
    if name.endswith("ForMultipleChoice"):
        arguments = {key: value.view(2, 2, -1) for key, value in arguments.items()}
        return {**arguments, "labels": torch.tensor([1, 0])}
    per_token = torch.randint(2, mask.shape, generator=generator)
    if name == "ElectraForPreTraining":
        return {**arguments, "labels": per_token}
    if name.endswith("ForTokenClassification"):
        arguments["labels"] = per_token.where(mask == 1, torch.tensor(-100))
    elif name.endswith(("ForMaskedLM", "ForPreTraining")):
        arguments["labels"] = ids.where((mask == 1) & (per_token == 1), torch.tensor(-100))
        if name == "BertForPreTraining":
            arguments["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
        elif name == "AlbertForPreTraining":
            arguments["sentence_order_label"] = torch.tensor([0, 1, 1, 0])
    elif name.endswith("ForSequenceClassification"):
        arguments["labels"] = torch.randint(2, (rows,), generator=generator)
    elif name.endswith("ForQuestionAnswering"):
        arguments["start_positions"] = torch.tensor([1, 0, 3, 2])
        arguments["end_positions"] = torch.tensor([1, 0, 4, 99])
    return arguments


def objective(output, real):
    """The loss, or a scalar that every output at a real token enters."""
    if output.get("loss") is not None:
        return output.loss
    pooled = output.get("pooler_output")
    return output.last_hidden_state[real].sin().sum() + (
        0 if pooled is None else pooled.sin().sum()
    )


def assert_same_outputs(got, wanted, real):
    """Class, fields and values; per-token tensors at real tokens alone."""
    assert type(got) is type(wanted)
    assert list(got.keys()) == list(wanted.keys())
    for name, other in wanted.items():
        mine = got[name]
        pairs = zip(mine, other, strict=True) if isinstance(other, tuple) else [(mine, other)]
        for x, y in pairs:
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            if x.dim() > 1 and x.shape[:2] == real.shape:
                x, y = x[real], y[real]
            torch.testing.assert_close(
                x, y, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def assert_same_gradients(ours, theirs):
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = others.pop(name).grad
        if other is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, other, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert not others


def assert_same(ours, theirs, arguments):
    """Outputs, and every gradient of a backward."""
    real = arguments["attention_mask"].bool().flatten(0, -2)
    got, wanted = ours(**arguments), theirs(**arguments)
    assert_same_outputs(got, wanted, real)
    for model, output in ((ours, got), (theirs, wanted)):
        model.zero_grad()
        objective(output, real).backward()
    assert_same_gradients(ours, theirs)


@pytest.fixture
def served(monkeypatch):
    """A list that grows by one with each call of our encoder, to its `keep_padding`."""
    calls, encode = [], Encoder.encode

    def counted(self, *args, **options):
        calls.append(options["keep_padding"])
        return encode(self, *args, **options)

    monkeypatch.setattr(Encoder, "encode", counted)
    return calls


def warned(call):
    """The result, and what bertfast warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if "bertfast" in str(w.message)]
