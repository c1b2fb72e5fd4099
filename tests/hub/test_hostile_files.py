"""A folder from anywhere costs one clear error, in bounded time and memory: each is read in a child
process that is killed after some seconds and may take one gigabyte more than it starts with.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_model
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

import bertfast
from bertfast.config import MOST_LABELS, MOST_LAYERS, BertConfig, EncoderConfig, ModernBertConfig
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.files import read_json, read_object, read_text, read_yaml
from bertfast.model import BertForSequenceClassification
from bertfast.sentences import SentenceEncoder
from bertfast.tokenization import load_tokenizer
from bertfast.tokenization.patterns import explosive
from bertfast.training.checkpoint import load_checkpoint
from bertfast.training.config import PretrainConfig
from bertfast.training.pretrain import RunSetup

# Of computing, of waiting, and of memory.
CPU_SECONDS, SECONDS, BYTES = 30, 300, 1 << 30
MANY = 10**9


def message_of(call) -> str:
    """The text of the BertfastError that ``call`` raises in a child with limits."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            seconds = int(used) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            try:
                text = f"no error, but {call()!r}"
            except BertfastError as error:
                status, text = 0, str(error)
            except BaseException as error:
                text = f"{type(error).__name__}: {str(error)[:300]}"
            os.write(writes, text.encode(errors="replace")[:4000])
        finally:
            os._exit(status)
    os.close(writes)
    with open(reads, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFEXITED(status), f"killed by signal {os.WTERMSIG(status)}: {text}"
    assert os.WEXITSTATUS(status) == 0, text
    assert "\n" not in text
    assert len(text) < 3000
    return text


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_model(tmp_path / "model", BertForSequenceClassification)


def set_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | changes))


# --- files that are none, or no parser survives ---


def fifo(path):
    os.mkfifo(path)


def link_to(target):
    return lambda path: path.symlink_to(target)


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def listening(path):
    place = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(place)


FORMS = {
    "a pipe": (fifo, "is a pipe"),
    "a folder": (Path.mkdir, "is a folder"),
    "a device": (link_to("/dev/zero"), "is a device"),
    "a socket": (listening, "is a socket"),
    "a loop of links": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "a link to nothing": (link_to("nowhere"), "link to a file that is not there"),
}
CONTENTS = {
    "a sparse terabyte": (sparse, "bytes; a file of this kind has at most"),
    "deep JSON": (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "nested deeper"),
    "deep objects": (
        lambda path: path.write_text('{"a":' * 200 + "1" + "}" * 200),
        "nested deeper than 64",
    ),
    "a long number": (lambda path: path.write_text('{"a":' + "9" * 5000 + "}"), "5000 digits"),
    "half a character": (lambda path: path.write_text('{"a": "\\ud800"}'), "surrogate"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe{}"), "not UTF-8"),
    "a list": (lambda path: path.write_text("[1]"), "holds a list"),
    "nothing": (lambda path: path.write_text(""), "cannot be read as JSON"),
}


def whole(folder):
    """All that reads the folder, as predictions do."""
    from bertfast.training.predict import Classifier

    return Classifier(folder)


def vectors(folder):
    return SentenceEncoder.from_pretrained(folder).encode("the film was warm")


@pytest.mark.parametrize("form", [*FORMS, *CONTENTS])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("config.json", bertfast.load),
        ("tokenizer_config.json", load_tokenizer),
        ("special_tokens_map.json", load_tokenizer),
        ("metrics.json", whole),
        ("modules.json", vectors),
        ("sentence_bert_config.json", vectors),
        ("config_sentence_transformers.json", vectors),
        ("training_state.json", load_checkpoint),
    ],
)
def test_a_file_of_settings_that_is_none(name, call, form, folder):
    make, message = {**FORMS, **CONTENTS}[form]
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    if (name, form) == ("modules.json", "a list"):
        message = "no list of modules"
    text = message_of(lambda: call(folder))
    assert message in text
    assert name in text


