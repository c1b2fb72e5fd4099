"""Folders in and out: what is read, what is refused, and that each refusal is one line that names
the matter.
"""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from family import MEMBERS, small
from safetensors.torch import load_file, save_file
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast import (
    BertConfig,
    BertfastError,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)
from bertfast.config import AlbertConfig, DebertaV2Config, ModernBertConfig
from bertfast.files import write_atomically
from bertfast.model import ARCHITECTURES, load_weights, member_class

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
EACH_MEMBER = pytest.mark.parametrize(
    "config_class", MEMBERS, ids=lambda config_class: config_class.model_type
)


def saved(folder, cls=BertForPreTraining, **overrides):
    model = cls(BertConfig(**{**SMALL, **overrides}))
    model.save_pretrained(folder)
    return model


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def rewrite(folder, change):
    """Puts the folder's weights through ``change``, a function of a dict."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def member(folder, config_class, head="ForMaskedLM", **overrides):
    """A saved model of that member."""
    model = member_class(small(config_class), head)(small(config_class, **overrides))
    model.save_pretrained(folder)
    return model


def change_config(folder, change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def in_shards(folder, suffix="safetensors"):
    """Puts the folder's weights into two files with an index; returns the files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = [folder / f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    places = {name: files[index % 2].name for index, name in enumerate(sorted(weights))}
    write = save_file if suffix == "safetensors" else torch.save
    for file in files:
        write({name: weights[name] for name, place in places.items() if place == file.name}, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return files


def refusal(folder, load=bertfast.load):
    with pytest.raises(BertfastError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_comes_back_as_it_was_saved(name, tmp_path):
    cls = ARCHITECTURES[name]
    model = cls(small(cls.config_class))
    model.save_pretrained(tmp_path / "new" / "folder")
    again = bertfast.load(tmp_path / "new" / "folder")
    assert type(again) is cls
    assert again.config == model.config
    assert same(model.state_dict(), again.state_dict())
    assert not again.training


def test_label_names_come_back(tmp_path):
    config = BertConfig(**SMALL).with_labels(["world", "sports", "science"])
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert bertfast.load(tmp_path).config.id2label == {0: "world", 1: "sports", 2: "science"}


def test_half_precision_weights_are_read_into_single_precision(tmp_path):
    model = saved(tmp_path)
    rewrite(tmp_path, lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})
    for name, tensor in bertfast.load(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_old_names_buffers_and_tied_copies_are_read(tmp_path):
    model = saved(tmp_path)

    def as_of_old(weights):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in weights.items()
        }
        renamed["bert.embeddings.position_ids"] = torch.arange(16)[None]
        renamed["cls.predictions.decoder.weight"] = weights[
            "bert.embeddings.word_embeddings.weight"
        ].clone()
        renamed["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
        return renamed

    rewrite(tmp_path, as_of_old)
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())


@EACH_MEMBER
def test_a_decoder_that_is_not_tied_is_refused_where_it_is_read(config_class, tmp_path):
    model = member(tmp_path, config_class)
    decoder, word = (
        f"{path}.weight" for path in (model.member.lm.decoder, f"{model.member.base}.x")
    )
    word = f"{model.member.base}.{model.member.module_paths['word']}.weight"
    rewrite(tmp_path, lambda weights: weights | {decoder: torch.zeros_like(weights[word])})
    assert f"{decoder} is not tied to {word}" in refusal(tmp_path)
    base = member_class(model.config, "Model").from_pretrained(tmp_path, new_head_ok=True)
    assert torch.equal(base.state_dict()[word.partition(".")[2]], model.state_dict()[word])
    rewrite(tmp_path, lambda weights: weights | {decoder: weights[word].clone()})
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())
    rewrite(tmp_path, lambda weights: weights | {decoder: weights[word][1:].clone()})
    assert "not tied" in refusal(tmp_path)


def test_a_decoders_bias_of_its_own_is_refused(tmp_path):
    model = saved(tmp_path, BertForMaskedLM)
    rewrite(tmp_path, lambda weights: weights | {"cls.predictions.decoder.bias": torch.ones(101)})
    assert "cls.predictions.decoder.bias is not tied to cls.predictions.bias" in refusal(tmp_path)
    rewrite(
        tmp_path,
        lambda weights: (
            weights | {"cls.predictions.decoder.bias": weights["cls.predictions.bias"] + 0}
        ),
    )
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@EACH_MEMBER
def test_shards_are_read(config_class, suffix, tmp_path):
    model = member(tmp_path, config_class)
    first, second = in_shards(tmp_path, suffix)
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert f"{second.name}: " in refusal(tmp_path)
    second.write_bytes(first.read_bytes())
    assert (
        f"names {sorted(model.state_dict())[1]} in {second.name}, which does not hold it"
        in refusal(tmp_path)
    )
    second.unlink()
    assert f"{second.name}: no such file" in refusal(tmp_path)


