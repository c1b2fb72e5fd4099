"""Folders in and out: what is read, what is refused, and that each refusal is one line that names the matter."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import bertfast
from bertfast import (
    BertConfig,
    BertfastError,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)
from bertfast.hub import load_weights, write_atomically

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
CLASSES = (BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification)


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


def refusal(folder, load=bertfast.load):
    with pytest.raises(BertfastError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_model_comes_back_as_it_was_saved(cls, tmp_path):
    model = saved(tmp_path / "new" / "folder", cls)
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
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights.items()
        }
        renamed["bert.embeddings.position_ids"] = torch.arange(16)[None]
        renamed["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
        renamed["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
        return renamed

    rewrite(tmp_path, as_of_old)
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())


def test_a_decoder_that_is_not_tied_is_refused(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"cls.predictions.decoder.weight": torch.zeros(101, 32)})
    assert "not tied" in refusal(tmp_path)


def test_shards_are_read(tmp_path):
    model = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = sorted(weights)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../x.safetensors"}}'])
def test_a_bad_index_of_shards_is_refused(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "index.json" in refusal(tmp_path)


def test_weights_of_an_old_torch_file_are_read_and_code_in_one_is_not_run(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert same(bertfast.load(tmp_path).state_dict(), model.state_dict())

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Attack()}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- between the base and its heads ---


def test_the_base_is_read_out_of_a_model_with_heads(tmp_path):
    model = saved(tmp_path)
    assert same(BertModel.from_pretrained(tmp_path).state_dict(), model.bert.state_dict())


@pytest.mark.parametrize("cls", [BertModel, BertForPreTraining, BertForMaskedLM], ids=lambda cls: cls.__name__)
def test_a_classifier_starts_from_any_encoder_with_a_new_head(cls, tmp_path):
    model = saved(tmp_path, cls)
    labels = ["a", "b", "c"]
    config = model.config.with_labels(labels)
    classifier = BertForSequenceClassification.from_pretrained(tmp_path, config=config, new_head_ok=True)
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
    new = load_weights(BertForSequenceClassification(BertConfig(**SMALL)), tmp_path, new_head_ok=True)
    assert sorted(new) == ["classifier.bias", "classifier.weight"]


def test_another_number_of_labels_makes_a_new_classifier(tmp_path):
    model = saved(tmp_path, BertForSequenceClassification)
    config = model.config.with_labels(["a", "b", "c", "d"])
    assert "classifier.weight is (2, 32), the config wants (4, 32)" in refusal(
        tmp_path, lambda folder: BertForSequenceClassification.from_pretrained(folder, config=config)
    )
    again = BertForSequenceClassification.from_pretrained(tmp_path, config=config, new_head_ok=True)
    assert again.classifier.weight.shape == (4, 32)


def test_the_head_of_another_task_is_left_aside(tmp_path):
    model = saved(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"qa_outputs.weight": torch.zeros(2, 32)})
    assert same(BertModel.from_pretrained(tmp_path).state_dict(), model.bert.state_dict())


# --- what does not fit ---


def test_an_encoder_is_never_left_random(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda weights: {name: x for name, x in weights.items() if "layer.1.output.dense" not in name})
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
        ({"vocab_size": 100}, "bert.embeddings.word_embeddings.weight is (101, 32), the config wants (100, 32)"),
        ({"hidden_size": 64}, "the config wants (101, 64)"),
        ({"intermediate_size": 100}, "intermediate.dense.weight is (64, 32), the config wants (100, 32)"),
        ({"max_position_embeddings": 8}, "position_embeddings.weight is (16, 32), the config wants (8, 32)"),
        ({"model_type": "t5"}, "model_type is 't5'; supported is bert, roberta, xlm-roberta, albert"),
        ({"model_type": "distilbert"}, "no dim, n_layers, n_heads; is it the config.json of a distilbert model?"),
        ({"architectures": ["BertForQuestionAnswering"]}, "missing qa_outputs.weight; missing qa_outputs.bias"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel is not supported"),
        ({"architectures": "T5Model"}, "T5Model is not supported"),
        ({"architectures": [3]}, "3 is not supported"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, change, named):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
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
    assert "no such folder" in refusal(tmp_path / "file")
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
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BertfastError, match="cannot be made"):
        saved(tmp_path / "file" / "model")


def test_a_loaded_model_needs_its_folder_no_longer(tmp_path):
    model = saved(tmp_path / "model")
    again = bertfast.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert same(model.state_dict(), again.state_dict())
