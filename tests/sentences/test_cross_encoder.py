"""Cross-encoders: scores and losses of sentence-transformers, through folders both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import run_cli, sentences, write_model, write_table

from bertfast import BertfastError, CrossEncoder, accelerate
from bertfast.model import BertForSequenceClassification, BertModel
from bertfast.sentences.ranking_losses import RANKING_LOSSES, Ranked
from bertfast.training.rerank import evaluate_reranker, train_reranker

TEXTS = list(dict.fromkeys(text for text, _ in sentences(60)))
PAIRS = [(a, b) for a, b in zip(TEXTS[:12], TEXTS[12:24], strict=True)]
PAIRS += [("short", "long " * 40), ("", "a")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("cross")
    write_model(place / "encoder", BertModel)
    write_model(place / "one", BertForSequenceClassification, id2label={0: "LABEL_0"})
    write_model(place / "three", BertForSequenceClassification, id2label={0: "a", 1: "b", 2: "c"})
    scored = [(a, b, str(n % 2)) for n, (a, b) in enumerate(PAIRS[:12])]
    write_table(place / "pairs.tsv", scored, ("query", "document", "label"))
    lists = [
        {
            "query": TEXTS[n],
            "docs": TEXTS[n + 1 : n + 3 + n % 3],
            "labels": [1, 0, 2, 0][: 2 + n % 3],
        }
        for n in range(10)
    ]
    samples = [
        {"query": TEXTS[n], "positive": [TEXTS[n + 1]], "negative": TEXTS[n + 2 : n + 5]}
        for n in range(8)
    ]
    for name, rows in (("lists", lists), ("samples", samples)):
        (place / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.mark.slow_unless(lambda name: name == "one")
@pytest.mark.parametrize("name", ["one", "three"])
def test_scores_are_those_of_sentence_transformers(name, place, library, tmp_path):
    ours = CrossEncoder.from_pretrained(place / name)
    theirs = library.CrossEncoder(str(place / name), device="cpu")
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), **close)
    np.testing.assert_allclose(ours.predict(PAIRS[0]), theirs.predict(PAIRS[0]), **close)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for folder in ("ours", "theirs"):
        again = CrossEncoder.from_pretrained(tmp_path / folder)
        other = library.CrossEncoder(str(tmp_path / folder), device="cpu")
        np.testing.assert_allclose(again.predict(PAIRS), ours.predict(PAIRS), **close)
        np.testing.assert_allclose(other.predict(PAIRS), ours.predict(PAIRS), **close)


def test_documents_are_ranked_as_by_sentence_transformers(place, library):
    ours = CrossEncoder.from_pretrained(place / "one")
    theirs = library.CrossEncoder(str(place / "one"), device="cpu")
    for options in ({}, {"top_k": 3, "return_documents": True}):
        found = ours.rank(TEXTS[0], TEXTS[1:12], **options)
        wanted = theirs.rank(TEXTS[0], TEXTS[1:12], **options)
        assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in wanted]
        assert found[0].keys() == wanted[0].keys()
        np.testing.assert_allclose(
            [hit["score"] for hit in found], [hit["score"] for hit in wanted], rtol=1e-4
        )
    with pytest.raises(BertfastError, match="gives 3 numbers a pair"):
        CrossEncoder.from_pretrained(place / "three").rank("a", ["b"])


def test_a_live_cross_encoder_is_accelerated(place, library):
    theirs = library.CrossEncoder(str(place / "one"), device="cpu")
    wanted = theirs.predict(PAIRS)
    found = accelerate(theirs).predict(PAIRS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


class Given(torch.nn.Module):
    """A model of sentence-transformers whose scores are given."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        super().__init__()
        self.scores, self.taken = scores, 0

    def preprocess(self, pairs, **_):
        self.taken += len(pairs)
        return {"rows": torch.arange(self.taken - len(pairs), self.taken)}

    def forward(self, inputs):
        return {"scores": self.scores[inputs["rows"]][:, None]}