OUTSIDE = ("../outside.safetensors", "/etc/hostname", "sub/x.safetensors", "..", ".", "")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        *(json.dumps({"weight_map": {"a": place}}) for place in (*OUTSIDE, 3, None)),
    ],
)
def test_a_bad_index_of_shards_is_refused(tmp_path, text, file):
    saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "model" / f"{file}.index.json").write_text(text)
    assert "index.json" in refusal(tmp_path / "model")


@EACH_MEMBER
def test_weights_of_an_old_torch_file_are_read(config_class, tmp_path):
    model = member(tmp_path, config_class)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    word, decoder = (
        f"{path}.weight"
        for path in (
            f"{model.member.base}.{model.member.module_paths['word']}",
            model.member.lm.decoder,
        )
    )
    torch.save(
        weights | {decoder: weights[word]}, tmp_path / "pytorch_model.bin"
    )  # with tied tensors, as they were
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("sharded", [False, True])
def test_code_in_an_old_torch_file_is_refused_and_not_run(sharded, tmp_path):
    saved(tmp_path)
    if sharded:
        file = in_shards(tmp_path, "bin")[1]
    else:
        (tmp_path / "model.safetensors").unlink()
        file = tmp_path / "pytorch_model.bin"
    for content in (
        {"weight": Attack(tmp_path / "ran")},
        [1, 2],
        {"weight": "text"},
        {"state_dict": {}},
    ):
        torch.save(content, file)
        assert f"{file}: " in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- between the base and its heads ---


def test_the_base_is_read_out_of_a_model_with_heads(tmp_path):
    model = saved(tmp_path)
    assert same(BertModel.from_pretrained(tmp_path).state_dict(), model.bert.state_dict())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.endswith("Model")])
def test_a_base_has_the_weights_of_what_stood_below_a_head(name, tmp_path):
    """All but a pooler that was not there, which is named, and drawn only where it is allowed."""
    model = ARCHITECTURES[name](small(ARCHITECTURES[name].config_class))
    model.save_pretrained(tmp_path)
    cls = member_class(model.config, "Model")
    base = cls.from_pretrained(tmp_path, new_head_ok=True).state_dict()
    below = model.base.state_dict()
    assert all(torch.equal(base[part], weight) for part, weight in below.items())
    absent = sorted(base.keys() - below.keys())
    assert all(part.startswith("pooler.") for part in absent)
    if absent:
        message = refusal(tmp_path, cls.from_pretrained)
        assert all(f"missing {model.member.base}.{part}" in message for part in absent)
    else:
        assert same(cls.from_pretrained(tmp_path).state_dict(), base)


@EACH_MEMBER
def test_every_head_starts_from_every_other_and_is_new_itself(config_class, tmp_path):
    config = small(config_class)
    names = [name for name, cls in ARCHITECTURES.items() if cls.config_class is config_class]
    for source in names:
        model = ARCHITECTURES[source](config)
        model.save_pretrained(tmp_path)
        own = {
            name.removeprefix(f"{model.member.base}."): weight
            for name, weight in model.state_dict().items()
        }
        for target in names:
            head = ARCHITECTURES[target](config)
            before = {name: weight.clone() for name, weight in head.state_dict().items()}
            new = load_weights(head, tmp_path, new_head_ok=True)
            for name, weight in head.state_dict().items():
                there = own.get(name.removeprefix(f"{model.member.base}."))
                if name in new:
                    assert there is None or there.shape != weight.shape
                    assert torch.equal(weight, before[name])
                else:
                    assert torch.equal(weight, there)
            if target != source and any(
                not name.startswith(f"{model.member.base}.") for name in new
            ):
                message = refusal(tmp_path, ARCHITECTURES[target].from_pretrained)
                assert f"do not fit {target}" in message
                assert sum(message.count(name) for name in new) >= min(len(new), 8)