@pytest.mark.parametrize("form", [*FORMS, "a sparse terabyte"])
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("tokenizer.json", ()),
        ("vocab.txt", ("tokenizer.json",)),
        ("vocab.json", ("tokenizer.json", "vocab.txt")),
        ("spiece.model", ("tokenizer.json", "vocab.txt")),
    ],
)
def test_a_vocabulary_that_is_none(name, without, form, folder):
    make, message = {**FORMS, **CONTENTS}[form]
    for other in (name, *without):
        (folder / other).unlink(missing_ok=True)
    make(folder / name)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = message_of(lambda: load_tokenizer(folder))
    assert message in text
    assert name in text


def test_files_that_transformers_would_open_beside_a_sentencepiece_model(folder):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    (folder / "spiece.model").write_bytes(b"\x0a\x00")
    os.mkfifo(folder / "added_tokens.json")
    assert "added_tokens.json: is a pipe" in message_of(lambda: load_tokenizer(folder))


@pytest.mark.parametrize("form", [*FORMS, "a sparse terabyte"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_none(name, form, folder):
    make, message = {**FORMS, **CONTENTS}[form]
    (folder / "model.safetensors").unlink()
    make(folder / name)
    if form == "a sparse terabyte":
        message = "plain weights" if name.endswith(".bin") else "safetensors: "
    text = message_of(lambda: bertfast.load(folder))
    assert message in text
    assert name in text


@pytest.mark.parametrize("form", FORMS)
def test_data_and_runs_that_are_none(form, tmp_path):
    make, message = FORMS[form]
    make(tmp_path / "data.txt")
    from bertfast.data.readers import read_documents

    for name in ("data.txt", "config.yaml"):
        path = tmp_path / name
        if not os.path.lexists(path):
            make(path)
    assert message in message_of(lambda: list(read_documents([tmp_path / "data.txt"])))
    assert message in message_of(lambda: read_yaml(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\n", "aliases"),
        ("[" * 100_000, "nested deeper"),
        (f"seed: {'9' * 5000}\n", "digits"),
        ("day: 9999-99-99\n", "month"),
        ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("- " * 5000 + "a", "nested deeper"),
    ],
)
def test_yaml_that_explodes(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert message in message_of(lambda: read_yaml(tmp_path / "config.yaml"))


@pytest.mark.parametrize("read", [read_text, read_json, read_object, read_yaml])
def test_a_path_with_a_zero_byte(read):
    assert "is no path" in message_of(lambda: read("config\0.json"))


def test_a_module_at_a_path_with_a_zero_byte(folder):
    entry = {"idx": 0, "name": "0", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([entry | {"path": "a\0b"}]))
    assert "null byte" in message_of(lambda: vectors(folder))
    (folder / "loop").symlink_to("loop")
    (folder / "modules.json").write_text(json.dumps([entry | {"path": "loop"}]))
    assert "loop" in message_of(lambda: vectors(folder))
    (folder / "modules.json").write_text(json.dumps([entry | {"path": ""}] * 1000))
    assert "1000 modules" in message_of(lambda: vectors(folder))


def test_an_index_that_names_a_zero_byte_or_a_pipe(folder):
    weights = folder / "model.safetensors"
    weights.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x\0.safetensors"}}))
    assert "is no path" in message_of(lambda: bertfast.load(folder))
    os.mkfifo(folder / "x.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    assert "is a pipe" in message_of(lambda: bertfast.load(folder))


# --- sizes ---


@pytest.mark.parametrize("count", [200_000, MANY, 10**18])
@pytest.mark.parametrize("preset", ["bert-tiny", "albert-base", "modernbert-base"])
def test_more_layers_than_any_model_has(preset, count, tmp_path):
    values = EncoderConfig.preset(preset).to_dict() | {"num_hidden_layers": count}
    values.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    text = message_of(lambda: EncoderConfig.from_json_file(tmp_path / "config.json"))
    assert "num_hidden_layers is" in text
    assert f"at most {MOST_LAYERS}" in text


@pytest.mark.parametrize("name", ["num_hidden_groups", "inner_group_num"])
def test_more_groups_than_any_albert_has(name):
    values = EncoderConfig.preset("albert-base").to_dict() | {name: MANY}
    assert f"{name} is {MANY}" in message_of(lambda: EncoderConfig.from_dict(values))


def test_more_layers_than_weights(folder):
    set_json(folder / "config.json", num_hidden_layers=MOST_LAYERS)
    text = message_of(lambda: bertfast.load(folder))
    assert f"asks for {MOST_LAYERS} layers, and the weights are" in text


@pytest.mark.parametrize("count", [10**12, 10**30, MOST_LABELS + 1])
def test_more_labels_than_any_head_has(count, folder):
    values = json.loads((folder / "config.json").read_text())
    del values["id2label"], values["label2id"]
    (folder / "config.json").write_text(json.dumps(values | {"num_labels": count}))
    assert "num_labels is" in message_of(lambda: bertfast.load(folder))


def test_more_labels_than_the_weights_have(folder):
    values = json.loads((folder / "config.json").read_text())
    del values["id2label"], values["label2id"]
    (folder / "config.json").write_text(json.dumps(values | {"num_labels": 100_000}))
    assert "the config wants (100000, 32)" in message_of(lambda: bertfast.load(folder))


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    ],
)
@pytest.mark.parametrize("value", [10**6, 10**12, 10**99])
def test_sizes_beyond_the_weights_take_no_memory(name, value, folder):
    set_json(folder / "config.json", **{name: value})
    text = message_of(lambda: bertfast.load(folder))
    assert f"{name} is" in text or "the config wants" in text


@pytest.mark.parametrize(
    "change",
    [
        {"position_buckets": 10**12, "max_relative_positions": 10**13},
        {"max_relative_positions": 10**12},
        {"conv_kernel_size": 10**12 + 1},
        {"embedding_size": 10**12},
        {"conv_groups": 10**12},
    ],
    ids=lambda change: next(iter(change)),
)
def test_debertas_sizes(change):
    values = EncoderConfig.preset("deberta-v3-small").to_dict() | change
    assert "at most" in message_of(lambda: EncoderConfig.from_dict(values))


def test_numbers_that_python_does_not_write():
    for value in (10**5000, -(10**5000)):
        assert "vocab_size is" in message_of(lambda value=value: BertConfig(vocab_size=value))
        assert "initializer_range" in message_of(
            lambda value=value: BertConfig(initializer_range=value)
        )
    assert "layer_types" in message_of(lambda: ModernBertConfig(layer_types=("x",) * 10**6))


def test_a_long_value_does_not_fill_the_screen(folder):
    set_json(folder / "config.json", hidden_act="x" * 10**6)
    assert "more ...]" in message_of(lambda: bertfast.load(folder))


def test_a_new_model_beyond_the_machine_is_refused(folder):
    shape = tmp = folder.parent / "shape.json"
    values = BertConfig(
        hidden_size=1 << 17, num_attention_heads=1024, intermediate_size=1 << 18
    ).to_dict()
    shape.write_text(json.dumps(values | {"num_hidden_layers": 100}))
    config = PretrainConfig(
        data=("x",), tokenizer=str(folder), out="o", shape=str(tmp), seq_len=16, objective="mlm"
    )
    text = message_of(lambda: RunSetup(config, load_tokenizer(folder)))
    assert "parameters, which take" in text
    assert "this machine has" in text


# --- weights ---


def header(folder: Path, values: object, data: bytes = b"", length: int | None = None) -> None:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + data)


def entry(start: int, end: int, shape=(1,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("values", "data", "length"),
    [
        ({}, b"", 2**63),
        ({}, b"", 2**64 - 1),
        ({}, b"", 10**8),
        (b"", b"", None),
        ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), None),
        ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), None),
        ({"a": entry(4, 0)}, bytes(4), None),
        ({"a": entry(0, 2**62)}, bytes(4), None),
        ({"a": entry(0, 4, (2**40, 2**40))}, bytes(4), None),
        ({"a": entry(0, 4, (-1,))}, bytes(4), None),
        ({"a": entry(0, 4, dtype="PICKLE")}, bytes(4), None),
        ({"a": entry(0, 4, (2,))}, bytes(4), None),
        ({"a": []}, bytes(4), None),
        ([], b"", None),
        (b"[" * 100_000, b"", None),
        (b'{"a":' + b"9" * 5000 + b"}", b"", None),
    ],
)
def test_a_safetensors_header_that_lies(values, data, length, folder):
    header(folder, values, data, length)
    assert "truncated, or no safetensors file" in message_of(lambda: bertfast.load(folder))


