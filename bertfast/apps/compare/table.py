"""What the cells of a sheet say together: each row's scores, and how its pairs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast.errors import BertfastError
from bertfast.files import read_json, read_object
from bertfast.scoring import LEVEL, bootstrap_test, holm, sign_flips

from .cells import DRAWS, PREDICTIONS
from .plan import RESULT, Cell, Plan

ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
SHOWN = 30  # examples that rows disagree on
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """A finished cell: what its ``result.json`` holds, its scores in each draw, and how good each
    example's prediction is.
    """

    cell: Cell
    facts: dict[str, Any]
    draws: Mapping[str, Array]
    each: Array | None


@dataclass(frozen=True)
class Place:
    """A row at a number of labels.

    Attributes:
        row: its name.
        labels: examples that it was trained on.
        results: of the seeds that went well.
        failed: the error of each seed that did not.
    """

    row: str
    labels: int
    results: list[Result]
    failed: dict[int, str]

    def values(self, score: str) -> list[float]:
        """The score of each seed."""
        return [result.facts["scores"][score] for result in self.results]

    def mean(self, score: str) -> float:
        """Over seeds."""
        return float(np.mean(self.values(score)))

    def spread(self, score: str) -> float | None:
        """The standard deviation over seeds; None of one."""
        values = self.values(score)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def interval(self, score: str) -> list[float] | None:
        """Of the mean, the examples and the seeds drawn with replacement."""
        found = _over_seeds([result.draws.get(score) for result in self.results])
        return None if found is None else np.quantile(found, ENDS).tolist()

    def cost(self, what: str, part: str = "training") -> float | None:
        """The mean over seeds of seconds or joules, the most of ``peak_bytes``."""
        values = [result.facts.get(part, {}).get(what) for result in self.results]
        known = [value for value in values if value is not None]
        if not known:
            return None
        return float(max(known) if what == "peak_bytes" else np.mean(known))


@dataclass
class Difference:
    """Two rows at a number of labels, over the seeds that both have.

    Attributes:
        value: the first's mean score less the second's.
        interval: of it.
        p: the test's p-value.
        test: its name.
        corrected: p after Holm's correction for all tests of the page.
    """

    labels: int
    first: str
    second: str
    value: float
    interval: list[float]
    p: float
    test: str
    corrected: float = 1.0


def read_results(plan: Plan, cells: Sequence[Cell]) -> list[Result]:
    """The finished cells.

    Raises:
        BertfastError: a result cannot be read.
    """
    found = []
    for cell in cells:
        if not cell.done:
            continue
        facts = read_object(cell.folder / RESULT)
        draws: dict[str, Array] = {}
        each = None
        if (cell.folder / DRAWS).is_file():
            try:
                with np.load(cell.folder / DRAWS, allow_pickle=False) as arrays:
                    draws = {
                        name.removeprefix("draws_"): arrays[name].astype(np.float64)
                        for name in arrays.files
                        if name != "each"
                    }
                    each = arrays["each"] if arrays["each"].dtype != object else None
            except (OSError, ValueError, KeyError) as error:
                raise BertfastError(
                    f"{cell.folder / DRAWS}: cannot be read ({error}); remove {cell.folder} and "
                    "run the sheet again"
                ) from None
        found.append(Result(cell, facts, draws, each))
    return found


def places(plan: Plan, results: Sequence[Result]) -> list[Place]:
    """Each row at each number of labels that has a result."""
    found = []
    for labels in plan.sheet.labels:
        for row in plan.sheet.rows:
            own = [
                result
                for result in results
                if result.cell.row.name == row.name and result.cell.labels == labels
            ]
            if own:
                failed = {r.cell.seed: r.facts["failed"] for r in own if "failed" in r.facts}
                good = [result for result in own if "failed" not in result.facts]
                number = len(plan.examples.train) if labels is None else labels
                found.append(Place(row.name, number, good, failed))
    return found


def differences(plan: Plan, found: Sequence[Place], score: str) -> list[Difference]:
    """Each pair of rows at each number of labels, or each row beside ``compare_with``."""
    made = []
    against = plan.sheet.compare_with
    for labels in dict.fromkeys(place.labels for place in found):
        here = [place for place in found if place.labels == labels]
        for first, second in combinations(here, 2):
            if against is not None and against not in (first.row, second.row):
                continue
            if first.row == against:
                first, second = second, first
            difference = _difference(first, second, score)
            if difference is not None:
                made.append(difference)
    for difference, corrected in zip(made, holm([one.p for one in made]), strict=True):
        difference.corrected = corrected
    return made


def _difference(first: Place, second: Place, score: str) -> Difference | None:
    pairs = [
        (one, other)
        for one in first.results
        for other in second.results
        if one.cell.seed == other.cell.seed and score in one.draws and score in other.draws
    ]
    drawn = _over_seeds([one.draws[score] - other.draws[score] for one, other in pairs])
    if drawn is None:
        return None
    values = [one.facts["scores"][score] - other.facts["scores"][score] for one, other in pairs]
    if all(_right_or_wrong(result, score) for pair in pairs for result in pair):
        # Whole numbers: by how many seeds the first has an example right more often.
        more = [np.rint(one.each - other.each) for one, other in pairs]  # type: ignore[operator]
        p = sign_flips(np.sum(more, axis=0).astype(np.int64))
        test = "McNemar" if len(pairs) == 1 else "sign flips"
    else:
        p, test = bootstrap_test(drawn), "bootstrap"
    ends = np.quantile(drawn, ENDS).tolist()
    return Difference(first.labels, first.row, second.row, float(np.mean(values)), ends, p, test)


def _right_or_wrong(result: Result, score: str) -> bool:
    """Whether the score is the share of examples that are right."""
    each = result.each
    return (
        each is not None
        and bool(np.isin(each, (0.0, 1.0)).all())
        and abs(float(each.mean()) - result.facts["scores"][score]) < 1e-9
    )


def _over_seeds(draws: Sequence[Array | None]) -> Array | None:
    """The mean over seeds in each draw, the seeds drawn with replacement too; None without draws.

    The same number of seeds gives the same choices, so that rows are paired.
    """
    known = [values for values in draws if values is not None]
    if not known or len(known) < len(draws):
        return None
    values = np.stack(known)
    seeds, number = values.shape
    chosen = np.random.default_rng(0).integers(0, seeds, (seeds, number))
    return values[chosen, np.arange(number)].mean(0)


def disagreements(plan: Plan, found: Sequence[Place]) -> tuple[list[str], list[dict[str, Any]]]:
    """The rows' names, and the examples that they disagree on the most: at the most labels, by the
    first seed that all rows have.
    """
    if not found:
        return [], []
    most = max(place.labels for place in found)
    here = [place for place in found if place.labels == most and place.results]
    seeds = [{result.cell.seed for result in place.results} for place in here]
    common = set.intersection(*seeds) if seeds else set()
    if len(here) < 2 or not common:
        return [], []
    chosen = [
        next(result for result in place.results if result.cell.seed == min(common))
        for place in here
    ]
    if any(result.each is None for result in chosen):
        return [], []
    said = [read_json(result.cell.folder / PREDICTIONS) for result in chosen]
    each = np.stack([result.each for result in chosen])  # type: ignore[misc]
    spread = each.std(0)
    task = plan.examples.task
    rows = []
    for place in np.argsort(-spread, kind="stable")[:SHOWN].tolist():
        if spread[place] == 0:
            break
        example = plan.test[place]
        rows.append(
            {
                "number": place + 1,
                "text": " | ".join(str(value) for value in task.echo(example).values()),
                "wanted": task.wanted(example),
                "said": [texts[place] for texts in said],
                "each": each[:, place].tolist(),
            }
        )
    return [place.row for place in here], rows