@pytest.mark.parametrize(
    "cls", [BertModel, BertForPreTraining, BertForMaskedLM], ids=lambda cls: cls.__name__
)
def test_a_classifier_starts_from_any_encoder_with_a_new_head(cls, tmp_path):
    model = saved(tmp_path, cls)
    labels = ["a", "b", "c"]
    config = model.config.with_labels(labels)
    classifier = BertForSequenceClassification.from_pretrained(
        tmp_path, config=config, new_head_ok=True
    )
    encoder = model if cls is BertModel else model.bert
    own = classifier.bert.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in encoder.state_dict().items())
    assert classifier.classifier.weight.shape == (3, 32)
    assert 0 < classifier.classifier.weight.abs().max() <= 0.04
    assert not classifier.classifier.bias.any()
    assert all(parameter.isfinite().all() for parameter in classifier.parameters())


def test_a_new_head_is_drawn_only_where_it_is_allowed(tmp_path):
    saved(tmp_path)
    message = refusal(tmp_path, BertForSequenceClassification.from_pretrained)
    assert "missing classifier.weight" in message
    assert "missing classifier.bias" in message


def test_what_was_drawn_anew_is_told(tmp_path):
    saved(tmp_path, BertModel)
    new = load_weights(
        BertForSequenceClassification(BertConfig(**SMALL)), tmp_path, new_head_ok=True
    )
    assert sorted(new) == ["classifier.bias", "classifier.weight"]


def test_another_number_of_labels_makes_a_new_classifier(tmp_path):
    model = saved(tmp_path, BertForSequenceClassification)
    config = model.config.with_labels(["a", "b", "c", "d"])
    assert "classifier.weight is (2, 32), the config wants (4, 32)" in refusal(
        tmp_path,
        lambda folder: BertForSequenceClassification.from_pretrained(folder, config=config),
    )
    again = BertForSequenceClassification.from_pretrained(tmp_path, config=config, new_head_ok=True)
    assert again.classifier.weight.shape == (4, 32)


def test_the_head_of_another_task_is_left_aside(tmp_path):
    model = saved(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"qa_outputs.weight": torch.zeros(2, 32)})
    assert same(BertModel.from_pretrained(tmp_path).state_dict(), model.bert.state_dict())


# --- what does not fit ---


@EACH_MEMBER
def test_a_wrong_weight_of_a_member_is_named(config_class, tmp_path):
    model = member(tmp_path, config_class)
    weights = load_file(tmp_path / "model.safetensors")
    for number, (name, tensor) in enumerate(weights.items()):
        rewrite(
            tmp_path,
            lambda _, without=name: {key: x for key, x in weights.items() if key != without},
        )
        assert f"missing {name}" in refusal(tmp_path)
        if number % 4:
            continue
        rewrite(
            tmp_path, lambda _, name=name, tensor=tensor: weights | {name: tensor.new_zeros(3, 5)}
        )
        assert f"{name} is (3, 5), the config wants {tuple(tensor.shape)}" in refusal(tmp_path)
        rewrite(
            tmp_path, lambda _, name=name, tensor=tensor: weights | {name: tensor.to(torch.int8)}
        )
        assert f"{name} holds int8" in refusal(tmp_path)
    for name in (
        "extra.weight",
        f"{model.member.base}.extra",
        f"{model.member.base}.encoder.layer.99.output.dense.bias",
    ):
        rewrite(tmp_path, lambda _, name=name: weights | {name: torch.zeros(3)})
        assert f"unknown {name}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config_class", "change", "named"),
    [
        *((config_class, {"vocab_size": 98}, "is (97, ") for config_class in MEMBERS),
        *(
            (config_class, {"vocab_size": 10**7}, "the config wants (10000000, ")
            for config_class in MEMBERS
        ),
        (AlbertConfig, {"num_hidden_groups": 4}, "missing albert.encoder.albert_layer_groups.2."),
        (AlbertConfig, {"num_hidden_groups": 1}, "unknown albert.encoder.albert_layer_groups.1."),
        (
            AlbertConfig,
            {"inner_group_num": 1},
            "unknown albert.encoder.albert_layer_groups.0.albert_layers.1.",
        ),
        (
            AlbertConfig,
            {"embedding_size": 8},
            "word_embeddings.weight is (97, 16), the config wants (97, 8)",
        ),
        (
            DebertaV2Config,
            {"relative_attention": False},
            "unknown deberta.encoder.rel_embeddings.weight",
        ),
        (
            DebertaV2Config,
            {"position_buckets": 4},
            "rel_embeddings.weight is (16, 32), the config wants (8, 32)",
        ),
        (
            DebertaV2Config,
            {"share_att_key": False},
            "missing deberta.encoder.layer.0.attention.self.pos_key_proj",
        ),
        (DebertaV2Config, {"conv_kernel_size": 3}, "missing deberta.encoder.conv.conv.weight"),
        (DebertaV2Config, {"norm_rel_ebd": "none"}, "unknown deberta.encoder.LayerNorm.weight"),
        (DebertaV2Config, {"legacy": False}, "missing lm_predictions.lm_head.dense.weight"),
        (
            DebertaV2Config,
            {"position_biased_input": True},
            "missing deberta.embeddings.position_embeddings.weight",
        ),
        (ModernBertConfig, {"norm_bias": True}, "missing model.embeddings.norm.bias"),
        (ModernBertConfig, {"mlp_bias": True}, "missing model.layers.0.mlp.Wi.bias"),
        (ModernBertConfig, {"decoder_bias": False}, "unknown decoder.bias"),
        (ModernBertConfig, {"classifier_bias": True}, "missing head.dense.bias"),
        (
            ModernBertConfig,
            {"num_hidden_layers": 3, "layer_types": None},
            "unknown model.layers.3.",
        ),
    ],
    ids=lambda value: (
        str(next(iter(value))) if isinstance(value, dict) else getattr(value, "model_type", "")
    ),
)
def test_a_config_that_contradicts_a_members_weights_is_refused(
    config_class, change, named, tmp_path
):
    member(tmp_path, config_class)
    change_config(tmp_path, change)
    assert named in refusal(tmp_path)


