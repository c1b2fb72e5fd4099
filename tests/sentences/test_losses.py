"""Losses over sentence vectors are those of sentence-transformers, in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bertfast.errors import BertfastError
from bertfast.sentences.losses import LOSSES, LayerReduction, Matryoshka, Rows

theirs = pytest.importorskip(
    "sentence_transformers.sentence_transformer.losses", reason="sentence-transformers 6 is needed"
)
util = pytest.importorskip("sentence_transformers.util")


class Stub(nn.Module):
    """What the losses of sentence-transformers ask of a model: the vectors are given."""

    device = torch.device("cpu")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features):
        return {"sentence_embedding": features["x"]}

    def get_embedding_dimension(self):
        return self.width


def draw(texts: int, rows: int, width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, width, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(texts)
    ]


def agree(ours, reference, vectors: list[Tensor], *more: Tensor) -> None:
    """The two functions of the vectors have one value and one gradient."""
    found, wanted = ours(vectors), reference(vectors)
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-6, atol=1e-6)
    wrt = [*vectors, *more]
    for got, right in zip(
        torch.autograd.grad(found, wrt), torch.autograd.grad(wanted, wrt), strict=True
    ):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


CASES = {
    "cosent": ("CoSENTLoss", {}, {}, 2, "score"),
    "cosent, scaled": ("CoSENTLoss", {"scale": 5.0}, {"scale": 5.0}, 2, "score"),
    "angle": ("AnglELoss", {}, {}, 2, "score"),
    "cosine": ("CosineSimilarityLoss", {}, {}, 2, "score"),
    "contrastive": ("ContrastiveLoss", {}, {}, 2, "binary"),
    "contrastive, far": ("ContrastiveLoss", {"margin": 1.5}, {"margin": 1.5}, 2, "binary"),
    "triplet": ("TripletLoss", {}, {}, 3, None),
    "triplet, cosine": (
        "TripletLoss",
        {"distance_metric": lambda a, b: 1 - util.pairwise_cos_sim(a, b), "triplet_margin": 0.3},
        {"similarity": "cosine", "margin": 0.3},
        3,
        None,
    ),
    "margin-mse": ("MarginMSELoss", {}, {}, 3, "margin"),
    "margin-mse, negatives": ("MarginMSELoss", {}, {}, 5, "scores"),
    "distill-kl": (
        "DistillKLDivLoss",
        {"temperature": 2.0},
        {"temperature": 2.0},
        4,
        "scores",
    ),
    "multiple-negatives": ("MultipleNegativesRankingLoss", {}, {}, 2, None),
    "multiple-negatives, hard": (
        "MultipleNegativesRankingLoss",
        {"scale": 1 / 0.07},
        {"temperature": 0.07},
        4,
        None,
    ),
    "multiple-negatives, dot": (
        "MultipleNegativesRankingLoss",
        {"scale": 1.0, "similarity_fct": util.dot_score},
        {"temperature": 1.0, "similarity": "dot"},
        3,
        None,
    ),
    "multiple-negatives, symmetric": (
        "MultipleNegativesRankingLoss",
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {"symmetric": True},
        3,
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), width=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_a_loss_is_that_of_sentence_transformers(case, rows, width, seed):
    name, options, own, texts, kind = CASES[case]
    vectors = draw(texts, rows, width, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = {
        None: None,
        "score": torch.randint(0, 4, (rows,), generator=generator).double() / 3,
        "binary": torch.randint(0, 2, (rows,), generator=generator).double(),
        "margin": torch.randn(rows, 1, generator=generator, dtype=torch.float64),
        "scores": torch.randn(rows, texts - 1, generator=generator, dtype=torch.float64),
    }[kind]
    reference = getattr(theirs, name)(Stub(width), **options)
    loss = LOSSES[case.partition(",")[0]].configured(own)
    agree(
        # The scores of float64 vectors are compared as float32 in both.
        lambda vectors: loss(Rows(vectors, None if labels is None else labels.float())),
        lambda vectors: reference.compute_loss_from_embeddings(
            vectors, None if labels is None else labels.float()
        ),
        vectors,
    )


def test_softmax_is_that_of_sentence_transformers(monkeypatch):
    module = pytest.importorskip("sentence_transformers.sentence_transformer.losses.softmax")
    monkeypatch.setattr(module, "embed_columns", lambda model, features: features)
    vectors = [x.detach().float().requires_grad_() for x in draw(2, 7, 5, 3)]
    reference = theirs.SoftmaxLoss(Stub(5), 5, 3)
    head = LOSSES["softmax"].build(5, 3)
    head.load_state_dict(reference.classifier.state_dict())
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    reference.classifier = head
    agree(
        lambda vectors: LOSSES["softmax"](Rows(vectors, labels, head=head)),
        lambda vectors: reference(vectors, labels),
        vectors,
        *head.parameters(),
    )


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.25)])
def test_matryoshka_is_that_of_sentence_transformers(weights):
    pytest.importorskip("sentence_transformers.base.losses.merged_forward")
    from sentence_transformers.base.losses.merged_forward import column_merging_disabled

    model = Stub(8)
    inner = theirs.CoSENTLoss(model)
    reference = theirs.MatryoshkaLoss(model, inner, [8, 5, 2], weights)
    labels = torch.tensor([0.1, 0.5, 0.5, 1.0, 0.0])

    def wanted(vectors):
        with column_merging_disabled():
            return reference([{"x": x} for x in vectors], labels)

    ours = Matryoshka([8, 5, 2], weights)
    loss = LOSSES["cosent"].configured({})
    agree(
        lambda vectors: ours(lambda parts: loss(Rows(parts, labels)), vectors),
        wanted,
        draw(2, 5, 8, 1),
    )


def test_rows_of_one_text_are_no_negatives_of_one_another():
    loss = LOSSES["multiple-negatives"].configured({"temperature": 1.0, "similarity": "dot"})
    anchors, positives, negatives = draw(3, 4, 5, 2)
    # Row 1 has row 0's anchor, row 2 row 0's positive, and row 3's negative is row 0's anchor.
    texts = torch.tensor([[0, 1, 2], [0, 3, 4], [5, 1, 6], [7, 8, 0]])
    scores = anchors @ torch.cat([positives, negatives]).T
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    for row, column in ((0, 1), (0, 2), (0, 7), (1, 0), (1, 7), (2, 0)):
        hidden[row, column] = True
    wanted = nn.functional.cross_entropy(
        scores.float().masked_fill(hidden, -math.inf), torch.arange(4)
    )
    found = loss(Rows([anchors, positives, negatives], texts=texts))
    torch.testing.assert_close(found, wanted)
    kept = loss.configured({"mask_duplicates": False})
    plain = nn.functional.cross_entropy(scores.float(), torch.arange(4))
    torch.testing.assert_close(kept(Rows([anchors, positives, negatives], texts=texts)), plain)


def test_one_text_twice_is_told_from_the_others():
    loss = LOSSES["simcse"].configured({"temperature": 1.0})
    first, second = draw(2, 3, 4, 5)
    found = loss(Rows([first, second], texts=torch.tensor([[0, 0], [1, 1], [2, 2]])))
    plain = loss(Rows([first, second]))
    torch.testing.assert_close(found, plain)
    # A text that stands twice among the rows is no negative of itself.
    twice = loss(Rows([first, second], texts=torch.tensor([[0, 0], [1, 1], [0, 0]])))
    assert twice < plain


def test_the_angle_of_a_vector_with_itself_has_a_finite_slope():
    for name in ("cosent", "angle", "triplet"):
        x = torch.ones(3, 4, requires_grad=True)
        texts = LOSSES[name].texts[0]
        loss = LOSSES[name](Rows([x] * texts, torch.tensor([0.0, 1.0, 2.0])))
        loss.backward()
        assert bool(x.grad.isfinite().all()), name


def test_layers_are_drawn_from_the_seed():
    states = [draw(2, 3, 4, layer) for layer in range(5)]
    loss = LOSSES["multiple-negatives"].configured({})

    def value(seed):
        draw = torch.Generator().manual_seed(seed)
        return LayerReduction(1)(lambda vectors: loss(Rows(vectors)), states, draw).item()

    found = [value(seed) for seed in range(12)]
    assert found == [value(seed) for seed in range(12)]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("multiple-negatives", {"temprature": 1}, "has no option 'temprature'; its options"),
        ("multiple-negatives", {"temperature": "0"}, "temperature is 0.0; it must be"),
        ("multiple-negatives", {"temperature": "nan"}, "temperature is nan"),
        ("multiple-negatives", {"similarity": "euclidean"}, "must be cosine or dot"),
        ("triplet", {"similarity": "x"}, "similarity is 'x'; it must be one of cosine"),
        ("cosent", {"scale": "many"}, "is 'many'; it must be a number"),
        ("softmax", {"scale": 1}, "it has none"),
    ],
)
def test_a_wrong_option_is_one_line(name, options, said):
    with pytest.raises(BertfastError, match=said):
        LOSSES[name].configured(options)
