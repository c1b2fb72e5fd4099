"""The configuration: presets as published, every field checked, Hugging Face's config.json in and
out.
"""

import json
from dataclasses import fields

import pytest
import torch

from bertfast import (
    BertConfig,
    BertfastError,
    BertForPreTraining,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)
from bertfast.config import CONFIGS, PRESETS, EncoderConfig
from bertfast.model import member_class

# layers, width, heads, parameters in millions (Turc et al., table 1; Devlin et al., section 3)
PUBLISHED = {
    "bert-tiny": (2, 128, 2, 4.4),
    "bert-mini": (4, 256, 4, 11.3),
    "bert-small": (4, 512, 8, 29.1),
    "bert-medium": (8, 512, 8, 41.7),
    "bert-base": (12, 768, 12, 110.1),
    "bert-large": (24, 1024, 16, 340),
}


# parameters of the published encoders, with their poolers, for those that were published with one
MILLIONS = {
    "bert-base": 109.48,
    "bert-large": 335.14,
    "minilm-l3": 17.39,
    "minilm-l6": 22.71,
    "minilm-l12": 33.36,
    "roberta-base": 124.65,
    "roberta-large": 355.36,
    "distilroberta-base": 82.12,
    "xlm-roberta-base": 278.04,
    "xlm-roberta-large": 559.89,
    "camembert-base": 110.62,
    "camembert-large": 336.66,
    "mpnet-base": 109.49,
    "albert-base": 11.68,
    "albert-large": 17.68,
    "albert-xlarge": 58.72,
    "albert-xxlarge": 222.60,
    "distilbert-base": 66.36,
    "electra-small": 13.48,
    "electra-base": 108.89,
    "electra-large": 334.09,
    "electra-small-generator": 13.48,
    "electra-base-generator": 33.51,
    "deberta-v2-xlarge": 884.59,
    "deberta-v2-xxlarge": 1564.55,
    "deberta-v3-xsmall": 70.68,
    "deberta-v3-small": 141.30,
    "deberta-v3-base": 183.83,
    "deberta-v3-large": 434.01,
    "mdeberta-v3-base": 278.22,
    "modernbert-base": 149.01,
    "modernbert-large": 394.78,
}


def parameters(config):
    """Of the encoder with its pooler, counted from the shapes."""
    width, inner = config.hidden_size, config.intermediate_size
    tables = (
        config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
    ) * width
    attention = 4 * (width + 1) * width + 2 * width
    feed_forward = (width + 1) * inner + (inner + 1) * width + 2 * width
    return tables + config.num_hidden_layers * (attention + feed_forward) + (width + 1) * width


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_shapes(name):
    layers, width, heads, millions = PUBLISHED[name]
    config = BertConfig.preset(name)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        layers,
        width,
        heads,
    )
    assert config.intermediate_size == 4 * width
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (
        30522,
        512,
        2,
    )
    assert config.head_dim == 64
    assert parameters(config) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_count_of_parameters_is_that_of_the_model():
    config = BertConfig.preset("bert-tiny", vocab_size=101)
    assert BertForPreTraining(config).bert.num_parameters() == parameters(config)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_of_transformers_model(name):
    transformers = pytest.importorskip("transformers")
    config = EncoderConfig.preset(name)
    cls = member_class(config, "Model")
    theirs = getattr(transformers, cls.__name__)
    with torch.device("meta"):
        ours, other = cls(config), theirs(theirs.config_class(**config.to_dict()))
    assert count(ours) == count(other)
    if name in MILLIONS:
        assert round(count(ours) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=list(CONFIGS))
def test_defaults_are_those_of_transformers(config_class):
    transformers = pytest.importorskip("transformers")
    theirs, ours = getattr(transformers, config_class.__name__)(), config_class()
    for f in fields(config_class):
        value = getattr(theirs, config_class.json_names.get(f.name, f.name), None)
        value = tuple(value) if isinstance(value, list) else value
        assert value is None or value == getattr(ours, f.name), f.name


def test_a_preset_takes_overrides():
    config = BertConfig.preset("bert-small", vocab_size=4096, hidden_dropout_prob=0.0)
    assert (config.vocab_size, config.hidden_dropout_prob, config.hidden_size) == (4096, 0.0, 512)


def test_an_unknown_preset_is_an_error_that_lists_those_there_are():
    with pytest.raises(BertfastError, match=r"'bert-huge'.*bert-tiny.*bert-large"):
        BertConfig.preset("bert-huge")


