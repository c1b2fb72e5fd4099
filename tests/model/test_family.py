"""The table of the members: complete, and the one place that tells them apart."""

import pickle
import re

import pytest
import torch
from family import MEMBERS, small

import bertfast
from bertfast import PackedBatch, kernels
from bertfast.config import CONFIGS, PRESETS, DebertaV2Config, EncoderConfig, MPNetConfig
from bertfast.model import ARCHITECTURES, member_class
from bertfast.model.attention import POSITIONS
from bertfast.model.family import FAMILY, Field
from support import REPOSITORY

HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_member_is_known_everywhere(kind):
    config_class = CONFIGS[kind]
    assert FAMILY[kind].config is config_class
    assert FAMILY[kind].positions in POSITIONS
    assert config_class in MEMBERS
    assert any(of is config_class for of, _ in PRESETS.values())
    assert getattr(bertfast, config_class.__name__) is config_class
    for head in HEADS:
        cls = member_class(config_class(), head)
        assert cls.config_class is config_class
        assert getattr(bertfast, cls.__name__) is cls


def fields_of(row):
    """Every `Field` that a row names, at any depth."""
    if isinstance(row, Field):
        yield row
    elif isinstance(row, dict):
        for value in row.values():
            yield from fields_of(value)
    elif isinstance(row, tuple):
        for value in row:
            yield from fields_of(value)
    elif hasattr(row, "__dataclass_fields__") and not isinstance(row, type):
        yield from fields_of({name: getattr(row, name) for name in row.__dataclass_fields__})


@pytest.mark.parametrize("kind", FAMILY)
def test_every_field_that_a_row_names_is_of_its_configuration(kind):
    config = FAMILY[kind].config()
    named = set(fields_of(FAMILY[kind]))
    assert {"head_dropout", "type_vocab_size"} & named
    assert [name for name in named if not hasattr(config, name)] == []


def test_the_model_asks_for_ways_and_never_for_a_member():
    own = {cls.__name__ for cls in CONFIGS.values()}
    files = [REPOSITORY / "bertfast" / "model", REPOSITORY / "bertfast" / "hub"]
    for path in sorted(path for folder in files for path in folder.glob("*.py")):
        if path.name in ("family.py", "members.py"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not own & set(re.findall(r"\w+Config\b", text)), path.name
        assert not re.search(r"model_type\s*(==|!=|in\b|not in\b)", text), path.name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_model_holds_is_in_its_members_row(name):
    cls = ARCHITECTURES[name]
    model = cls(small(cls.config_class))
    row, config = model.member, model.config
    known = {f"{path}." for path in row.module_paths.values()}
    for index in range(config.num_hidden_layers * config.inner_group_num):
        place = row.layer_path(index, config)
        known |= {f"{place}.{path}." for path in row.layer_paths.values()}
    heads = {f"{path}." for path in row.head_paths}
    for parameter, _ in model.named_parameters():
        inner = parameter.removeprefix(f"{row.base}.")
        of_encoder = inner != parameter or model.base is model
        assert f"{inner}.".startswith(tuple(known if of_encoder else heads)), parameter


@pytest.mark.parametrize("config_class", MEMBERS, ids=lambda c: c.model_type)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForMultipleChoice"])
def test_a_model_goes_through_a_pickle(config_class, head):
    model = member_class(small(config_class), head)(small(config_class)).eval()
    again = pickle.loads(pickle.dumps(model))
    batch = PackedBatch.from_sequences([[5, 6, 7], [8] * 11])
    options = {"num_choices": 2} if head == "ForMultipleChoice" else {}
    with torch.no_grad():
        assert torch.equal(again(batch, **options)[0], model(batch, **options)[0])


@pytest.mark.parametrize("config_class", [DebertaV2Config, MPNetConfig], ids=lambda c: c.model_type)
def test_buckets_are_made_once_and_train_where_inference_made_them(config_class, monkeypatch):
    """A CUDA graph records no copy from the host."""
    name = {"mpnet": "t5_buckets", "deberta-v2": "deberta_buckets"}[config_class.model_type]
    calls, make = [], getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *a: (calls.append(a), make(*a))[1])
    model = member_class(small(config_class), "Model")(small(config_class))
    batch = PackedBatch.from_sequences([[5, 6, 7], [8] * 11])
    with torch.inference_mode():
        model(batch)
    model(batch).last_hidden_state.sin().sum().backward()
    assert len(calls) == 1
    model(PackedBatch.from_sequences([[5] * 12]))
    assert len(calls) == 2
    assert isinstance(model.config, EncoderConfig)
