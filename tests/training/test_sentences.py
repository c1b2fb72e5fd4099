"""Training of sentence encoders: columns, batches, GradCache, resumed runs, and the folder."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import run_cli, sentences, write_model, write_table

from bertfast import BertfastError, CrossEncoder, SentenceEncoder, train_sentences
from bertfast.data.text_rows import read_text_rows
from bertfast.model import BertForSequenceClassification, BertModel
from bertfast.sentences.losses import LOSSES
from bertfast.training.sentence_evaluation import evaluate_sentences
from bertfast.training.sentences import MixedEpochs, SentencesConfig, TrainingStep, _DataSet

TEXTS = [text for text, _ in sentences(40)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a file of each kind of rows."""
    place = tmp_path_factory.mktemp("sentences")
    write_model(place / "model", BertModel)
    scored = [(a, b, f"{n % 6}") for n, (a, b) in enumerate(itertools.pairwise(TEXTS))]
    write_table(place / "scored.tsv", scored[:24], ("sentence1", "sentence2", "score"))
    write_table(place / "dev.tsv", scored[24:], ("sentence1", "sentence2", "score"))
    write_table(place / "pairs.tsv", [row[:2] for row in scored[:24]], ("anchor", "positive"))
    kinds = ("neutral", "entailment", "contradiction")
    labelled = [(a, b, kinds[n % 3]) for n, (a, b, _) in enumerate(scored)]
    write_table(place / "nli.tsv", labelled, ("premise", "hypothesis", "label"))
    write_lines(
        place / "negatives.jsonl",
        [
            {"query": a, "answer": b, "negatives": TEXTS[n + 2 : n + 4], "scores": [2.0, 1.0, 0.5]}
            for n, (a, b, _) in enumerate(scored[:20])
        ],
    )
    (place / "texts.txt").write_text("\n".join(TEXTS[:20]) + "\n\n")
    return place


def train(place: Path, out: Path, name: str = "scored.tsv", loss: str = "cosent", **options: Any):
    values = {"batch_size": 8, "lr": 1e-3, "device": "cpu", **options}
    model = values.pop("model", place / "model")
    return train_sentences(model, place / name, loss, out, **values)


def step_of(place: Path, name: str, loss: str, **options: Any):
    """A step over a file's rows, with its batches."""
    config = SentencesConfig(
        model=str(place / "model"), train=(str(place / name),), loss=(loss,), out="o", **options
    )
    encoder = SentenceEncoder.from_pretrained(place / "model").train()
    data = [_DataSet(read_text_rows(place / name), config.losses()[0], encoder, config)]
    return TrainingStep(encoder, data, config), data[0]


def gradients(step: TrainingStep, batch: Any, seed: int = 7):
    step.zero_grad()
    loss = step(batch, seed=seed)["loss"]
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in step.named_parameters()
        if parameter.grad is not None
    }