def test_tensors_of_other_types_are_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "bert.pooler.dense.bias"
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64):
        save_file(weights | {name: weights[name].to(dtype)}, path)
        kind = str(dtype).removeprefix("torch.")
        text = message_of(lambda: bertfast.load(folder))
        assert f"{name} holds {'C64' if dtype.is_complex else kind}" in text


def test_a_file_of_a_terabyte_that_fits_its_config_is_refused(folder):
    path = folder / "model.safetensors"
    set_json(folder / "config.json", hidden_size=1 << 17, intermediate_size=1 << 18)
    config = EncoderConfig.from_json_file(folder / "config.json")
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    entries, end = {}, 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * 4
        entries[name] = entry(end, end + size, tensor.shape)
        end += size
    header(folder, entries)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + end)
    text = message_of(lambda: bertfast.load(folder))
    assert "this machine has" in text or "more than this process may map" in text


def pickled(folder: Path, weights: dict) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_bin_is_read_without_its_numbers_first(folder):
    expected = bertfast.load(folder).state_dict()
    pickled(folder, load_file(folder / "model.safetensors"))
    found = bertfast.load(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.save(
        expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )  # of old releases
    found = bertfast.load(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_bin_of_one_number_stretched_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    pickled(folder, weights | {name: torch.zeros(1).expand(10**7, 32)})
    set_json(folder / "config.json", vocab_size=10**7)
    assert "no plain weights" in message_of(lambda: bertfast.load(folder))


def test_a_compressed_bin_is_refused(folder):
    path = pickled(folder, {"a": torch.zeros(10**7)})
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "cannot be read as plain weights" in message_of(lambda: bertfast.load(folder))


def test_a_pickle_is_never_run(folder):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(folder / "attacked"),)

    pickled(folder, {})
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"a": Attack()}, folder / "pytorch_model.bin")
        assert "cannot be read as plain weights" in message_of(lambda: bertfast.load(folder))
    assert not (folder / "attacked").exists()


