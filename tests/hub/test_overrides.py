"""``from_pretrained`` takes the fields of a configuration, as `transformers` does."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import write_model

import bertfast
from bertfast.config import DistilBertConfig, ModernBertConfig
from bertfast.errors import BertfastError
from bertfast.model import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    ModernBertModel,
)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", BertForSequenceClassification)


@pytest.fixture
def masked(tmp_path):
    return write_model(tmp_path / "masked", BertForMaskedLM)


def refusal(call) -> str:
    with pytest.raises(BertfastError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_num_labels_makes_a_new_head_and_says_so(masked):
    with pytest.warns(UserWarning, match=r"classifier\.weight, classifier\.bias start from random"):
        model = BertForSequenceClassification.from_pretrained(masked, num_labels=3)
    assert model.classifier.out_features == 3
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert model.classifier.weight.std() > 0
    word = BertForMaskedLM.from_pretrained(masked).bert.embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, word)


def test_names_of_labels(masked):
    for labels in (
        {"id2label": {0: "no", 1: "yes", 2: "so"}},
        {"id2label": {"0": "no", "1": "yes", "2": "so"}},
        {"label2id": {"no": 0, "yes": 1, "so": 2}},
        {"id2label": {0: "no", 1: "yes", 2: "so"}, "label2id": {"no": 0, "yes": 1, "so": 2}},
        {"id2label": {0: "no", 1: "yes", 2: "so"}, "num_labels": 3},
    ):
        with pytest.warns(UserWarning, match="random"):
            model = BertForSequenceClassification.from_pretrained(
                masked, **labels, problem_type="multi_label_classification"
            )
        assert model.config.id2label == {0: "no", 1: "yes", 2: "so"}
        assert model.config.label2id == {"no": 0, "yes": 1, "so": 2}
        assert model.config.problem_type == "multi_label_classification"


def test_a_head_of_another_size_needs_consent(folder):
    load = BertForSequenceClassification.from_pretrained
    message = refusal(lambda: load(folder, num_labels=5))
    assert "classifier.weight is (2, 32), the config wants (5, 32)" in message
    with pytest.warns(UserWarning, match="classifier"):
        assert load(folder, num_labels=5, ignore_mismatched_sizes=True).config.num_labels == 5


def test_as_many_labels_as_before_keep_their_names_and_weights(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
        again = bertfast.load(folder, num_labels=2)
    assert model.config == bertfast.load(folder).config
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_an_encoder_of_another_size_is_never_made_random(folder):
    message = refusal(
        lambda: BertModel.from_pretrained(
            folder, intermediate_size=99, ignore_mismatched_sizes=True
        )
    )
    assert "the config wants (99, 32)" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_data_types(dtype, name, folder):
    for given in (dtype, str(dtype).removeprefix("torch."), str(dtype)):
        model = BertModel.from_pretrained(folder, **{name: given})
        assert {x.dtype for x in model.parameters()} == {dtype}
    model.save_pretrained(folder)
    assert next(BertModel.from_pretrained(folder, dtype="auto").parameters()).dtype == dtype
    assert next(BertModel.from_pretrained(folder).parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "nn", "", 3])
def test_a_data_type_that_is_none(dtype, folder):
    message = refusal(lambda: BertModel.from_pretrained(folder, dtype=dtype))
    assert "it must be auto, float32, bfloat16, float16 or float64" in message


def test_every_field_is_taken(folder):
    model = BertModel.from_pretrained(
        folder, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0, layer_norm_eps=1e-6
    )
    config = model.config
    assert config.hidden_dropout_prob == 0.3
    assert config.attention_probs_dropout_prob == 0.0
    assert config.layer_norm_eps == 1e-6


def test_fields_under_the_names_of_the_members_own_file(tmp_path):
    DistilBertModel(DistilBertConfig(**SMALL)).save_pretrained(tmp_path)
    for name in ("dropout", "hidden_dropout_prob"):
        model = DistilBertModel.from_pretrained(tmp_path, **{name: 0.4})
        assert model.config.hidden_dropout_prob == 0.4
    ModernBertModel(ModernBertConfig(**SMALL, pad_token_id=0)).save_pretrained(tmp_path)
    model = ModernBertModel.from_pretrained(
        tmp_path, global_rope_theta=5.0, layer_types=["full_attention"] * 2
    )
    assert model.config.global_rope_theta == 5.0
    assert model.config.layer_types == ("full_attention",) * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto"}, "device_map: no such option"),
        ({"num_label": 3}, "num_labels"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": "3"}, "num_labels is '3'"),
        ({"num_labels": True}, "num_labels is True"),
        ({"num_labels": 10**12}, "it must be a whole number from 1 to"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels is 3 and id2label names 2"),
        ({"id2label": ["a", "b"]}, "id2label must map"),
        ({"id2label": {0: "a", 2: "b"}}, "without a gap"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "not its inverse"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
        ({"hidden_dropout_prob": 2}, "hidden_dropout_prob is 2"),
        ({"model_type": "roberta"}, "model_type: no such option"),
    ],
)
def test_an_override_that_cannot_be(options, message, folder):
    load = BertForSequenceClassification.from_pretrained
    assert message in refusal(lambda: load(folder, **options))
    assert message in refusal(lambda: bertfast.load(folder, **options))


@pytest.mark.parametrize("kind", ["dict", "encoding", "list", "nested", "text", "texts", "number"])
@pytest.mark.parametrize("architecture", ["Model", "ForMaskedLM", "ForMultipleChoice"])
def test_an_input_that_is_no_tensor_says_what_to_pass(kind, architecture):
    from transformers import BatchEncoding

    config = bertfast.BertConfig(**SMALL)
    model = getattr(bertfast, f"Bert{architecture}")(config).eval()
    tensors = {
        "input_ids": torch.ones(1, 3, dtype=torch.int64),
        "attention_mask": torch.ones(1, 3, dtype=torch.int64),
    }
    given, advice = {
        "dict": (tensors, "model(**inputs)"),
        "encoding": (BatchEncoding(tensors), "model(**inputs)"),
        "list": ([1, 2, 3], "torch.tensor(input_ids)"),
        "nested": ([[1, 2, 3]], "torch.tensor(input_ids)"),
        "text": ("the film", "model(**tokenizer("),
        "texts": (["the film", "a score"], "model(**tokenizer("),
        "number": (3, "a torch.Tensor"),
    }[kind]
    assert advice in refusal(lambda: model(given))
    assert type(given).__name__ in refusal(lambda: model(given))
    ids = torch.ones((1, 2, 3) if architecture == "ForMultipleChoice" else (1, 3)).long()
    assert "attention_mask is a list" in refusal(lambda: model(ids, attention_mask=[[1, 1, 1]]))
    assert "token_type_ids is a " in refusal(lambda: model(ids, token_type_ids=(0, 0, 0)))
