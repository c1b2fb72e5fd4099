"""The page in a headless Chromium, with a server of its own, for each kind of model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import serving, write_models

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEXT = "the film was warm and the cast was long"
EVIL = '<img src=x onerror="document.title=\'broken\'"><b>the</b> film & "cast" was warm'
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folders = write_models(tmp_path_factory.mktemp("models"))
    with serving(*folders.values(), "--no-browser", command="app") as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as running:
        try:
            found = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page in which nothing may go wrong, and that may ask no other host."""
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    # The browser logs a refusal too, which is no error of the page.
    opened.on(
        "console",
        lambda said: (
            said.type == "error" and "status of 4" not in said.text and wrong.append(said.text)
        ),
    )
    opened.on(
        "request", lambda asked: asked.url.startswith((address, "blob:")) or wrong.append(asked.url)
    )
    opened.goto(address)
    yield opened
    assert opened.title() == "bertfast"
    opened.close()
    assert wrong == []


def shot(page: Any, name: str) -> None:
    """A picture, where BERTFAST_SCREENSHOTS names a folder for them."""
    folder = os.environ.get("BERTFAST_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def use(page: Any, model: str, tab: str | None = None) -> None:
    page.select_option("#model", model)
    if tab:
        page.get_by_role("tab", name=tab).click()


def result(page: Any) -> Any:
    """The result, once it is there."""
    found = page.locator("#result")
    found.locator("> *").first.wait_for()
    return found


@pytest.mark.parametrize("name", ["classifier", "labels", "reranker"])
def test_probabilities_and_words(page: Any, name: str) -> None:
    use(page, name)
    page.fill("#first", EVIL)
    page.press("#first", "Control+Enter")
    found = result(page)
    assert found.locator(".bars svg").count() == (1 if name == "reranker" else 2)
    assert found.locator(".text").inner_text() == EVIL
    assert found.locator("mark").count() > 5
    assert found.locator("mark[class^=for], mark[class^=against]").count() > 0
    if name != "reranker":
        other = found.locator(".bars button").nth(1)
        label = other.inner_text()
        other.click()
        assert f"Words for and against {label}" in found.inner_text()
    page.fill("#second", "the cast was long")
    page.get_by_role("button", name="Classify").click()
    found.locator(".text").nth(1).wait_for()
    shot(page, name)


def test_ranking(page: Any) -> None:
    use(page, "reranker", "Rank")
    page.fill("#query", "the film")
    page.fill("#lines", "the film was dull\na lovely score\n\n" + TEXT)
    page.press("#query", "Control+Enter")
    assert result(page).locator(".bars svg").count() == 3
    shot(page, "rank")


def test_entities(page: Any) -> None:
    use(page, "tagger")
    source = "😀 the film was warm " + EVIL
    page.fill("#first", source)
    page.press("#first", "Control+Enter")
    found = result(page)
    marks, rows = found.locator("mark"), found.locator("tbody tr")
    assert marks.count() == rows.count() > 0
    for place in range(rows.count()):
        mark = marks.nth(place).evaluate("node => node.firstChild.textContent")
        assert mark == rows.nth(place).locator("td").first.inner_text()
    shot(page, "tagger")


def test_answers(page: Any) -> None:
    use(page, "answerer")
    page.fill("#question", "what was long?")
    page.fill("#context", f"😀 {TEXT}. {EVIL}")
    page.press("#question", "Control+Enter")
    found = result(page)
    assert found.locator("mark").inner_text() == found.locator("h2").first.inner_text()
    shot(page, "answerer")


def test_choices(page: Any) -> None:
    use(page, "chooser")
    page.fill("#first", "the film was")
    page.fill("#choices", "warm\ncold\nlong")
    page.press("#first", "Control+Enter")
    found = result(page)
    assert found.locator("h2").inner_text() in ("warm", "cold", "long")
    assert found.locator(".bars svg").count() == 3
    shot(page, "chooser")


def test_masks(page: Any) -> None:
    use(page, "words")
    page.fill("#first", "the [MASK] was [MASK]")
    page.press("#first", "Control+Enter")
    assert result(page).locator(".bars svg").count() == 16
    page.fill("#first", "no mask")
    page.press("#first", "Control+Enter")
    page.wait_for_selector("#status.error")
    assert "no [MASK] to fill" in page.locator("#status").inner_text()


def test_similarity_and_search(page: Any) -> None:
    use(page, "encoder")
    page.fill("#first", TEXT)
    page.fill("#second", TEXT)
    page.press("#first", "Control+Enter")
    assert "1.000" in result(page).inner_text()
    shot(page, "similarity")
    page.get_by_role("tab", name="Search").click()
    page.fill("#query", "a warm film")
    page.fill(
        "#lines", "\n".join([TEXT, "the score was awful", EVIL, "a dull story", "a clever cast"])
    )
    page.press("#query", "Control+Enter")
    found = result(page)
    assert found.locator(".bars svg").count() == 5
    assert found.locator(".map circle").count() == 6
    shot(page, "search")


@pytest.mark.parametrize("name", ["classifier", "encoder", "tagger", "words"])
def test_a_file_goes_in_and_its_results_come_out(page: Any, name: str, tmp_path: Path) -> None:
    import csv
    import json

    rows = [f'{TEXT}, "{number}" [MASK]' for number in range(130)]
    with open(tmp_path / "in.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], *enumerate(rows)])
    use(page, name, "File")
    page.set_input_files("#file", tmp_path / "in.csv")
    page.locator("#save-csv").wait_for()
    assert "130 rows" in page.locator("#result").inner_text()
    with page.expect_download() as saved:
        page.locator("#save-jsonl").click()
    saved.value.save_as(tmp_path / "out.jsonl")
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["text"] for one in made] == rows
    with page.expect_download() as saved:
        page.locator("#save-csv").click()
    saved.value.save_as(tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as stream:
        assert [one["text"] for one in csv.DictReader(stream)] == rows
    shot(page, f"file-{name}")


def test_keyboard_dark_and_narrow(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    use(page, "classifier")
    page.get_by_role("tab", name="Classify").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "File"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type(TEXT)
    page.keyboard.press("Control+Enter")
    result(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    shot(page, "narrow")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Change between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    shot(page, "narrow-dark")