def test_a_heads_bias_that_the_config_has_none_of_is_refused(tmp_path):
    member(tmp_path, ModernBertConfig, "ForSequenceClassification", classifier_bias=True)
    change_config(tmp_path, {"classifier_bias": False})
    assert "unknown head.dense.bias" in refusal(tmp_path)


@EACH_MEMBER
def test_what_is_not_supported_names_itself_and_what_is(config_class, tmp_path):
    member(tmp_path, config_class)
    names = config_class.json_names
    for change, message in (
        (
            {"architectures": ["BertLMHeadModel"]},
            "BertLMHeadModel is not supported; supported are BertModel, ",
        ),
        (
            {names.get("hidden_act", "hidden_act"): "quick_gelu"},
            "'quick_gelu'; supported are gelu, gelu_new, ",
        ),
        ({"model_type": "xlnet"}, "'xlnet'; supported is bert, roberta, "),
    ):
        before = (tmp_path / "config.json").read_text()
        change_config(tmp_path, change)
        assert message in refusal(tmp_path)
        (tmp_path / "config.json").write_text(before)
    if config_class.model_type in (
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "albert",
        "electra",
    ):
        change_config(tmp_path, {"position_embedding_type": "relative_key_query"})
        assert "position_embedding_type is 'relative_key_query'; supported is absolute" in refusal(
            tmp_path
        )


def test_an_encoder_is_never_left_random(tmp_path):
    saved(tmp_path)
    rewrite(
        tmp_path,
        lambda weights: {
            name: x for name, x in weights.items() if "layer.1.output.dense" not in name
        },
    )
    for load in (
        bertfast.load,
        lambda folder: BertForSequenceClassification.from_pretrained(folder, new_head_ok=True),
    ):
        message = refusal(tmp_path, load)
        assert "missing bert.encoder.layer.1.output.dense.weight" in message
        assert "missing bert.encoder.layer.1.output.dense.bias" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 1}, "unknown bert.encoder.layer.1.attention"),
        ({"num_hidden_layers": 3}, "missing bert.encoder.layer.2.attention"),
        (
            {"vocab_size": 100},
            "bert.embeddings.word_embeddings.weight is (101, 32), the config wants (100, 32)",
        ),
        ({"hidden_size": 64}, "the config wants (101, 64)"),
        (
            {"intermediate_size": 100},
            "intermediate.dense.weight is (64, 32), the config wants (100, 32)",
        ),
        (
            {"max_position_embeddings": 8},
            "position_embeddings.weight is (16, 32), the config wants (8, 32)",
        ),
        (
            {"model_type": "t5"},
            "model_type is 't5'; supported is bert, roberta, xlm-roberta, albert",
        ),
        (
            {"model_type": "distilbert"},
            "no dim, n_layers, n_heads; is it the config.json of a distilbert model?",
        ),
        (
            {"architectures": ["BertForQuestionAnswering"]},
            "missing qa_outputs.weight; missing qa_outputs.bias",
        ),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel is not supported"),
        ({"architectures": "T5Model"}, "T5Model is not supported"),
        ({"architectures": [3]}, "3 is not supported"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, change, named):
    saved(tmp_path)
    change_config(tmp_path, change)
    assert named in refusal(tmp_path)