# --- sentence encoders ---


def test_a_dense_layer_beyond_its_weights_takes_no_memory(folder):
    SentenceEncoder.from_pretrained(folder).save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Dense")
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, ("", "1_Pooling", "2_Dense"), strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(8, 32)}, folder / "2_Dense/model.safetensors")
    for size in (10**5, 10**12):
        set_json(folder / "2_Dense/config.json", in_features=32, out_features=size, bias=False)
        text = message_of(lambda: vectors(folder))
        assert "do not fit the Dense" in text or "wider than" in text
    set_json(folder / "2_Dense/config.json", out_features=8)
    assert SentenceEncoder.from_pretrained(folder).width == 8


def test_one_way_to_pool_a_million_times(folder):
    SentenceEncoder.from_pretrained(folder).save_pretrained(folder)
    set_json(folder / "1_Pooling/config.json", pooling_mode=["mean"] * 10**6)
    assert "twice" in message_of(lambda: vectors(folder))


@pytest.mark.parametrize("length", [float("nan"), float("inf"), 10**30, -1, 0])
def test_a_longest_input_that_is_no_number_of_tokens(length, folder):
    set_json(folder / "tokenizer_config.json", model_max_length=length)
    if length in (-1, 0):
        assert "the longest input" in message_of(lambda: vectors(folder))
    else:
        assert vectors(folder).shape == (32,)


