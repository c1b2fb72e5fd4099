"""The nine tasks of GLUE in the layouts of its own files (Wang et al., 2018)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bertfast.errors import BertfastError

from .labels import quoted
from .readers import open_text, without_end

TRAIN, LONE = "train.tsv", ""
WHOLE = {LONE: ("dev.tsv", "test.tsv")}


class Row(NamedTuple):
    """One example: what the submission calls it, its texts, and its label where there is one."""

    number: str
    text: str
    pair: str | None
    label: str | None


@dataclass(frozen=True, eq=False)
class GlueTask:
    """A task.

    Attributes:
        name: of its folder and of its submission.
        texts: names of the columns with its one text or two.
        label: name of the label's column.
        labels: that there are; none of a regression.
        scores: that GLUE ranks by; the first chooses between runs.
        parts: the dev and the test file by what is added to the submission's name.
        header: of files without a line of names.
        skips: whether a training line with too few fields is passed over: some published ones are
            broken.
    """

    name: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    scores: tuple[str, ...]
    parts: Mapping[str, tuple[str, str]] = field(default_factory=lambda: WHOLE)
    header: tuple[str, ...] = ()
    skips: bool = False


BINARY, ENTAILED = ("0", "1"), ("entailment", "not_entailment")
PAIR, STRINGS = ("sentence1", "sentence2"), ("#1 String", "#2 String")
MNLI = GlueTask(
    "MNLI",
    PAIR,
    "gold_label",
    ("contradiction", "entailment", "neutral"),
    ("accuracy",),
    {
        "-m": ("dev_matched.tsv", "test_matched.tsv"),
        "-mm": ("dev_mismatched.tsv", "test_mismatched.tsv"),
    },
)
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            *("CoLA", ("sentence",), "label", BINARY, ("mcc",)),
            header=("source", "label", "mark", "sentence"),
        ),
        GlueTask("SST-2", ("sentence",), "label", BINARY, ("accuracy",)),
        GlueTask("MRPC", STRINGS, "Quality", BINARY, ("f1", "accuracy")),
        GlueTask("STS-B", PAIR, "score", (), ("pearson", "spearman")),
        GlueTask(
            *("QQP", ("question1", "question2"), "is_duplicate", BINARY, ("f1", "accuracy")),
            skips=True,
        ),
        MNLI,
        GlueTask("QNLI", ("question", "sentence"), "label", ENTAILED, ("accuracy",)),
        GlueTask("RTE", PAIR, "label", ENTAILED, ("accuracy",)),
        GlueTask("WNLI", PAIR, "label", BINARY, ("accuracy",)),
    )
}
# Where the downloads have the diagnostic set, which MNLI's model predicts.
DIAGNOSTICS = ("AX/AX.tsv", "AX/diagnostic.tsv", "diagnostic/diagnostic.tsv", "diagnostic.tsv")


def find_task(name: str) -> GlueTask:
    """The task of a name, whatever its case and its hyphens.

    Raises:
        BertfastError: there is none.
    """
    for task in TASKS.values():
        if _plain(task.name) == _plain(name):
            return task
    raise BertfastError(f"tasks names {name!r}; GLUE's are {', '.join(TASKS)}")


def find_folder(data: Path, task: GlueTask) -> Path | None:
    """The task's folder, below ``data`` or that itself by its name; None where there is none."""
    below = [path for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    named = [path for path in below if _plain(path.name) == _plain(task.name)]
    return next((path for path in named if (path / TRAIN).is_file()), None)


def read_rows(path: Path, task: GlueTask, labelled: bool) -> Iterator[Row]:
    """The examples of a file.

    Raises:
        BertfastError: a file that is not of the task's layout; it is named with the line.
    """
    needed = (*task.texts, task.label) if labelled else task.texts
    skipped = 0
    with open_text(path, newline="\n") as stream:
        lines = enumerate(map(without_end, stream), 1)
        header = task.header
        if not (header and labelled):
            header = tuple(next(lines)[1].split("\t"))
        missing = [name for name in needed if name not in header]
        if missing:
            raise BertfastError(
                f"{path}: has no column {missing[0]!r} in its first line; {task.name} has "
                f"{', '.join(needed)}"
            )
        index = next((name for name in ("index", "id") if name in header), None)
        place = {name: header.index(name) for name in header}
        for count, (number, line) in enumerate(lines):
            cells = line.split("\t")
            # Labels of the annotators stand between in MNLI's dev files alone, never past the last.
            if len(cells) < len(header):
                if task.skips and labelled:
                    skipped += 1
                    continue
                raise BertfastError(
                    f"{path}, line {number}: has {len(cells)} fields; {task.name} has {len(header)}"
                )
            label = cells[place[task.label]] if labelled else None
            if label is not None:
                _check(label, task, path, number)
            name = str(count) if index is None or labelled else cells[place[index]]
            texts = [cells[place[text]] for text in task.texts]
            yield Row(name, texts[0], texts[1] if len(texts) > 1 else None, label)
    if skipped:
        print(f"bertfast: {path}: {skipped} lines with too few fields left out", file=sys.stderr)


def _check(label: str, task: GlueTask, path: Path, line: int) -> None:
    if task.labels:
        if label not in task.labels:
            raise BertfastError(
                f"{path}, line {line}: the label is {quoted(label)}; {task.name} has "
                f"{', '.join(task.labels)}"
            )
        return
    try:
        right = 0 <= float(label) <= 5
    except ValueError:
        right = False
    if not right:
        raise BertfastError(
            f"{path}, line {line}: the score is {quoted(label)}; it must be from 0 to 5"
        )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