def test_foreign_weights_are_refused(tmp_path):
    saved(tmp_path)
    save_file({"transformer.wte.weight": torch.zeros(101, 32)}, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert "unknown" in message
    assert "transformer.wte.weight" in message


@pytest.mark.parametrize("kept", [0, 5, 100, -100])
def test_a_truncated_file_is_refused(tmp_path, kept):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors: truncated, or no safetensors file" in refusal(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")
    saved(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(tmp_path / "half")


# --- writing ---


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "weights"
    path.write_text("good")

    def fails(temporary):
        temporary.write_text("half of")
        raise OSError("No space left on device")

    with pytest.raises(BertfastError, match="No space left on device"):
        write_atomically(path, fails)
    assert path.read_text() == "good"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


def test_saving_over_a_model_leaves_the_new_one_and_no_other_files(tmp_path):
    saved(tmp_path)
    second = saved(tmp_path, BertForMaskedLM)
    assert same(bertfast.load(tmp_path).state_dict(), second.state_dict())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BertfastError, match="cannot be made"):
        saved(tmp_path / "file" / "model")


def test_a_loaded_model_needs_its_folder_no_longer(tmp_path):
    model = saved(tmp_path / "model")
    again = bertfast.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert same(model.state_dict(), again.state_dict())


# --- at the command line ---


def half_a_shard(folder):
    file = in_shards(folder)[1]
    file.write_bytes(file.read_bytes()[:100])


def another_architecture(folder):
    change_config(
        folder,
        {"architectures": ["BertLMHeadModel"]}
        if "fill" in folder.name
        else {"model_type": "xlnet"},
    )


def code_for_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Attack(folder.parent / "ran")}, folder / "pytorch_model.bin")


BREAKAGES = {
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"),
        "truncated",
    ),
    "half a shard": (half_a_shard, "truncated"),
    "a shard missing": (lambda folder: in_shards(folder)[0].unlink(), "no such file"),
    "code for weights": (code_for_weights, "cannot be read as plain weights"),
    "a weight missing": (
        lambda folder: rewrite(folder, lambda weights: dict(list(weights.items())[1:])),
        "missing",
    ),
    "another width": (
        lambda folder: change_config(folder, {"hidden_size": 64}),
        "the config wants",
    ),
    "another vocabulary": (
        lambda folder: change_config(folder, {"vocab_size": 1000}),
        "the config wants",
    ),
    "fewer layers": (lambda folder: change_config(folder, {"num_hidden_layers": 1}), "unknown"),
    "a small table": (lambda folder: write_small_table(folder), "word embeddings"),
    "an activation": (
        lambda folder: change_config(folder, {"hidden_act": "mish"}),
        "'mish'; supported are gelu",
    ),
    "positions": (
        lambda folder: change_config(folder, {"position_embedding_type": "relative_key"}),
        "'relative_key'",
    ),
    "another architecture": (another_architecture, "supported"),
}


def write_small_table(folder):
    """A model of fewer words than its tokenizer has."""
    model = bertfast.load(folder)
    type(model)(replace(model.config, vocab_size=20)).save_pretrained(folder)


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("command", ["fill", "predict", "finetune"])
@pytest.mark.slow_unless(lambda command: command == "fill")
def test_the_command_line_says_in_one_line_what_is_wrong(
    command, breakage, tmp_path, monkeypatch, capfd
):
    folder = write_model(
        tmp_path / command,
        BertForSequenceClassification if command == "predict" else BertForMaskedLM,
    )
    change, message = BREAKAGES[breakage]
    change(folder)
    (tmp_path / "text.txt").write_text("the film was warm\n")
    table = write_table(tmp_path / "train.tsv", sentences(8))
    arguments = {
        "fill": (folder, "the [MASK] was warm"),
        "predict": (folder, tmp_path / "text.txt"),
        "finetune": (
            folder,
            "--task",
            "classification",
            "--train",
            table,
            "--dev",
            table,
            "--out",
            tmp_path / "out",
        ),
    }[command]
    done = run_cli(monkeypatch, capfd, command, *arguments)
    assert done.code == 2
    assert [message in line for line in done.errors] == [True], done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
