"""Search of vectors, quantised ones too, against plain formulas and sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import run_cli, sentences, write_model, write_table

from bertfast import BertfastError, SentenceEncoder
from bertfast.model import BertModel
from bertfast.sentences import search
from bertfast.sentences.index import Made, VectorIndex, write_index
from bertfast.sentences.quantization import PRECISIONS, dequantize, quantize, ranges_of
from bertfast.sentences.search import hard_negatives, similar_pairs, similarity_matrix, top_k

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
QUANTIZE = ("--quantize", "x")
TEXTS = list(dict.fromkeys(text for text, _ in sentences(60)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 40),
    asked=st.integers(0, 4),
    k=st.integers(1, 50),
    block=st.integers(1, 60),
    similarity=st.sampled_from(SIMILARITIES),
    seed=st.integers(0, 99),
)
def test_blocks_find_what_one_product_finds(rows, asked, k, block, similarity, seed):
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-2, 3, (rows, 5)).astype(np.float32)  # with equal scores among them
    queries = rng.normal(size=(asked, 5)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "ROWS", block)
        scores, found = top_k(queries, corpus, k, similarity)
    assert scores.shape == found.shape == (asked, min(k, rows))
    whole = similarity_matrix(torch.from_numpy(queries), torch.from_numpy(corpus), similarity)
    wanted = whole.sort(dim=1, descending=True)[0][:, :k]
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-4, atol=1e-4)
    taken = whole.gather(1, torch.from_numpy(found)) if rows else whole
    np.testing.assert_allclose(taken.numpy(), scores, rtol=1e-4, atol=1e-4)
    assert all(len(set(line)) == len(line) for line in found.tolist())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantised_vectors_are_those_of_sentence_transformers(precision):
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(120, 13)).astype(np.float32)
    vectors[:, 3] = 0.5
    found = quantize(vectors, precision)
    wanted = theirs.quantize_embeddings(vectors, precision)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    back = dequantize(found, precision, 13, ranges_of(vectors))
    if "int8" in precision:
        assert np.abs(back - vectors).max() <= np.ptp(vectors, 0).max() / 255 + 1e-6
    elif precision == "float32":
        np.testing.assert_array_equal(back, vectors)
    else:
        np.testing.assert_array_equal(back > 0, vectors > 0)


@pytest.mark.slow_unless(lambda precision: precision in ("int8", "ubinary"))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_finds_the_vector_that_is_asked_for(precision, tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 64)).astype(np.float32)
    paths = {}
    for name in (precision, "float32"):
        paths[name] = tmp_path / f"{name}.npy"
        ranges = ranges_of(vectors) if "int8" in name else None
        made = quantize(vectors, name, ranges)
        write_index(
            paths[name],
            lambda draft, made=made: np.save(open(draft, "wb"), made),  # noqa: SIM115
            lambda name=name, ranges=ranges: Made(
                precision=name, width=64, ranges=None if ranges is None else ranges.tolist()
            ),
        )
    index = VectorIndex.open(paths[precision])
    queries = vectors[[7, 123]] + rng.normal(size=(2, 64)).astype(np.float32) / 10
    for rescore in (None, VectorIndex.open(paths["float32"])):
        scores, rows = index.search(queries, 5, rescore=rescore)
        assert rows[:, 0].tolist() == [7, 123]
        assert bool((np.diff(scores) <= 0).all())
    exact, _ = top_k(queries, vectors, 1)
    np.testing.assert_allclose(scores[:, :1], exact, rtol=1e-5)


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_a_graph_finds_what_is_near_and_is_kept(engine, tmp_path):
    pytest.importorskip(engine)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(400, 16)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    for _ in range(2):
        index = VectorIndex.open(tmp_path / "v.npy")
        scores, rows = index.search(vectors[:20], 3, engine=engine)
        assert rows[:, 0].tolist() == list(range(20))
        np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-5)
    assert (tmp_path / f"v.npy.cosine.{engine}").exists()
    with pytest.raises(BertfastError, match="compares by cosine or dot"):
        index.search(vectors[:1], similarity="euclidean", engine=engine)


def test_pairs_are_those_of_every_two_rows():
    vectors = np.random.default_rng(3).normal(size=(25, 6)).astype(np.float32)
    scores = similarity_matrix(*[torch.from_numpy(vectors)] * 2).numpy()
    wanted = sorted(
        ((scores[a, b], a, b) for a in range(25) for b in range(a + 1, 25)), reverse=True
    )
    found = similar_pairs(vectors)
    np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], atol=1e-5)
    assert {f[1:] for f in found} == {w[1:] for w in wanted}
    close = similar_pairs(vectors, least=0.5, most=3)
    assert len(close) == 3
    assert min(score for score, _, _ in close) >= 0.5


def test_hard_negatives_are_no_positives_and_below_the_bounds():
    rng = np.random.default_rng(4)
    corpus, queries = rng.normal(size=(50, 4)), rng.normal(size=(9, 4))
    corpus, queries = corpus.astype(np.float32), queries.astype(np.float32)
    scores = similarity_matrix(torch.from_numpy(queries), torch.from_numpy(corpus)).numpy()
    positives = [[int(n) for n in rng.choice(50, 2, replace=False)] for _ in range(9)]
    for options, bound in (
        ({}, lambda best: np.inf),
        ({"margin": 0.1}, lambda best: best - 0.1),
        ({"ratio": 0.9}, lambda best: best * 0.9),
        ({"highest": 0.3}, lambda best: 0.3),
    ):
        found = hard_negatives(queries, corpus, positives, negatives=3, skip=1, **options)
        for query, (rows, right) in enumerate(zip(found, positives, strict=True)):
            limit = bound(scores[query, right].max())
            order = [row for row in np.argsort(-scores[query]) if row not in right][1:]
            assert rows == [row for row in order if scores[query, row] <= limit][:3]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("search")
    write_model(place / "model", BertModel)
    (place / "lines.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return place


def test_the_command_finds_a_line_of_the_file(place, monkeypatch, capfd):
    for precision in ("float32", "int8", "binary"):
        out = place / f"{precision}.npy"
        done = run_cli(
            monkeypatch, capfd, "embed", place / "model", place / "lines.txt", "--out", out,
            "--quantize", precision,
        )  # fmt: skip
        assert done.code == 0
        done = run_cli(monkeypatch, capfd, "search", out, TEXTS[4], "--top", 3, "--json")
        hits = json.loads(done.out)["hits"]
        assert (done.code, len(hits)) == (0, 3)
        assert TEXTS[4] in [hit["text"] for hit in hits]
        if precision == "float32":
            assert (hits[0]["line"], hits[0]["text"]) == (5, TEXTS[4])
    np.testing.assert_array_equal(
        np.load(place / "float32.npy"),
        SentenceEncoder.from_pretrained(place / "model").encode(TEXTS),
    )


@pytest.mark.slow
def test_mined_rows_train(place, monkeypatch, capfd):
    rows = [(a, b) for a, b in zip(TEXTS[:15], TEXTS[15:30], strict=True)]
    write_table(place / "pairs.tsv", rows, ("anchor", "positive"))
    out = place / "mined.jsonl"
    done = run_cli(
        monkeypatch, capfd, "mine", place / "model", place / "pairs.tsv", "--negatives", 2,
        "--out", out,
    )  # fmt: skip
    mined = [json.loads(line) for line in out.read_text().splitlines()]
    assert (done.code, len(mined)) == (0, 15)
    assert all(row["positive"] not in row["negatives"] for row in mined)
    done = run_cli(
        monkeypatch, capfd, "sentences", place / "model", "--train", out, "--loss",
        "multiple-negatives", "--out", place / "trained",
    )  # fmt: skip
    assert done.code == 0
    done = run_cli(
        monkeypatch, capfd, "mine", place / "model", place / "lines.txt", "--kind", "paraphrases",
        "--most", 4, "--out", place / "alike.jsonl",
    )  # fmt: skip
    assert (done.code, len((place / "alike.jsonl").read_text().splitlines())) == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "{place}/gone.npy", "a"), "no such file"),
        (("search", "{place}/lines.txt", "a"), "is no array of NumPy"),
        (("search", "{place}/flat.npy", "a"), "vectors of numbers are wanted"),
        (("search", "{place}/objects.npy", "a"), "is no array of NumPy"),
        (("search", "{place}/bare.npy", "a"), "give --model"),
        (("search", "{place}/bare.npy", "a", "--model", "{place}/model"), "(rows, 7)"),
        (("search", "{place}/wrong.npy", "a"), "wrong.npy.json: does not describe"),
        (("search", "{place}/unfit.npy", "a"), "it says int8 of 7 numbers"),
        (("search", "{place}/right.npy", "a", "--top", "0"), "top is 0"),
        (("search", "{place}/right.npy", "a", "--engine", "x"), "engine is 'x'"),
        (("search", "{place}/right.npy", "a", "--texts", "{place}/short.txt"), "has 1 lines"),
        (("search", "{place}/right.npy", "a", "--rescore", "{place}/bare.npy"), "the same rows"),
        (("mine", "{place}/model", "{place}/lines.txt", "--out", "{place}/m"), "have 1 texts"),
        (
            ("mine", "{place}/model", "{place}/lines.txt", "--kind", "x", "--out", "{place}/m"),
            "kind is 'x'",
        ),
        (
            (
                "embed",
                "{place}/model",
                "{place}/lines.txt",
                "--out",
                "{place}/m",
                "--quantize",
                "x",
            ),
            "precision is 'x'",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, said, place: Path, monkeypatch, capfd):
    np.save(place / "flat.npy", np.zeros(7, np.float32))
    np.save(place / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (place / "short.txt").write_text("a\n")
    for name, width in (("bare", 7), ("wrong", 7), ("unfit", 7), ("right", 32)):
        np.save(place / f"{name}.npy", np.zeros((3, width), np.float32))
    (place / "wrong.npy.json").write_text('{"width": 7, "what": 1}')
    (place / "unfit.npy.json").write_text('{"width": 7, "precision": "int8"}')
    right = {"width": 32, "model": str(place / "model")}
    (place / "right.npy.json").write_text(json.dumps(right))
    done = run_cli(monkeypatch, capfd, *(word.format(place=place) for word in arguments))
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert said in done.errors[0]
    assert not (place / "m").exists()


def test_names_of_sentence_transformers_are_ours_too(place):
    library = pytest.importorskip("sentence_transformers")
    ours = SentenceEncoder.from_pretrained(place / "model")
    ours.prompts = {"query": "the film ", "document": "a "}
    theirs = library.SentenceTransformer(
        str(place / "model"), device="cpu", prompts=dict(ours.prompts)
    )
    texts = TEXTS[:5]
    for name in ("encode", "encode_query", "encode_document"):
        for options in (
            {"normalize_embeddings": True, "show_progress_bar": False},
            {"convert_to_tensor": True},
            {"truncate_dim": 8, "batch_size": 2},
            {"precision": "ubinary"},
            {"prompt": "it "},
        ):
            found, wanted = (getattr(m, name)(texts, **options) for m in (ours, theirs))
            assert type(found) is type(wanted)
            if "precision" in options:
                assert found.dtype == wanted.dtype
                assert (np.unpackbits(found) != np.unpackbits(wanted)).mean() < 0.01
                continue
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=1e-5)
    vectors = ours.encode(texts)
    np.testing.assert_allclose(
        ours.similarity(vectors, vectors), theirs.similarity(vectors, vectors), atol=1e-5
    )
    assert ours.max_seq_length == theirs.max_seq_length
    dimension = theirs.get_sentence_embedding_dimension()
    assert ours.get_sentence_embedding_dimension() == dimension
    out = np.zeros((5, 32), np.float32)
    assert ours.encode(texts, out=out) is out
    np.testing.assert_array_equal(out, vectors)
    with pytest.raises(BertfastError, match="out is float32 of shape"):
        ours.encode(texts, out=out[:2])
    with pytest.raises(BertfastError, match="precision is 'int4'"):
        ours.encode(texts, precision="int4")


def test_mteb_is_given_vectors_with_the_prompt_of_its_task(place):
    model = SentenceEncoder.from_pretrained(place / "model")
    model.prompts = {"STS": "the film ", "Mine-query": "a ", "document": "the "}
    batches = [{"text": TEXTS[:3]}, {"text": TEXTS[3:5]}]
    query, document = SimpleNamespace(value="query"), SimpleNamespace(value="document")
    for name, kind, prompt_type, prompt in (
        ("Mine", "STS", query, "a "),
        ("Mine", "STS", document, "the film "),
        ("Other", "Retrieval", document, "the "),
        ("Other", "STS", None, "the film "),
        ("Other", "Retrieval", query, ""),
    ):
        found = model.encode(
            batches,
            task_metadata=SimpleNamespace(name=name, type=kind),
            prompt_type=prompt_type,
            hf_split="test",
            hf_subset="default",
            batch_size=2,
        )
        np.testing.assert_array_equal(found, model.encode(TEXTS[:5], prompt=prompt, batch_size=2))
    pairs = model.similarity_pairwise(found[:2], found[2:4])
    assert torch.allclose(pairs, model.similarity(found[:2], found[2:4]).diagonal(), atol=1e-6)


def test_mteb_takes_the_encoder(place):
    protocols = pytest.importorskip("mteb.models.models_protocols")
    model = SentenceEncoder.from_pretrained(place / "model")
    assert isinstance(model, protocols.EncoderProtocol)
