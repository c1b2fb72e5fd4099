"""Whatever a label, a file or a column is called, nothing of it is read as markup: Markdown, HTML
and YAML are parsed, figures are drawn.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bertfast import escape
from bertfast.sentences.folder import sentence_card
from bertfast.tasks import TASKS
from bertfast.training import card
from bertfast.training.config import PretrainConfig
from bertfast.training.finetune import FinetuneConfig

HOSTILE = (
    "<script>alert(1)</script>\n\n# heading",
    "a`b``c`",
    "``",
    "`",
    "\\`<b>`\\",
    "a | b |\n| --- |\n",
    "[x](javascript:alert(1)) ![y](z) <https://evil.example> www.evil.example a@b.example",
    "**bold** _it_ ~~gone~~ $x$ &lt; &#60;",
    "---\nlicense: mit\n---",
    "a: b # c",
    "-->\n<!--",
    "'\"{}[]&*!|>%@",
    "\u202egnp.exe\u2028<b>\u0085\x1b[31m\0",
    " ",
    "\ud800",
)
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(),
    st.text(alphabet="`<>|*_[]()#-\n\\&;:!$ ab'\"\t", max_size=30),
)


def rendered(text: str) -> list[Token]:
    """The tokens of a GitHub-like rendering, those of paragraphs among them, in order."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    flat: list[Token] = []
    for token in parser.parse(text):
        flat += [token, *(token.children or [])]
    return flat


def pieces(text: str) -> list[tuple[str, str]]:
    """What markup a text renders to, without the words."""
    return [(token.type, token.tag) for token in rendered(text)]


def spans(text: str) -> list[str]:
    return [token.content for token in rendered(text) if token.type == "code_inline"]


@given(st.lists(texts, min_size=1, max_size=4))
@settings(deadline=None)
def test_markdown_shows_the_texts_and_nothing_else(values: list[str]) -> None:
    page = "# {}\n\nof ({}), x\n\n- name: {}, y\n- last\n"
    shown = page.format(*(", ".join(map(escape.markdown, values)),) * 3)
    harmless = page.format(*(", ".join("`a`" for _ in values),) * 3)
    assert pieces(shown) == pieces(harmless)
    assert spans(shown) == [escape.one_line(value) or "(empty)" for value in values] * 3


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, Any]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(texts)
def test_html_shows_the_text_and_nothing_else(value: str) -> None:
    page = _Page()
    page.feed(f'<p title="{escape.html(value)}">{escape.html(value)}</p>')
    page.close()
    assert page.tags == [("p", [("title", escape.visible(value))])]
    assert page.text == escape.visible(value)


@given(texts)
def test_one_line_is_one_line_and_controls_nothing(value: str) -> None:
    line = escape.one_line(value)
    assert len(line.splitlines()) <= 1
    assert not set(line) & {"\x1b", "\0", "\u202e", "\ud800"}
    line.encode("utf-8")


@pytest.mark.parametrize("value", ["$x$", r"$\undefined$", "a$b", r"\$", "$$", "<b>&\x01"])
def test_a_figure_shows_dollars_as_they_are(value: str) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import cbook, figure

    assert not cbook.is_math_text(escape.mathtext(value))
    drawn = figure.Figure()
    drawn.text(0, 0, escape.mathtext(value))
    drawn.canvas.draw()


def front_matter(page: str) -> dict[str, Any]:
    start, header, _ = page.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header)


SUMMARY = {
    "best_epoch": 1,
    "dev_accuracy": 0.75,
    "dev_macro_f1": 0.5,
    "dev_micro_f1": 0.625,
    "dev_mcc": 0.25,
    "train_examples": 4,
    "dev_examples": 4,
    "truncated": {"train": 0, "dev": 0, "max_length": 8},
    "intervals": {"accuracy": [0.25, 1.0]},
    "level": 0.95,
    "resamples": 1000,
    "epochs": [
        {
            "epoch": 1,
            "train_loss": 1.0,
            "dev_accuracy": 0.75,
            "dev_macro_f1": 0.5,
            "dev_micro_f1": 0.625,
            "dev_mcc": 0.25,
        }
    ],
}


def classifier(value: str, labels: list[str]) -> str:
    file = value.replace("/", "")
    config = FinetuneConfig(
        f"{file}m",
        f"{file}t.tsv",
        f"{file}d.tsv",
        f"{file}o",
        text_column=value,
        pair_column=value,
        label_column=value,
    )
    return card.task_card(config, TASKS["classification"], SUMMARY, labels)


def body(page: str) -> str:
    return page.split("\n---\n", 1)[1]


@given(texts, st.lists(texts, min_size=2, max_size=3))
@example("---\n\n---\nlicense: mit", ["<script>\n</script>", "b"])
@settings(deadline=None, max_examples=150)
@pytest.mark.slow
def test_a_classifiers_card_is_what_a_harmless_ones_is(value: str, labels: list[str]) -> None:
    columns = value or "a"  # an empty one is the default
    page = classifier(columns, labels)
    harmless = classifier("a", ["b"] * len(labels))
    assert pieces(body(page)) == pieces(body(harmless))
    assert front_matter(page).keys() == front_matter(harmless).keys()
    file = columns.replace("/", "")
    found = front_matter(page)
    assert found["library_name"] == "transformers"
    assert found["base_model"] == escape.one_line(f"{file}m")
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == escape.one_line(f"{file}d.tsv")
    values = [row["value"] for row in found["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.75, 0.5, 0.625, 0.25]


@given(texts)
@settings(deadline=None, max_examples=60)
def test_other_cards_are_what_harmless_ones_are(value: str) -> None:
    name = value.replace("/", "") or "a"

    def pages(text: str) -> list[str]:
        config = PretrainConfig((f"{text}.txt",), "tok", text)
        last = {"tokens": 9, "loss": 1.0, "mlm_accuracy": 0.5}
        return [
            card.pretraining_card(config, text, "BertForPreTraining", 3, last),
            sentence_card(text, 4, 8, ("mean",)),
        ]

    for page, harmless in zip(pages(name), pages("a"), strict=True):
        assert pieces(body(page)) == pieces(body(harmless))
        assert front_matter(page).keys() == front_matter(harmless).keys()
        assert front_matter(page)["library_name"] in ("transformers", "sentence-transformers")


def test_the_base_model_is_named_by_its_id_where_there_is_one(tmp_path: Path) -> None:
    cached = tmp_path / "models--google--electra-small" / "snapshots" / "0a1b"
    cached.mkdir(parents=True)
    assert card.base_model(str(cached)) == "google/electra-small"
    assert card.base_model("google/electra-small") == "google/electra-small"
    assert (
        card.base_model(str(tmp_path / "models--google--electra-small")) == "google/electra-small"
    )
    (tmp_path / "run").mkdir()
    assert card.base_model(str(tmp_path / "run")) == "run"