# --- tokenizers ---


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"version": "1.0", "model": ' + '{"a": ' * 10_000 + "1" + "}" * 10_001,
        '{"normalizer": ' + '{"type": "Sequence", "normalizers": [' * 5000 + "]}" * 5000 + "}",
        "{}",
        "",
        '{"model": {"type": "WordPiece", "vocab": {"a": -1}}}',
        '{"model": {"type": "WordPiece", "vocab": {"a": ' + "9" * 5000 + "}}}",
    ],
    ids=["deep", "deep model", "deep normalizer", "empty object", "empty", "negative", "long"],
)
def test_a_tokenizer_that_cannot_be_parsed(text, folder):
    (folder / "tokenizer.json").write_text(text)
    assert "cannot be read as a tokenizer" in message_of(lambda: load_tokenizer(folder))


def test_an_id_beyond_every_vocabulary(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["zzz"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert "gives ids up to 4294967295" in message_of(lambda: vectors(folder))
    config = PretrainConfig(
        data=("x",), tokenizer=str(folder), out="o", shape="bert-tiny", seq_len=16, objective="mlm"
    )
    text = message_of(lambda: RunSetup(config, load_tokenizer(folder)))
    assert "vocab_size is 4294967296" in text


EXPLOSIVE = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(.*)*x",
    r"(x+x+)+y",
    r"(\w+\s?)*$",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"(.*)(.*)x",
    r"a*a*a*a*a*b",
    r"\s*\s*\s*$",
    r"(a?){30}a{30}",
    "a?" * 30 + "a" * 30,
    r"(a{1,100}){1,100}b",
    r".{0,500}.{0,500}x",
    r"(a+){2}{2}{2}b",
    r"a**b",
    r"(?=(a+)+$)",
    r"(a*)\1b",
    r"(?<n>a|b\g<n>c)",
    r"(?~ab)",
    r"(?x: a + )",
    "(" * 1000 + "a" + ")" * 1000,
    "a" * 20_000,
]
PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    " {2,}",
    r" ?[^(\s|[.,!?…。])]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"(\d{3})+(?!\d)",
    "[0-9][0-9][0-9]",
    "[\u4e00-\u9fa5\u3040-\u30ff]+",
    r"[^\W\d_]+|\d+\.\d+|\s+",
    r"\w+|[^\w\s]+",
    r"(?<=\S)\s",
]


@pytest.mark.parametrize("pattern", EXPLOSIVE, ids=lambda pattern: pattern[:20])
def test_an_explosive_pattern_is_refused(pattern):
    assert message_of(lambda: refused(pattern))


def refused(pattern):
    if trouble := explosive(pattern):
        raise BertfastError(trouble)


@pytest.mark.parametrize("pattern", PUBLISHED, ids=lambda pattern: pattern[:20])
def test_patterns_of_published_tokenizers_pass(pattern):
    assert explosive(pattern) is None


@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer"])
def test_a_tokenizer_with_an_explosive_pattern_is_refused_where_it_is_loaded(place, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own = getattr(tokenizer, place)
    pattern = Regex("(a+)+$")
    if place == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([own, normalizers.Replace(pattern, "a")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, "isolated"), own]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    text = message_of(lambda: load_tokenizer(folder))
    assert "the pattern '(a+)+$' is not supported" in text


def test_a_normalizer_that_multiplies_text_is_refused(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "characters of one" in message_of(lambda: load_tokenizer(folder))


# --- what a run keeps ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dtype.txt", b"O"),
        ("dtype.txt", b"float64"),
        ("sentences.npy", b"\x93NUMPY\x01\x00"),
        ("documents.npy", b""),
    ],
)
def test_a_token_store_that_lies(name, content, folder):
    data = folder.parent / "data.txt"
    data.write_text("the film was warm\n")
    store = folder.parent / "tokens"
    TokenStore.build([data], load_tokenizer(folder), store)
    (store / name).write_bytes(content)
    assert "holds no whole token store" in message_of(lambda: TokenStore.open(store))


def test_a_token_store_of_more_than_it_holds(folder):
    import numpy as np

    data = folder.parent / "data.txt"
    data.write_text("the film was warm\n")
    store = folder.parent / "tokens"
    TokenStore.build([data], load_tokenizer(folder), store)
    with open(store / "sentences.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
        )
    assert "holds no whole token store" in message_of(lambda: TokenStore.open(store))
