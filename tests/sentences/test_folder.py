"""Every key of a sentence encoder's folder comes back as it was, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import write_model

from bertfast.errors import BertfastError
from bertfast.model import BertModel
from bertfast.sentences import Dense, SentenceEncoder

TEXTS = ["the film was warm", "the score was awful and long"]
SETTINGS = {
    "config_sentence_transformers.json": {
        "__version__": {"sentence_transformers": "5.0.0", "transformers": "4.52.0"},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "film: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 8,
        "a key of ours": {"kept": [1, None]},
    },
    "sentence_bert_config.json": {
        "max_seq_length": 12,
        "do_lower_case": True,
        "model_args": {"attn_implementation": "eager"},
    },
    "1_Pooling/config.json": {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": False,
    },
    "modules.json": [
        {
            "idx": 0,
            "name": "encoder",
            "path": "",
            "type": "sentence_transformers.models.Transformer",
            "kwargs": ["task"],
        },
        {
            "idx": 1,
            "name": "pool",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Dropout",
            "type": "sentence_transformers.models.Dropout",
        },
        {
            "idx": 3,
            "name": "3",
            "path": "3_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ],
    "2_Dropout/config.json": {"dropout": 0.2},
}
ADDED = {
    "config.json": {"gradient_checkpointing": False, "transformers_version": "4.52.0"},
    "tokenizer_config.json": {
        "clean_up_tokenization_spaces": True,
        "padding_side": "right",
        "truncation_side": "right",
        "extra_special_tokens": {},
        "max_length": 12,
        "model_max_length": 12,
    },
}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = write_model(tmp_path / "model", BertModel)
    for name, values in SETTINGS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    (folder / "3_Normalize").mkdir()
    for name, values in ADDED.items():
        (folder / name).write_text(json.dumps(read(folder / name) | values), encoding="utf-8")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.json") if path.is_file()
    )


def test_every_key_comes_back(folder, tmp_path):
    encoder = SentenceEncoder.from_pretrained(folder)
    assert encoder.similarity_fn_name == "dot"
    encoder.save_pretrained(tmp_path / "again")
    for name in files(folder):
        before = read(folder / name)
        after = read(tmp_path / "again" / name)
        if name == "tokenizer.json":  # lower-casing went into it
            assert after["model"] == before["model"]
            continue
        if isinstance(before, list):
            assert after == before
            continue
        lost = {key: value for key, value in before.items() if key not in after}
        changed = {
            key: (value, after[key])
            for key, value in before.items()
            if key in after and after[key] != value
        }
        assert not lost, (name, lost)
        assert set(changed) <= {"tokenizer_class", "model_input_names"}, (name, changed)
    again = SentenceEncoder.from_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "third")
    for name in files(tmp_path / "again"):
        if name != "tokenizer.json":
            assert read(tmp_path / "third" / name) == read(tmp_path / "again" / name)
    assert np.allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_sentence_transformers_loads_what_was_kept(folder, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    encoder = SentenceEncoder.from_pretrained(folder)
    encoder.save_pretrained(tmp_path / "again")
    model = st.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert model.similarity_fn_name == "dot"
    assert model.prompts == {"query": "film: ", "document": ""}
    assert model.default_prompt_name == "query"
    assert model.max_seq_length == 12
    assert len(model) == 4
    expected = model.encode(TEXTS)
    assert np.allclose(encoder.encode(TEXTS)[:, : expected.shape[1]], expected, atol=1e-5)


def test_what_is_set_here_wins(folder, tmp_path):
    encoder = SentenceEncoder.from_pretrained(folder)
    encoder.max_length, encoder.similarity_fn_name, encoder.truncate_dim = 9, "cosine", None
    encoder.prompts, encoder.default_prompt = {}, None
    encoder.pooling = ("max",)
    encoder.save_pretrained(tmp_path / "again")
    values = read(tmp_path / "again/config_sentence_transformers.json")
    assert values["similarity_fn_name"] == "cosine"
    assert values["prompts"] == {}
    assert values["default_prompt_name"] is None
    assert "truncate_dim" not in values
    assert read(tmp_path / "again/sentence_bert_config.json")["max_seq_length"] == 9
    assert read(tmp_path / "again/1_Pooling/config.json")["pooling_mode_max_tokens"] is True
    assert SentenceEncoder.from_pretrained(tmp_path / "again").pooling == ("max",)


def test_other_steps_than_the_folders_are_written_anew(folder, tmp_path):
    encoder = SentenceEncoder.from_pretrained(folder)
    encoder.steps.append(Dense(32, 8))
    encoder.save_pretrained(tmp_path / "again")
    kinds = [entry["type"].rpartition(".")[2] for entry in read(tmp_path / "again/modules.json")]
    assert kinds == ["Transformer", "Pooling", "Normalize", "Dense"]
    assert SentenceEncoder.from_pretrained(tmp_path / "again").width == 8


def test_code_of_its_own_is_not_kept(folder, tmp_path):
    values = read(folder / "config.json") | {"auto_map": {"AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(values))
    SentenceEncoder.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert "auto_map" not in read(tmp_path / "again/config.json")


def test_an_unknown_similarity_is_refused(folder):
    values = SETTINGS["config_sentence_transformers.json"] | {"similarity_fn_name": "hamming"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(values))
    with pytest.raises(BertfastError, match="similarity_fn_name is 'hamming'"):
        SentenceEncoder.from_pretrained(folder)