@pytest.mark.parametrize("name", ["list-net", "lambda"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(2, 6), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_losses_of_lists_are_those_of_sentence_transformers(name, counts, seed):
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    scores = torch.randn(total, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (total,), generator=generator).float()
    queries = torch.repeat_interleave(torch.tensor(counts))
    found = RANKING_LOSSES[name][0](Ranked.of(scores, labels, queries))
    theirs = losses.ListNetLoss if name == "list-net" else losses.LambdaLoss
    documents = [["d"] * count for count in counts]
    wanted = theirs(Given(scores))([["q"] * len(counts), documents], list(labels.split(counts)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for ours, right in zip(
        torch.autograd.grad(found, scores), torch.autograd.grad(wanted, scores), strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)


def test_losses_of_pairs_are_plain_formulas():
    scores = torch.randn(6, requires_grad=True)
    labels, queries = torch.tensor([1.0, 0, 0.5, 2, 0, 1]).clamp(max=1), torch.arange(6)
    found = RANKING_LOSSES["binary"][0](Ranked.of(scores, labels, queries))
    wanted = -(labels * scores.sigmoid().log() + (1 - labels) * (-scores).sigmoid().log()).mean()
    torch.testing.assert_close(found, wanted)
    found = RANKING_LOSSES["mse"][0](Ranked.of(scores, labels, queries))
    torch.testing.assert_close(found, (scores - labels).square().mean())
    queries = torch.tensor([0, 0, 0, 1, 1, 1])
    found = RANKING_LOSSES["margin-mse"][0](Ranked.of(scores, labels, queries))
    apart = [
        (scores[first] - scores[other]) - (labels[first] - labels[other])
        for first in (0, 3)
        for other in (first + 1, first + 2)
    ]
    torch.testing.assert_close(found, torch.stack(apart).square().mean())


@pytest.mark.slow_unless(lambda loss: loss == "lambda")
@pytest.mark.parametrize(
    ("file", "loss", "dev"),
    [
        ("pairs.tsv", "binary", "pairs.tsv"),
        ("lists.jsonl", "list-net", None),
        ("lists.jsonl", "lambda", "samples.jsonl"),
        ("samples.jsonl", "margin-mse", None),
    ],
)
def test_a_trained_folder_is_one_of_sentence_transformers(
    file, loss, dev, place, library, tmp_path
):
    options = {"loss": loss, "batch_size": 4, "lr": 1e-3, "device": "cpu", "epochs": 2}
    if dev:
        options["dev"] = str(place / dev)
    if loss == "margin-mse":
        rows = [json.loads(line) for line in (place / file).read_text().splitlines()]
        rows = [row | {"scores": [3.0, 2.0, 1.0, 0.5]} for row in rows]
        file = "taught.jsonl"
        (place / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = train_reranker(place / "encoder", place / file, tmp_path / "out", **options)
    ours = CrossEncoder.from_pretrained(result.out)
    wanted = library.CrossEncoder(str(result.out), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(ours.predict(PAIRS), wanted, rtol=1e-4, atol=1e-5)
    losses = [line["train_loss"] for line in result.history]
    assert all(np.isfinite(losses))
    if dev:
        found = evaluate_reranker(result.out, place / dev, device="cpu")
        for name, value in result.scores.items():
            assert found[name] == pytest.approx(value, abs=1e-6)


def test_reranking_is_that_of_sentence_transformers(place, library):
    evaluation = pytest.importorskip("sentence_transformers.cross_encoder.evaluation")
    samples = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    theirs = library.CrossEncoder(str(place / "one"), device="cpu")
    wanted = evaluation.CrossEncoderRerankingEvaluator(samples, write_csv=False)(theirs)
    found = evaluate_reranker(place / "one", place / "samples.jsonl", device="cpu")
    for name in ("map", "mrr@10", "ndcg@10"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-6)


@pytest.mark.slow
def test_the_command_trains_orders_and_measures(place, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    done = run_cli(
        monkeypatch, capfd, "rerank", place / "encoder", "--train", place / "pairs.tsv", "--out",
        out, "--dev", place / "pairs.tsv",
    )  # fmt: skip
    assert (done.code, "dev spearman" in done.out) == (0, True), done.err
    (tmp_path / "lines.txt").write_text("".join(f"{text}\n" for text in TEXTS[:6]))
    done = run_cli(
        monkeypatch, capfd, "rerank", out, "--query", TEXTS[0], "--documents",
        tmp_path / "lines.txt", "--top", 2, "--json",
    )  # fmt: skip
    assert (done.code, len(json.loads(done.out)["hits"])) == (0, 2)
    done = run_cli(monkeypatch, capfd, "evaluate", out, "--data", place / "pairs.tsv", "--json")
    assert (done.code, json.loads(done.out)["kind"]) == (0, "similarity")


BAD = {
    "give --query and --documents to score": (),
    "documents is missing": ("--query", "a"),
    "has no head that scores pairs": ("--query", "a", "--documents", "{place}/pairs.tsv"),
    "out is missing": ("--train", "{place}/pairs.tsv"),
    "loss is 'x'; it must be one of": ("--train", "{place}/pairs.tsv", "--loss", "x"),
    "has one document; the loss": ("--train", "{place}/pairs.tsv", "--loss", "lambda"),
    "has no label, which the loss 'mse'": ("--train", "{place}/bare.tsv", "--loss", "mse"),
    "line 1: has 2 documents and 1 label(s)": ("--train", "{place}/short.jsonl"),
    "must be from 0 to 1": ("--train", "{place}/lists.jsonl"),
    "is data of triplets": ("--train", "{place}/pairs.tsv", "--dev", "{place}/triplets.tsv"),
}


@pytest.mark.parametrize("said", BAD)
def test_a_mistake_is_one_line(said, place: Path, tmp_path, monkeypatch, capfd):
    write_table(place / "bare.tsv", PAIRS[:4], ("query", "document"))
    write_table(place / "triplets.tsv", [(a, b, a) for a, b in PAIRS[:4]], ("a", "b", "c"))
    (place / "short.jsonl").write_text('{"query": "a", "docs": ["b", "c"], "labels": [1]}\n')
    words = [word.format(place=place) for word in BAD[said]]
    if "--train" in words and said != "out is missing":
        words += ["--out", str(tmp_path / "out")]
    done = run_cli(monkeypatch, capfd, "rerank", place / "encoder", *words)
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert said in done.errors[0]
    assert list(tmp_path.iterdir()) == []
