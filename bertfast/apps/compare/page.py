"""The pages of a sheet: HTML that needs nothing beside it, Markdown, and CSV."""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bertfast.apps.html import COLOURS, GRID, page, svg
from bertfast.errors import BertfastError
from bertfast.escape import html, markdown, mathtext, one_line
from bertfast.files import write_text
from bertfast.machine import commit, describe_machine, versions

from .plan import Plan, data_digest, model_digest
from .table import (
    Difference,
    Place,
    Result,
    differences,
    disagreements,
    places,
    read_results,
)

LEVEL_OF_TEST = 0.05
MARKERS = "os^Dvph*"
PACKAGES = ("torch", "numpy", "tokenizers", "scikit-learn", "peft")  # that scores depend on
WIDEST = 240  # characters of an example that are shown
PAGE, MARKDOWN, TABLE, TESTS = "report.html", "report.md", "cells.csv", "tests.csv"
MEANS = "means.json"


def write_pages(plan: Plan, command: Sequence[str]) -> Path:
    """Writes the pages of what is there; returns the HTML one.

    Args:
        plan: of the sheet.
        command: arguments of ``bertfast`` that made it.

    Raises:
        BertfastError: nothing is there, or a page cannot be written.
    """
    cells = plan.cells()
    results = read_results(plan, cells)
    found = [place for place in places(plan, results) if place.results]
    if not found:
        raise BertfastError(f"{plan.out}: no run has ended well; there is nothing to report")
    words = next(place.results[0].facts["words"] for place in found)
    score = next(iter(words))
    tests = differences(plan, found, score)
    missing = len(cells) - len(results)
    facts = _Facts(plan, results, places(plan, results), found, words, score, tests, missing)
    again = _again(plan, command)
    write_text(plan.out / TABLE, _cells_csv(facts))
    write_text(plan.out / TESTS, _tests_csv(facts))
    write_text(plan.out / MEANS, json.dumps(_means(facts), indent=2, ensure_ascii=False) + "\n")
    write_text(plan.out / MARKDOWN, _markdown(facts, again))
    write_text(plan.out / PAGE, _html(facts, again))
    return plan.out / PAGE


class _Facts:
    """What the pages say."""

    def __init__(
        self,
        plan: Plan,
        results: list[Result],
        every: list[Place],
        found: list[Place],
        words: dict[str, str],
        score: str,
        tests: list[Difference],
        missing: int,
    ) -> None:
        self.plan, self.results, self.every, self.found = plan, results, every, found
        self.words, self.score, self.tests, self.missing = words, score, tests, missing
        self.labels = list(dict.fromkeys(place.labels for place in found))
        self.rows = [row.name for row in plan.sheet.rows if any(p.row == row.name for p in found)]
        self.named, self.disagreed = disagreements(plan, found)

    def at(self, row: str, labels: int) -> Place | None:
        """The row at a number of labels."""
        return next((p for p in self.found if (p.row, p.labels) == (row, labels)), None)

    def style(self, row: str) -> dict[str, Any]:
        """A row's colour and marker, the same in every figure."""
        number = self.rows.index(row)
        return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}

    @property
    def failed(self) -> list[str]:
        """Each run that failed, with its error."""
        return [
            f"{place.row}, {place.labels:,} labels, seed {seed}: {why}"
            for place in self.every
            for seed, why in place.failed.items()
        ]

    def about(self) -> list[str]:
        """Sentences on what was measured."""
        plan = self.plan
        seeds = len(plan.sheet.seeds)
        said = [
            f"The task is {plan.examples.task.name}. Scores are of {len(plan.test):,} examples"
            + (
                ", which are also those that the best epoch was chosen on: they flatter every row "
                "that has epochs."
                if plan.scored_on_dev
                else ", which no choice has seen."
            ),
            f"Each number is the mean of {seeds} seeds; a seed draws the examples to train on, new "
            "weights, order and dropout."
            if seeds > 1
            else "Each number is of one seed, so what a seed is worth stands in no interval.",
            "In brackets are 95 % intervals of "
            f"{plan.sheet.resamples:,} draws of the examples"
            + (", and of the seeds," if seeds > 1 else "")
            + " with replacement.",
        ]
        if self.missing:
            said.append(f"{self.missing} runs are not done yet; the same command goes on.")
        return said

    def about_tests(self) -> str:
        """A sentence or two on the tests."""
        kinds = {test.test for test in self.tests}
        said = []
        if "McNemar" in kinds:
            said.append("McNemar's exact test compares which examples two rows have right.")
        if "sign flips" in kinds:
            said.append(
                "Over several seeds McNemar's exact test becomes that of sign flips: an example "
                "counts by how many seeds more have it right. It is about these models, on other "
                "examples."
            )
        if "bootstrap" in kinds:
            said.append("The bootstrap test draws examples and seeds, the same for both rows.")
        said.append(
            f"Holm's method corrects p for the {len(self.tests)} tests of this page; bold is below "
            f"{LEVEL_OF_TEST}."
        )
        return " ".join(said)


