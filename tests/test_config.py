"""The configuration: presets as published, every field checked, Hugging Face's config.json in and out."""

import json

import pytest

from bertfast import BertConfig, BertfastError, BertForPreTraining

PUBLISHED = {  # layers, width, heads, parameters in millions (Turc et al., table 1; Devlin et al., section 3)
    "bert-tiny": (2, 128, 2, 4.4),
    "bert-mini": (4, 256, 4, 11.3),
    "bert-small": (4, 512, 8, 29.1),
    "bert-medium": (8, 512, 8, 41.7),
    "bert-base": (12, 768, 12, 110.1),
    "bert-large": (24, 1024, 16, 340),
}


def parameters(config):
    """Of the encoder with its pooler, counted from the shapes."""
    width, inner = config.hidden_size, config.intermediate_size
    tables = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2) * width
    attention = 4 * (width + 1) * width + 2 * width
    feed_forward = (width + 1) * inner + (inner + 1) * width + 2 * width
    return tables + config.num_hidden_layers * (attention + feed_forward) + (width + 1) * width


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_shapes(name):
    layers, width, heads, millions = PUBLISHED[name]
    config = BertConfig.preset(name)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, width, heads)
    assert config.intermediate_size == 4 * width
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (30522, 512, 2)
    assert config.head_dim == 64
    assert parameters(config) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_count_of_parameters_is_that_of_the_model():
    config = BertConfig.preset("bert-tiny", vocab_size=101)
    assert BertForPreTraining(config).bert.num_parameters() == parameters(config)


def test_a_preset_takes_overrides():
    config = BertConfig.preset("bert-small", vocab_size=4096, hidden_dropout_prob=0.0)
    assert (config.vocab_size, config.hidden_dropout_prob, config.hidden_size) == (4096, 0.0, 512)


def test_an_unknown_preset_is_an_error_that_lists_those_there_are():
    with pytest.raises(BertfastError, match=r"'bert-huge'.*bert-tiny.*bert-large"):
        BertConfig.preset("bert-huge")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", -1),
        ("hidden_size", 770),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 2.0),
        ("intermediate_size", "3072"),
        ("max_position_embeddings", True),
        ("type_vocab_size", None),
        ("hidden_act", "swish"),
        ("hidden_act", None),
        ("hidden_dropout_prob", 1.0),
        ("hidden_dropout_prob", -0.1),
        ("attention_probs_dropout_prob", "0.1"),
        ("classifier_dropout", float("nan")),
        ("initializer_range", 0.0),
        ("layer_norm_eps", float("inf")),
        ("pad_token_id", 30522),
        ("pad_token_id", "0"),
        ("problem_type", "ranking"),
        ("id2label", {}),
        ("id2label", {0: "a", 2: "b"}),
    ],
)
def test_a_field_out_of_range_is_one_line_that_names_it(field, value):
    with pytest.raises(BertfastError, match=field) as caught:
        BertConfig(**{field: value})
    assert "\n" not in str(caught.value)


def test_labels_count_themselves():
    config = BertConfig().with_labels(["no", "yes", "maybe"])
    assert config.num_labels == 3
    assert config.label2id == {"no": 0, "yes": 1, "maybe": 2}


def test_a_config_survives_its_own_file(tmp_path):
    config = BertConfig.preset("bert-mini", hidden_act="gelu_new", classifier_dropout=0.3).with_labels(["a", "b", "c"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict("BertModel")))
    assert BertConfig.from_json_file(path) == config


def test_num_labels_stands_for_label_names():
    values = BertConfig().to_dict()
    del values["id2label"], values["label2id"]
    assert BertConfig.from_dict({**values, "num_labels": 5}).num_labels == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; supported is bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": {"x": "a"}}, "id2label"),
        ({"id2label": None, "num_labels": "two"}, "num_labels"),
        ({"hidden_size": 12, "num_attention_heads": 5}, "hidden_size 12"),
    ],
)
def test_a_foreign_config_is_refused(change, message):
    with pytest.raises(BertfastError, match=message):
        BertConfig.from_dict({**BertConfig().to_dict(), **change})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_type": "bert"}'])
def test_a_file_that_is_no_config_is_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BertfastError, match=r"config\.json") as caught:
        BertConfig.from_json_file(path)
    assert "\n" not in str(caught.value)
