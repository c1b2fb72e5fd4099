"""The demo on a fraction of its steps: what it leaves, and whose folder it takes."""

from __future__ import annotations

import html.parser
import json
import re
import signal
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli

from bertfast.apps import demo, gap, report
from bertfast.apps.corpus import GAP, PREPOSITIONS, Gap
from bertfast.errors import BertfastError
from bertfast.model import ModernBertForMaskedLM, ModernBertForTokenClassification, load
from bertfast.packed import IGNORE_INDEX
from bertfast.tokenization import load_tokenizer

FEW, ALL = 64, demo.ALL
# The fixture runs the whole demo, if a short one.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    settings = {"steps": 3, "batch_size": 16}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "PRETRAIN", demo.PRETRAIN | {"steps": 20, "warmup": 2})
        patched.setattr(
            demo, "POINTS", {FEW: {"runs": 2, **settings}, ALL: {"runs": 1, **settings}}
        )
        patched.setattr(demo, "TIMED_BATCHES", 1)
        facts = demo.run_demo(out, seed=3)
    return out, facts


def test_everything_is_kept_together(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert isinstance(load(out / "pretrained"), ModernBertForMaskedLM)
    model = load(out / "gap")
    assert isinstance(model, ModernBertForTokenClassification)
    assert [model.config.id2label[n] for n in range(model.config.num_labels)] == list(PREPOSITIONS)
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(facts))
    assert len(facts["fills"]) == 5
    assert all(len(row["words"]) == 3 and "[MASK]" not in row["filled"] for row in facts["fills"])
    assert set(facts["steps"]["medians"]) == {"bertfast, packed", "transformers, eager"}
    assert not (out / "runs").exists()


def test_each_method_has_a_row_for_each_number_of_labels(
    made: tuple[Path, dict[str, Any]],
) -> None:
    _, facts = made
    numbers = (FEW, facts["corpus"]["train"])
    assert [(row["labels"], row["name"]) for row in facts["labels"]] == [
        (labels, name) for labels in numbers for name in demo.METHODS
    ]
    for row in facts["labels"]:
        assert len(row["runs"]) == (2 if row["labels"] == FEW else 1)
        assert row["accuracy"] == pytest.approx(sum(row["runs"]) / len(row["runs"]))
        assert all(0 <= accuracy <= 1 for accuracy in row["runs"])