def _number(value: float, interval: Sequence[float] | None) -> str:
    ends = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{value:.4f}{ends}"


def _shown(value: float | None, scale: float = 1, digits: int = 1) -> str:
    return "" if value is None else f"{value / scale:,.{digits}f}"


def _again(plan: Plan, command: Sequence[str]) -> dict[str, str]:
    """What is needed to repeat it, by name."""
    machine = describe_machine("cpu")
    found = {
        "command": shlex.join(["bertfast", *(command or ("compare", str(plan.sheet.path)))]),
        "commit": commit(),
        "machine": ", ".join(
            [str(machine["name"]), str(machine["system"]), *machine["instructions"]]
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in versions(PACKAGES).items()),
        "written": time.strftime("%Y-%m-%d"),
    }
    for file in plan.files():
        found[f"SHA-256 of {file}"] = data_digest(file)
    for model in plan.sheet.models:
        folder = plan.folder_of(model)
        digest = model_digest(folder)
        found[f"model {model}"] = f"{folder}, files of SHA-256 {digest[:16]}..."
    return found


def _cells_csv(facts: _Facts) -> str:
    """A line for each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ("seconds", "peak_bytes", "joules")
    ends = [f"{name}_{end}" for name in facts.words for end in ("low", "high")]
    writer.writerow(
        [
            "row",
            "labels",
            "seed",
            *facts.words,
            *ends,
            *costs,
            "prediction_seconds",
            "parameters",
            "threads",
            "device",
            "failed",
        ]
    )
    for result in facts.results:
        found = result.facts
        intervals = found.get("intervals", {})
        labels = result.cell.labels or len(facts.plan.examples.train)
        writer.writerow(
            [result.cell.row.name, labels, result.cell.seed]
            + [found.get("scores", {}).get(name, "") for name in facts.words]
            + [value for name in facts.words for value in intervals.get(name, ("", ""))]
            + [_cell(found.get("training", {}).get(name)) for name in costs]
            + [_cell(found.get("prediction", {}).get("seconds")), found.get("parameters", "")]
            + [found["threads"], found["device"], found.get("failed", "")]
        )
    return text.getvalue()


def _means(facts: _Facts) -> list[dict[str, Any]]:
    """Each row at each number of labels: of each score its mean, its interval and each seed's."""
    return [
        {
            "row": place.row,
            "labels": place.labels,
            "scores": {
                name: {
                    "words": words,
                    "mean": place.mean(name),
                    "interval": place.interval(name),
                    "values": place.values(name),
                }
                for name, words in facts.words.items()
            },
            "seconds": place.cost("seconds"),
        }
        for place in facts.found
    ]


def _cell(value: Any) -> Any:
    return "" if value is None else value