@pytest.mark.parametrize(
    ("config_class", "name"),
    [
        (BertConfig, "roberta-base"),
        (RobertaConfig, "xlm-roberta-base"),
        (ElectraConfig, "bert-base"),
    ],
)
def test_a_preset_of_another_member_is_refused_by_its_class(config_class, name):
    with pytest.raises(BertfastError, match=f"'{name}' is a .*Config, so take") as caught:
        config_class.preset(name)
    assert "\n" not in str(caught.value)
    assert type(EncoderConfig.preset(name)) is PRESETS[name][0]


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
        ("initializer_range", "0.02"),
        ("hidden_dropout_prob", None),
    ],
)
def test_a_field_out_of_range_is_one_line_that_names_it(field, value):
    with pytest.raises(BertfastError, match=field) as caught:
        BertConfig(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("roberta", {"pad_token_id": None}),
        ("camembert", {"pad_token_id": None}),
        ("mpnet", {"relative_attention_num_buckets": 31}),
        ("mpnet", {"relative_attention_num_buckets": "32"}),
        ("mpnet", {"pad_token_id": 30527}),
        ("albert", {"num_hidden_groups": 0}),
        ("albert", {"inner_group_num": 1.5}),
        ("albert", {"embedding_size": None}),
        ("distilbert", {"seq_classif_dropout": None}),
        ("distilbert", {"activation": "swish"}),
        ("electra", {"summary_type": "last"}),
        ("electra", {"summary_activation": "linear"}),
        ("deberta-v2", {"pos_att_type": "c2p|p2p"}),
        ("deberta-v2", {"pos_att_type": 3}),
        ("deberta-v2", {"position_buckets": "256"}),
        (
            "deberta-v2",
            {"relative_attention": True, "position_buckets": 8, "max_relative_positions": 4},
        ),
        ("deberta-v2", {"conv_kernel_size": 4}),
        ("deberta-v2", {"conv_kernel_size": -1}),
        ("deberta-v2", {"conv_groups": 7}),
        ("deberta-v2", {"attention_head_size": 32}),
        ("deberta-v2", {"pooler_hidden_size": 32}),
        ("deberta-v2", {"norm_rel_ebd": None}),
        ("modernbert", {"local_attention": -1}),
        ("modernbert", {"global_attn_every_n_layers": 0}),
        ("modernbert", {"layer_types": ["full_attention"]}),
        ("modernbert", {"layer_types": 3}),
        ("modernbert", {"classifier_pooling": "max"}),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2}}),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
        ("modernbert", {"rope_parameters": {"full_attention": 3}}),
        ("modernbert", {"num_attention_heads": 256}),
    ],
)
def test_a_members_own_field_out_of_range_is_one_line_that_names_it(model_type, change):
    values = CONFIGS[model_type]().to_dict()
    field = next(reversed(change))
    if field == "global_attn_every_n_layers":
        del values["layer_types"]
    with pytest.raises(BertfastError, match=field.removesuffix("_parameters")) as caught:
        EncoderConfig.from_dict({**values, **change})
    assert "\n" not in str(caught.value)


def test_labels_count_themselves():
    config = BertConfig().with_labels(["no", "yes", "maybe"])
    assert config.num_labels == 3
    assert config.label2id == {"no": 0, "yes": 1, "maybe": 2}


def test_a_config_survives_its_own_file(tmp_path):
    config = BertConfig.preset(
        "bert-mini", hidden_act="gelu_new", classifier_dropout=0.3
    ).with_labels(["a", "b", "c"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict("BertModel")))
    assert BertConfig.from_json_file(path) == config


def test_num_labels_stands_for_label_names():
    values = BertConfig().to_dict()
    del values["id2label"], values["label2id"]
    assert BertConfig.from_dict({**values, "num_labels": 5}).num_labels == 5


def test_what_published_files_hold_beside_the_shape_is_left_aside():
    """As on the hub: DeBERTa's kinds of attention in one word, and fields that the member's code
    does not read.
    """
    values = {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "torch_dtype": "float16",
        "transformers_version": "4.50.0",
    }
    assert EncoderConfig.from_dict(values) == EncoderConfig.preset("deberta-v3-xsmall")


@pytest.mark.parametrize(
    ("said", "global_theta", "local_theta", "period"),
    [
        (
            {"global_rope_theta": 5e4, "local_rope_theta": 1e3, "global_attn_every_n_layers": 2},
            5e4,
            1e3,
            2,
        ),
        ({"global_rope_theta": 5e4, "local_rope_theta": None}, 5e4, 5e4, 3),
        ({}, 16e4, 1e4, 3),
        ({"position_embedding_type": "sans_pos", "local_rope_theta": 160_000}, 16e4, 16e4, 3),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": None}},
            7.0,
            1e4,
            3,
        ),
    ],
)
def test_both_forms_of_modernberts_rotary_fields_are_read(said, global_theta, local_theta, period):
    shape = {
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    config = EncoderConfig.from_dict({"model_type": "modernbert", **shape, **said})
    assert (config.global_rope_theta, config.local_rope_theta) == (global_theta, local_theta)
    assert [config.window(layer) for layer in range(6)] == [
        64 if layer % period else None for layer in range(6)
    ]
    assert ModernBertConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "config",
    [
        *(EncoderConfig.preset(name) for name in PRESETS),
        ElectraConfig(summary_activation=""),
        DebertaV2Config(),
    ],
    ids=lambda config: config.model_type,
)
def test_every_members_config_survives_its_own_file(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert EncoderConfig.from_json_file(tmp_path / "config.json") == config


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
