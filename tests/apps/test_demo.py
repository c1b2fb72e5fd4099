"""The demo on a fraction of its steps: what it leaves, and whose folder it takes."""

from __future__ import annotations

import html.parser
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli

from bertfast.apps import demo, report
from bertfast.errors import BertfastError
from bertfast.model import BertForPreTraining, BertForSequenceClassification, load

METHODS = [
    "most frequent part",
    "TF-IDF + logistic regression",
    "frozen pretrained encoder",
    "not pretrained, fine-tuned",
    "pretrained, fine-tuned",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "PRETRAIN", demo.PRETRAIN | {"steps": 20, "warmup": 2})
        patched.setattr(demo, "FINETUNE", demo.FINETUNE | {"epochs": 1})
        patched.setattr(demo, "FROZEN", demo.FROZEN | {"epochs": 1})
        patched.setattr(demo, "TIMED_BATCHES", 1)
        facts = demo.run_demo(out, seed=3)
    return out, facts


def test_everything_is_kept_together(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert isinstance(load(out / "pretrained"), BertForPreTraining)
    classifier = load(out / "classifier")
    assert isinstance(classifier, BertForSequenceClassification)
    assert [classifier.config.id2label[n] for n in range(classifier.config.num_labels)] == facts[
        "corpus"
    ]["labels"]
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(facts))
    assert [row["name"] for row in facts["methods"]] == METHODS
    assert len(facts["fills"]) == 5
    assert all(len(row["words"]) == 3 and "[MASK]" not in row["filled"] for row in facts["fills"])
    assert set(facts["steps"]["medians"]) == {"bertfast, packed", "transformers, eager"}
    assert (out / "classifier" / "tokenizer.json").is_file()


def test_a_picture_is_drawn_while_it_pretrains(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert 0 < facts["pretraining"]["first_picture_seconds"] < facts["seconds"]
    assert "<svg" in (out / "pretraining.svg").read_text(encoding="utf-8")


def test_both_encoders_are_trained_alike(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    seeds = []
    for number in range(demo.RESTARTS):
        folders = [
            f"restarts/{name}-{number}" if number else name
            for name in ("classifier", "from-scratch")
        ]
        one, other = (
            json.loads((out / name / "metrics.json").read_text())["settings"] for name in folders
        )
        assert {name for name in one if one[name] != other[name]} == {"out", "from_scratch"}
        seeds.append(one["seed"])
    assert len(set(seeds)) == demo.RESTARTS
    for row in facts["methods"][3:]:
        assert len(row["runs"]) == demo.RESTARTS
        assert row["accuracy"] == pytest.approx(sum(row["runs"]) / demo.RESTARTS)


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
    assert [link for link in checker.fetched if not link.startswith("#")] == []
    words = re.sub(r"\s+", " ", checker.words)
    for row in facts["methods"]:
        assert row["name"] in words
        assert f"{row['accuracy']:.3f}" in words
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
    monkeypatch.setattr(demo.corpus, "docstrings", list)
    with pytest.raises(
        BertfastError, match="0 parts of its standard library, and the demo needs 8"
    ):
        demo.run_demo(tmp_path / "run")


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.0, 20, 0.0, 0.1611), (1.0, 20, 0.8389, 1.0)],
)
def test_the_interval_is_wilsons(share: float, count: int, low: float, high: float) -> None:
    # Reference values of the score interval:
    # scipy.stats.binomtest(...).proportion_ci(method="wilson").
    assert demo.wilson(share, count) == pytest.approx((low, high), abs=2e-4)