def _tests_csv(facts: _Facts) -> str:
    """A line for each test."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "labels",
            "row",
            "beside",
            f"{facts.score}_difference",
            "low",
            "high",
            "test",
            "p",
            "p_holm",
        ]
    )
    for one in facts.tests:
        writer.writerow(
            [
                one.labels,
                one.first,
                one.second,
                one.value,
                *one.interval,
                one.test,
                one.p,
                one.corrected,
            ]
        )
    return text.getvalue()


def _bar(text: object) -> str:
    """For a cell of a Markdown table: markup is text there too."""
    plain = one_line(text)
    for mark in "\\`*_[]<>|":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _markdown(facts: _Facts, again: dict[str, str]) -> str:
    lines = [f"# {_bar(facts.plan.sheet.title)}", "", *facts.about(), ""]
    head = ["row", *(f"{labels:,} labels" for labels in facts.labels)]
    for name, words in facts.words.items():
        lines += [f"## {words}", "", _line(head), _line(["---"] * len(head))]
        for row in facts.rows:
            here = [facts.at(row, labels) for labels in facts.labels]
            lines.append(
                _line(
                    [
                        _bar(row),
                        *(_number(p.mean(name), p.interval(name)) if p else "" for p in here),
                    ]
                )
            )
        lines.append("")
    if facts.tests:
        head = ["labels", "row", "beside", "difference", "test", "p, corrected"]
        lines += ["## Paired tests", "", facts.about_tests(), "", _line(head)]
        lines.append(_line(["---"] * len(head)))
        for one in facts.tests:
            p = f"{one.corrected:.4f}"
            lines.append(
                _line(
                    [
                        f"{one.labels:,}",
                        _bar(one.first),
                        _bar(one.second),
                        _number(one.value, one.interval),
                        one.test,
                        f"**{p}**" if one.corrected < LEVEL_OF_TEST else p,
                    ]
                )
            )
        lines.append("")
    head = ["row", "labels", "training, s", "prediction, s", "memory, MB", "energy, J"]
    lines += ["## Time, memory, energy", "", _line(head), _line(["---"] * len(head))]
    lines += [_line([_bar(place.row), *_costs(place)]) for place in facts.found]
    if facts.failed:
        lines += ["", "## Failed", "", *(f"- {markdown(text)}" for text in facts.failed)]
    lines += ["", "## Again", ""]
    lines += [f"- {markdown(name)}: {markdown(value)}" for name, value in again.items()]
    fence = "`" * 8
    return "\n".join([*lines, "", f"{fence}yaml", _yaml(facts.plan).rstrip(), fence, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _yaml(plan: Plan) -> str:
    return yaml.safe_dump(dict(plan.sheet.values), sort_keys=False, allow_unicode=True)


def _costs(place: Place) -> list[str]:
    return [
        f"{place.labels:,}",
        _shown(place.cost("seconds")),
        _shown(place.cost("seconds", "prediction"), digits=2),
        _shown(place.cost("peak_bytes"), 1e6, 0),
        _shown(place.cost("joules"), digits=0) or "not told",
    ]


def _cells(values: Sequence[str], numbers: int = 0, tag: str = "td") -> str:
    """A row of a table; the last ``numbers`` cells are numbers, all of them HTML."""
    first = len(values) - numbers
    cells = (
        f"<{tag}{' class=number' if place >= first else ''}>{value}</{tag}>"
        for place, value in enumerate(values)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _html(facts: _Facts, again: dict[str, str]) -> str:
    plan, score, words = facts.plan, facts.score, facts.words
    parts = [
        f"<h1>{html(plan.sheet.title)}</h1>",
        f"<p class=quiet>{html(' '.join(facts.about()))}</p>",
        f"<h2>{html(words[score])}</h2>",
        _scores(facts, score),
    ]
    height = max(2.2, 0.32 * len(facts.rows) * len(facts.labels) + 1.0)
    if len(facts.labels) > 1:
        parts.append(_figure(partial(_against_labels, facts), 4.2, _BANDS))
    else:
        parts.append(_figure(partial(_bars, facts), height, "Each mean with its 95 % interval."))
    others = [name for name in words if name != score]
    if others:
        inner = "".join(f"<h3>{html(words[name])}</h3>{_scores(facts, name)}" for name in others)
        parts.append(f"<details><summary>Other scores</summary>{inner}</details>")
    if facts.tests:
        parts += ["<h2>Paired tests</h2>", f"<p>{html(facts.about_tests())}</p>", _tests(facts)]
    curves = [place for place in facts.found if _history(place, score)]
    if curves:
        most = max(place.labels for place in curves)
        here = [place for place in curves if place.labels == most]
        parts += [
            "<h2>Learning curves</h2>",
            _figure(
                lambda axes: _curves(facts, axes, here),
                3.8,
                f"{words[score]} on the dev data against epochs, with {most:,} labels: the mean "
                "over seeds, and each seed thinner.",
            ),
        ]
    head = ["row", "labels", "training, s", "prediction, s", "memory, MB", "energy, J"]
    costs = "".join(_cells([html(p.row), *map(html, _costs(p))], 5) for p in facts.found)
    parts += [
        "<h2>Time, memory, energy</h2>",
        f"<div class=wide><table>{_cells(head, 5, 'th')}{costs}</table></div>",
        "<p class=quiet>Means over seeds; memory is the most that the process held (on a GPU its "
        "tensors) while it trained. Energy is that of the GPU, or of all processors where one run "
        "went at a time; it is not told where the machine has no counter that may be read.</p>",
    ]
    if facts.disagreed:
        parts += ["<h2>Where the rows disagree</h2>", _disagreements(facts)]
    if facts.failed:
        items = "".join(f"<li>{html(text)}" for text in facts.failed)
        parts.append(f"<h2>Failed</h2><ul>{items}</ul>")
    rows = "".join(
        _cells([html(key), f"<code>{html(value)}</code>"]) for key, value in again.items()
    )
    text = _yaml(plan)
    lines = "\n".join(html(line) for line in text.splitlines())
    parts += [
        "<h2>Again</h2>",
        f"<table>{rows}</table>",
        f"<details><summary>The sheet</summary><pre>{lines}</pre></details>",
        f"<p class=quiet>Beside this page: {TABLE} with each run, {TESTS} with each test, "
        f"{MARKDOWN} and {MEANS} with the tables.</p>",
    ]
    return page(plan.sheet.title, "\n".join(parts))


_BANDS = "Means with their 95 % intervals, against the number of labelled examples."


def _figure(draw: Any, height: float, caption: str) -> str:
    return f"<figure>{svg(draw, height)}<figcaption>{html(caption)}</figcaption></figure>"


def _scores(facts: _Facts, name: str) -> str:
    """The table of a score: a row for each row, a column for each number of labels."""
    head = _cells(
        ["row", *(f"{labels:,} labels" for labels in facts.labels)], len(facts.labels), "th"
    )
    best = {
        labels: max(p.mean(name) for p in facts.found if p.labels == labels)
        for labels in facts.labels
    }
    lines = []
    for row in facts.rows:
        cells = [html(row)]
        for labels in facts.labels:
            place = facts.at(row, labels)
            if place is None:
                cells.append("")
                continue
            value, ends, spread = place.mean(name), place.interval(name), place.spread(name)
            text = f"<b>{value:.4f}</b>" if value == best[labels] else f"{value:.4f}"
            if ends is not None:
                text += f"<br><span class=quiet>[{ends[0]:.4f}, {ends[1]:.4f}]</span>"
            if spread is not None:
                text += f"<br><span class=quiet>seeds ± {spread:.4f}</span>"
            cells.append(text)
        lines.append(_cells(cells, len(facts.labels)))
    return f"<div class=wide><table>{head}{''.join(lines)}</table></div>"


def _tests(facts: _Facts) -> str:
    head = _cells(
        ["labels", "row", "beside", "test", "difference", "95 % interval", "p", "p, corrected"],
        4,
        "th",
    )
    lines = []
    for one in facts.tests:
        p = f"{one.corrected:.4f}"
        low, high = one.interval
        lines.append(
            _cells(
                [
                    f"{one.labels:,}",
                    html(one.first),
                    html(one.second),
                    html(one.test),
                    f"{one.value:+.4f}",
                    f"{low:+.4f}, {high:+.4f}",
                    f"{one.p:.4f}",
                    f"<b>{p}</b>" if one.corrected < LEVEL_OF_TEST else p,
                ],
                4,
            )
        )
    table = f"<div class=wide><table>{head}{''.join(lines)}</table></div>"
    if len(lines) <= 15:
        return table
    return f"<details><summary>All {len(lines)} tests</summary>{table}</details>"


def _disagreements(facts: _Facts) -> str:
    head = _cells(["", "example", "right", *map(html, facts.named)], 0, "th")
    lines = []
    for row in facts.disagreed:
        text = one_line(row["text"])
        text = text if len(text) <= WIDEST else f"{text[:WIDEST]} ..."
        best = max(row["each"])
        said = [
            f"<b>{html(what)}</b>" if worth == best else html(what)
            for what, worth in zip(row["said"], row["each"], strict=True)
        ]
        lines.append(_cells([str(row["number"]), html(text), html(row["wanted"]), *said]))
    most = max(facts.labels)
    return (
        f"<p>With {most:,} labels and one seed: the {len(lines)} examples on which the rows differ "
        "the most. The best answers are bold; a number behind one is its probability.</p>"
        f"<div class=wide><table>{head}{''.join(lines)}</table></div>"
    )


def _against_labels(facts: _Facts, axes: Any) -> None:
    for row in facts.rows:
        own = [place for place in facts.found if place.row == row]
        style = facts.style(row)
        x, y = [p.labels for p in own], [p.mean(facts.score) for p in own]
        axes.plot(x, y, label=mathtext(row), ls="-", ms=5, **style)
        ends = [p.interval(facts.score) for p in own]
        if all(ends):
            lows, highs = zip(*ends, strict=True)
            axes.fill_between(x, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(facts.labels, [f"{labels:,}" for labels in facts.labels])
    axes.minorticks_off()
    axes.set_xlabel("labelled examples")
    axes.set_ylabel(facts.words[facts.score])
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=9)


def _bars(facts: _Facts, axes: Any) -> None:
    """Each mean with its interval, a line each."""
    rows = facts.found[::-1]
    for number, place in enumerate(rows):
        value, ends = place.mean(facts.score), place.interval(facts.score)
        style = facts.style(place.row)
        if ends is not None:
            axes.plot(ends, [number, number], color=style["color"], linewidth=2)
        axes.plot([value], [number], ls="", **style)
    axes.set_yticks(range(len(rows)), [mathtext(place.row) for place in rows])
    axes.set_xlabel(facts.words[facts.score])
    axes.grid(axis="x", color=GRID)
    axes.margins(y=0.15)


def _history(place: Place, score: str) -> list[list[tuple[float, float]]]:
    """Each seed's (epoch, dev score) pairs."""
    return [
        [(line["epoch"], line[f"dev_{score}"]) for line in result.facts["history"]]
        for result in place.results
        if f"dev_{score}" in (result.facts.get("history") or [{}])[0]
    ]


def _curves(facts: _Facts, axes: Any, here: Sequence[Place]) -> None:
    for place in here:
        runs = _history(place, facts.score)
        style = facts.style(place.row)
        for run in runs if len(runs) > 1 else []:
            axes.plot(*zip(*run, strict=True), color=style["color"], alpha=0.3, linewidth=0.8)
        whole = [dict(run) for run in runs]
        epochs = sorted(set.intersection(*(set(run) for run in whole)))
        means = [np.mean([run[epoch] for run in whole]) for epoch in epochs]
        axes.plot(epochs, means, label=mathtext(place.row), ls="-", ms=4, **style)
    axes.set_xlabel("epochs")
    axes.set_ylabel(facts.words[facts.score])
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=9)