def test_what_is_shown_is_what_the_last_models_said(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    tokenizer = load_tokenizer(out / "gap")
    gaps = [Gap(row["text"], row["word"]) for row in facts["shown"]]
    model = load(out / "gap")
    assert isinstance(model, ModernBertForTokenClassification)
    chosen = gap.predict(model, gap.Gaps(gaps, tokenizer, PREPOSITIONS))
    assert [PREPOSITIONS[word] for word in chosen] == [
        row[demo.PRETRAINED] for row in facts["shown"]
    ]


def test_transformers_says_the_same_of_a_gap(made: tuple[Path, dict[str, Any]]) -> None:
    transformers = pytest.importorskip("transformers")
    out, facts = made
    folder = str(out / "gap")
    pipeline = transformers.pipeline("token-classification", folder)
    for row in facts["shown"]:
        at_gap = [token for token in pipeline(row["text"]) if token["word"] == "[MASK]"]
        assert [token["entity"] for token in at_gap] == [row[demo.PRETRAINED]]


def test_draws_are_balanced_and_differ_by_seed() -> None:
    gaps = [Gap(f"{number} {GAP}", word) for number in range(20) for word in PREPOSITIONS]
    drawn = [demo._draw(gaps, 64, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for own in drawn:
        assert Counter(item.word for item in own) == dict.fromkeys(PREPOSITIONS, 8)
        assert len(set(own)) == 64
    assert sorted(demo._draw(gaps, len(gaps), 0), key=str) == sorted(gaps, key=str)


def test_a_gap_has_the_only_label_of_its_text(made: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(made[0] / "gap")
    gaps = [Gap(f"a list {GAP} names", "of"), Gap(f"depends {GAP} the mode of it", "on")]
    encoded = gap.Gaps(gaps, tokenizer, PREPOSITIONS)
    batch = encoded.batch([1, 0])
    assert batch.token_labels is not None
    labels = batch.token_labels[batch.token_labels != IGNORE_INDEX]
    assert labels.tolist() == [PREPOSITIONS.index("on"), PREPOSITIONS.index("of")]
    assert (batch.token_labels != IGNORE_INDEX).equal(batch.input_ids == encoded.mask)


def test_epochs_start_anywhere_with_the_same_batches(made: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(made[0] / "gap")
    gaps = [Gap(f"word {number} stands {GAP} it", "of") for number in range(10)]
    epochs = gap.Epochs(gap.Gaps(gaps, tokenizer, PREPOSITIONS), 4, seed=1)
    whole = list(islice(epochs.iterate(), 7))
    assert [epoch for epoch, _ in whole] == [0, 0, 0, 1, 1, 1, 2]
    assert [batch.num_sequences for _, batch in whole] == [4, 4, 2, 4, 4, 2, 4]
    for start in (2, 4):
        for (epoch, batch), (other_epoch, other) in zip(
            whole[start:], epochs.iterate(start), strict=False
        ):
            assert epoch == other_epoch
            assert batch.input_ids.equal(other.input_ids)


def test_a_picture_is_drawn_while_it_pretrains(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert 0 < facts["pretraining"]["first_picture_seconds"] < facts["seconds"]
    assert "<svg" in (out / "pretraining.svg").read_text(encoding="utf-8")


class Checker(html.parser.HTMLParser):
    """Collects the text, the plots, and whatever would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.plots, self.fetched = "", 0, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.plots += tag == "svg"
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_says_what_was_measured_and_needs_nothing_beside_it(
    made: tuple[Path, dict[str, Any]],
) -> None:
    out, facts = made
    checker = Checker()
    checker.feed((out / "report.html").read_text(encoding="utf-8"))
    assert checker.plots == 3
    assert "<svg" in (out / "labels.svg").read_text(encoding="utf-8")
    assert [link for link in checker.fetched if not link.startswith("#")] == []
    words = re.sub(r"\s+", " ", checker.words)
    for row in facts["labels"]:
        assert row["name"] in words
        assert f"{row['accuracy']:.3f}" in words
    for row in facts["shown"]:
        assert " ".join(row["text"].split()) in words
    assert report.in_words(facts) in words
    for row in facts["fills"]:
        assert row["sentence"] in words
    assert f"{facts['steps']['ratio']:.1f} times less" in words


def test_the_report_without_transformers(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    facts = made[1]
    alone = {
        "medians": {"bertfast, packed": 0.1},
        "times": {"bertfast, packed": [0.1]},
        "ratio": None,
    }
    report.write_report(tmp_path / "report.html", facts | {"steps": alone})
    assert "its step was not measured" in (tmp_path / "report.html").read_text()


def test_an_earlier_demo_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(BertfastError, match="is no earlier demo's folder"):
        demo._claim(mine)
    assert (mine / "thesis.tex").read_text() == "years of work"
    (mine / demo.MARKER).write_text("{}")
    demo._claim(mine)
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("seed", ["-1", str(2**63), "one"])
def test_a_seed_out_of_range_removes_nothing(
    seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / demo.MARKER).write_text("{}")
    done = run_cli(monkeypatch, capfd, "demo", "--out", tmp_path, "--seed", seed)
    assert done.code == 2
    assert len(done.errors) == 1
    assert (tmp_path / demo.MARKER).exists()


def test_a_signal_ends_it_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain = demo.pretrain

    def stopped(*arguments: Any, **options: Any) -> Any:
        options["on_log"] = lambda _: signal.raise_signal(signal.SIGTERM)
        return pretrain(*arguments, **options)

    monkeypatch.setattr(demo, "pretrain", stopped)
    done = run_cli(monkeypatch, capfd, "demo", "--out", tmp_path / "run")
    assert done.code == 128 + signal.SIGTERM
    assert "Traceback" not in done.err


def test_a_python_without_its_sources_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.corpus, "documents", list)
    with pytest.raises(BertfastError, match="has 0 gaps to train on, and the demo needs 2048"):
        demo.run_demo(tmp_path / "run")


def test_the_summary_says_who_leads() -> None:
    rows = [
        {"name": name, "labels": labels, "accuracy": accuracy}
        for labels, accuracies in ((64, (0.2, 0.1, 0.3)), (1000, (0.6, 0.4, 0.5)))
        for name, accuracy in zip(("one", "two", "three"), accuracies, strict=True)
    ]
    assert report.in_words({"labels": rows}) == (
        "With 64 labels the three reaches 0.300: +10.0 points beside one and +20.0 points beside "
        "two. With 1,000 labels the three reaches 0.500: -10.0 points beside one and +10.0 points "
        "beside two. one is ahead of it at 1,000 labels. two is ahead of it nowhere."
    )
