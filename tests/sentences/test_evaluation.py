"""Evaluators give what sentence-transformers' and scikit-learn's give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import run_cli, sentences, write_model, write_table

from bertfast import BertfastError, SentenceEncoder
from bertfast.model import BertModel
from bertfast.scoring.ranking import average_precision, ndcg
from bertfast.sentences.evaluation import (
    Clustering,
    Probe,
    Reranking,
    Retrieval,
    Similarity,
    Triplets,
)
from bertfast.training.sentence_evaluation import evaluator_of

TEXTS = list(dict.fromkeys(text for text, _ in sentences(90)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("encoder") / "model", BertModel)


@pytest.fixture(scope="module")
def ours(folder):
    return SentenceEncoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def evaluation():
    return pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")


def test_similarity_is_that_of_sentence_transformers(ours, theirs, evaluation):
    first, second, scores = TEXTS[:30], TEXTS[30:60], [n % 6 / 5 for n in range(30)]
    found = Similarity(first, second, scores)(ours)
    wanted = evaluation.EmbeddingSimilarityEvaluator(first, second, scores, write_csv=False)(theirs)
    assert found["spearman"] == pytest.approx(wanted["spearman_cosine"], abs=1e-3)
    assert found["pearson"] == pytest.approx(wanted["pearson_cosine"], abs=1e-4)


def test_triplets_are_those_of_sentence_transformers(ours, theirs, evaluation):
    parts = TEXTS[:20], TEXTS[20:40], TEXTS[40:60]
    wanted = evaluation.TripletEvaluator(*parts, write_csv=False)(theirs)
    assert Triplets(*parts)(ours)["accuracy"] == pytest.approx(wanted["cosine_accuracy"])


def test_retrieval_is_that_of_sentence_transformers(ours, theirs, evaluation):
    rng = np.random.default_rng(0)
    queries = {f"q{n}": text for n, text in enumerate(TEXTS[:12])}
    corpus = {f"d{n}": text for n, text in enumerate(TEXTS[12:])}
    relevant = {
        query: {str(id) for id in rng.choice(list(corpus), rng.integers(1, 9), replace=False)}
        for query in queries
    }
    depths = [1, 5, 10]
    wanted = evaluation.InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        accuracy_at_k=depths,
        precision_recall_at_k=depths,
        mrr_at_k=depths,
        ndcg_at_k=depths,
        map_at_k=depths,
        write_csv=False,
    )(theirs)
    found = Retrieval(
        queries, corpus, {query: dict.fromkeys(of, 1) for query, of in relevant.items()}, depths
    )(ours)
    assert len(found) == 18
    assert next(iter(found)) == "ndcg@10"
    for name, value in found.items():
        assert value == pytest.approx(wanted[f"cosine_{name}"], abs=1e-6), name


def test_reranking_is_that_of_sentence_transformers(ours, theirs, evaluation):
    rng = np.random.default_rng(1)
    samples = []
    for n in range(8):
        texts = [str(text) for text in rng.choice(TEXTS, 9, replace=False)]
        good = 1 + n % 4
        samples.append((texts[0], texts[1 : 1 + good], texts[1 + good :]))
    wanted = evaluation.RerankingEvaluator(
        [{"query": q, "positive": p, "negative": n} for q, p, n in samples],
        at_k=5,
        write_csv=False,
    )(theirs)
    found = Reranking(samples, 5)(ours)
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], abs=1e-6), name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=12))
def test_scores_of_a_ranking_are_those_of_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    relevant, scores = (np.array(column) for column in zip(*rows, strict=True))
    for depth in (1, 3, 20):
        wanted = metrics.ndcg_score([relevant], [scores], k=depth)
        assert ndcg(relevant, scores.astype(float), depth) == pytest.approx(wanted)
    if relevant.any():
        wanted = metrics.average_precision_score(relevant, scores)
        assert average_precision(relevant, scores.astype(float)) == pytest.approx(wanted)


def test_a_probe_and_clusters_tell_what_differs(ours):
    pytest.importorskip("sklearn")
    rows = [(text, "short") for text in ("the film", "a cast", "the story", "a score", "an end")]
    rows += [(f"{text} and {text}", "long") for text, _ in sentences(5, seed=3)]
    texts, labels = zip(*rows, strict=True)
    assert Probe(texts, labels, folds=5)(ours)["accuracy"] > 0.8
    assert Clustering(texts, labels)(ours)["v_measure"] > 0.8
    with pytest.raises(BertfastError, match="the rarest of 2 labels has 1 rows"):
        Probe(texts[4:], labels[4:])


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS[:20])]
    queries = [{"_id": f"q{n}", "text": TEXTS[n]} for n in range(5)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_table(
        folder / "qrels" / "test.tsv",
        [(f"q{n}", f"d{n}", "1") for n in range(5)],
        ("query-id", "corpus-id", "score"),
    )
    return folder


def test_data_say_what_is_measured(folder, tmp_path, monkeypatch, capfd):
    pairs = [(a, b, str(n)) for n, (a, b) in enumerate(zip(TEXTS[:9], TEXTS[9:18], strict=True))]
    write_table(tmp_path / "similarity.tsv", pairs, ("a", "b", "score"))
    write_table(tmp_path / "retrieval.tsv", [row[:2] for row in pairs], ("a", "b"))
    write_table(tmp_path / "triplets.tsv", pairs, ("a", "b", "c"))
    write_table(tmp_path / "probe.tsv", sentences(30), ("text", "label"))
    sample = {"query": "a", "positive": ["b"], "negative": ["c", "d"]}
    (tmp_path / "reranking.jsonl").write_text(f"{json.dumps(sample)}\n")
    for file in tmp_path.iterdir():
        assert evaluator_of(file).name == file.stem
    assert evaluator_of(tmp_path / "probe.tsv", kind="clustering").name == "clustering"
    assert evaluator_of(beir(tmp_path / "beir")).name == "retrieval"
    out = tmp_path / "out"
    done = run_cli(
        monkeypatch, capfd, "evaluate", folder, "--kind", "retrieval", "--data",
        tmp_path / "beir", "--out", out, "--json",
    )  # fmt: skip
    found = json.loads(done.out)
    assert (done.code, found["kind"], found["accuracy@1"]) == (0, "retrieval", 1.0)
    assert json.loads((out / "scores.json").read_text()) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "qrels" / "test.tsv").unlink(), "has no test.tsv or dev.tsv or train.tsv"),
        (lambda f: (f / "queries.jsonl").unlink(), "queries.jsonl: no such file"),
        (lambda f: (f / "corpus.jsonl").write_text('{"text": "a"}\n'), "line 1: has no '_id'"),
        (
            lambda f: write_table(
                f / "qrels" / "test.tsv", [("x", "d1", "1")], ("query-id", "corpus-id", "score")
            ),
            "line 2: there is no query 'x'",
        ),
        (
            lambda f: write_table(
                f / "qrels" / "test.tsv", [("q1", "d1", "x")], ("query-id", "corpus-id", "score")
            ),
            "line 2: the score is 'x'",
        ),
        (
            lambda f: write_table(
                f / "qrels" / "test.tsv", [("q1", "d1", "0")], ("query-id", "corpus-id", "score")
            ),
            "no query has a relevant document",
        ),
    ],
)
def test_a_folder_of_beir_that_cannot_be_used_is_one_line(change, said, tmp_path):
    change(beir(tmp_path / "beir"))
    with pytest.raises(BertfastError, match=said):
        evaluator_of(tmp_path / "beir")