def test_the_folder_gives_one_vector_in_both_libraries(place: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    result = train(place, tmp_path / "out", dev=str(place / "dev.tsv"), epochs=2)
    ours = SentenceEncoder.from_pretrained(result.out)
    wanted = st.SentenceTransformer(str(result.out), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours.encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)
    before = SentenceEncoder.from_pretrained(place / "model").encode(TEXTS)
    assert np.abs(before - wanted).max() > 1e-3
    found = evaluate_sentences(result.out, place / "dev.tsv", device="cpu")
    assert found["spearman"] == pytest.approx(result.scores["spearman"], abs=1e-6)
    assert result.scores["spearman"] == max(line["dev_spearman"] for line in result.history)
    assert [line["epoch"] for line in result.history] == [1, 2]


@pytest.mark.slow_unless(lambda loss: loss in ("softmax", "simcse"))
@pytest.mark.parametrize(
    ("name", "loss", "options"),
    [
        ("scored.tsv", "angle", {}),
        ("scored.tsv", "cosine", {"score_scale": 5}),
        ("nli.tsv", "softmax", {}),
        ("pairs.tsv", "multiple-negatives", {"loss_options": ["symmetric=true"]}),
        ("negatives.jsonl", "multiple-negatives", {"mini_batch": 3}),
        ("negatives.jsonl", "margin-mse", {}),
        ("negatives.jsonl", "distill-kl", {"mini_batch": 2, "matryoshka": (32, 8)}),
        ("texts.txt", "simcse", {"matryoshka": (32, 8), "layers": 1}),
    ],
)
def test_each_loss_learns_what_it_is_trained_on(
    place: Path, name: str, loss: str, options: dict[str, Any]
) -> None:
    step, data = step_of(place, name, loss, **options)
    batch = data.batch(list(range(8)), 0)
    optimizer = torch.optim.Adam(step.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        value, _ = gradients(step, batch)
        losses.append(float(value))
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("layers", [0, 1])
def test_gradcache_has_the_bits_of_one_pass(
    place: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mini_batch": 3, "layers": layers, "matryoshka": (32, 16)}
    step, data = step_of(place, "negatives.jsonl", "multiple-negatives", **options)
    batch = data.batch([5, 1, 8, 2, 9, 11, 3, 4], 0)
    runs = []
    encode = step._encode

    def counted(part: Any, seed: int) -> Any:
        runs.append((part.num_sequences, torch.is_grad_enabled()))
        return encode(part, seed)

    step._encode = counted  # type: ignore[method-assign]
    loss, cached = gradients(step, batch)
    assert [count for count, _ in runs[:3]] == [12, 12, 8]
    assert len(runs) == 6  # each part once more, for its gradients
    # The same parts under the same seeds, all in memory at once.
    at_once = lambda f, *args, **_: f(*args)  # noqa: E731
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", at_once)
    other, direct = gradients(step, batch)
    assert torch.equal(loss, other)
    assert cached.keys() == direct.keys()
    for name, gradient in cached.items():
        assert torch.equal(gradient, direct[name]), name


@pytest.mark.slow
def test_a_mini_batch_changes_nothing_but_the_dropout(place: Path) -> None:
    found = []
    for mini_batch in (None, 3):
        options = {"mini_batch": mini_batch}
        step, data = step_of(place, "pairs.tsv", "multiple-negatives", **options)
        step.eval()
        found.append(gradients(step, data.batch(list(range(8)), 0)))
    (loss, whole), (other, parts) = found
    torch.testing.assert_close(loss, other)
    for name, gradient in whole.items():
        size = max(float(gradient.abs().max()), 1e-2)
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.slow_unless(lambda kind: kind == "2d")
@pytest.mark.parametrize("kind", ["matryoshka", "2d"])
def test_gradients_of_the_model_are_those_of_sentence_transformers(place: Path, kind: str) -> None:
    st = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    step, data = step_of(place, "scored.tsv", "cosent", matryoshka=(32, 16, 4), layers=2)
    step.eval()
    reference = st.SentenceTransformer(str(place / "model"), device="cpu").eval()
    inner = losses.CoSENTLoss(reference)
    if kind == "matryoshka":
        step.reduction = None
        theirs = losses.MatryoshkaLoss(reference, inner, [32, 16, 4])
    else:
        theirs = losses.Matryoshka2dLoss(
            reference, inner, [32, 16, 4], n_layers_per_step=0, n_dims_per_step=-1
        )
    rows = list(range(6))
    loss, ours = gradients(step, data.batch(rows, 0))
    columns = zip(*(data.rows.rows[row].texts for row in rows), strict=True)
    features = [reference.tokenize(list(texts)) for texts in columns]
    assert data.labels is not None
    wanted = theirs(features, data.labels[rows])
    wanted.backward()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-4, atol=1e-5)
    right = dict(reference[0].auto_model.named_parameters())
    checked = 0
    for name, gradient in ours.items():
        other = right[name.removeprefix("encoder.encoder.")].grad
        size = max(float(other.abs().max()), 1e-2)
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * size, msg=name)
        checked += 1
    assert checked > 20


def test_a_stopped_run_goes_on_to_the_same_bits(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 2, "dev": str(place / "dev.tsv"), "evaluate_every": 2}
    whole = train(place, tmp_path / "whole", "nli.tsv", "softmax", **options)
    module = importlib.import_module("bertfast.training.sentences")
    with monkeypatch.context() as patched:
        original = module.run_updates
        patched.setattr(
            module,
            "run_updates",
            lambda c, s, m, b, e, *rest: original(c, s, m, b, _Stopping(e), *rest),
        )
        with pytest.raises(RuntimeError, match="stopped"):
            train(place, tmp_path / "parts", "nli.tsv", "softmax", **options)
    parts = train(place, tmp_path / "parts", "nli.tsv", "softmax", resume=True, **options)
    first, second = (
        SentenceEncoder.from_pretrained(result.out).state_dict() for result in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert parts.history == whole.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


class _Stopping:
    """An evaluator that fails at its third call."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator, self.scores, self.calls = evaluator, evaluator.scores, 0

    def __call__(self, encoder: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("stopped")
        return self.evaluator(encoder)


def test_data_sets_take_turns_or_come_by_their_size(place: Path) -> None:
    def sources(sampling: str) -> list[int]:
        config = SentencesConfig(
            model="m",
            train=("a", "b"),
            loss=("cosent", "softmax"),
            out="o",
            batch_size=5,
            sampling=sampling,
        )
        data = [_Sized(12), _Sized(31)]
        epochs = MixedEpochs(data, config)  # type: ignore[arg-type]
        batches = epochs.iterate()
        first = [next(batches)[1] for _ in range(epochs.per_epoch)]
        again = epochs.iterate(3)
        assert [next(again)[1] for _ in range(epochs.per_epoch - 3)] == first[3:]
        return [source for source, _ in first]  # type: ignore[misc]

    turns = sources("round-robin")
    assert turns == [0, 1] * 3
    sized = sources("size")
    assert sorted(sized) == [0] * 3 + [1] * 7
    assert sized != sorted(sized)


class _Sized:
    """A data set of so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def batch(self, rows: list[int], source: int) -> Any:
        return source, rows


def test_columns_count_as_sentence_transformers_counts_them(place: Path, tmp_path: Path) -> None:
    found = read_text_rows(place / "scored.tsv")
    assert (found.columns, found.label) == (("sentence1", "sentence2"), "score")
    found = read_text_rows(place / "negatives.jsonl")
    assert (found.columns, found.label) == (("query", "answer", "negatives"), "scores")
    assert found.texts == 4
    assert found.lists()[0] == [2.0, 1.0, 0.5]
    both = write_lines(tmp_path / "both.jsonl", [{"score": 1, "a": "x", "label": 2, "b": "y"}])
    assert read_text_rows(both).label == "label"
    named = read_text_rows(both, ("b", "a"), "score")
    assert (named.rows[0].texts, named.scores()) == (("y", "x"), [1.0])
    assert [row.texts for row in read_text_rows(place / "texts.txt").rows] == [
        (text,) for text in TEXTS[:20]
    ]


def test_a_teacher_labels_what_has_no_label(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = write_model(
        tmp_path / "teacher", BertForSequenceClassification, id2label={0: "LABEL_0"}
    )
    rows = [json.loads(line) for line in (place / "negatives.jsonl").read_text().splitlines()]
    for row in rows:
        del row["scores"]
    write_lines(tmp_path / "bare.jsonl", rows)
    module, taken = importlib.import_module("bertfast.training.sentences"), []
    dataset = module._DataSet
    monkeypatch.setattr(
        module, "_DataSet", lambda rows, *rest: (taken.append(rows), dataset(rows, *rest))[1]
    )
    options = {"teacher": str(teacher)}
    train(tmp_path, tmp_path / "out", "bare.jsonl", "distill-kl", model=place / "model", **options)
    judge = CrossEncoder.from_pretrained(teacher)
    for row in taken[0].rows:
        pairs = [(row.texts[0], text) for text in row.texts[1:]]
        np.testing.assert_allclose(row.label, judge.predict(pairs, activation="Identity"), 1e-4)
    with pytest.raises(BertfastError, match="no rows want its scores"):
        train(place, tmp_path / "other", **options)


BAD = {
    "loss is 'cosin'; it must be one of": {"--loss": "cosin"},
    "there are 2 losses and 1 data sets": {"--loss": ("cosent", "angle")},
    "a score is 5, which no cosine is": {"--loss": "cosine"},
    "takes 3; --text-column names them": {"--loss": "triplet"},
    "has no column 'x'; its columns are": {"--text-column": ("x", "y")},
    "has no option 'marg'": {"--loss-option": "marg=1"},
    "must be NAME=VALUE": {"--loss-option": "scale"},
    "matryoshka has 64 and the vectors 32": {"--matryoshka": 64},
    "matryoshka is 0": {"--matryoshka": 0},
    "sampling is 'all'; it must be": {"--sampling": "all"},
    "needs data to evaluate on": {"--early-stopping": 1},
    "max-length is 99 and the model has 24 positions": {"--max-length": 99},
    "batch-size is 0": {"--batch-size": 0},
    "mini-batch is 0": {"--mini-batch": 0},
    "no such file": {"--train": "{place}/gone.tsv"},
    "has no label": {"--train": "{place}/pairs.tsv"},
    "the label is 'neutral', and a finite number": {"--train": "{place}/nli.tsv"},
    "its rows have 4 texts": {"--dev": "{place}/negatives.jsonl"},
    "line 3: has 1 texts and the first row 2": {"--train": "{place}/uneven.jsonl"},
    "line 2: the text 'b' is empty": {"--train": "{place}/empty.tsv"},
    "pooling is middle": {"--pooling": "middle"},
    "exists already": {"--out": "{place}/model"},
}


@pytest.mark.parametrize("said", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(
    said: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_lines(
        place / "uneven.jsonl",
        [{"a": ["x", "y"], "score": 1}, {"a": ["x", "z"], "score": 2}, {"a": ["x"], "score": 3}],
    )
    (place / "empty.tsv").write_text("a\tb\tscore\nx\t \t1\n")
    given = {
        "--train": "{place}/scored.tsv",
        "--loss": "cosent",
        "--out": str(tmp_path / "out"),
        **BAD[said],
    }
    words: list[str] = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [name, *(str(item).format(place=place) for item in values)]
    done = run_cli(monkeypatch, capfd, "sentences", place / "model", *words)
    assert done.code == 2
    assert len(done.errors) == 1
    assert said in done.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_an_own_loss_is_registered_and_found() -> None:
    from bertfast import Loss, register_loss
    from bertfast.registry import summaries

    @register_loss
    class Own(Loss):
        name, summary = "own", "mine"

    try:
        assert LOSSES.find("own").summary == "mine"
        assert summaries("loss")["own"] == "mine"
        with pytest.raises(BertfastError, match="there is a loss named 'own' already"):
            register_loss(type("Other", (Loss,), {"name": "own"}))
    finally:
        del LOSSES["own"]
