"""The figures of the README's first screen, from the same JSON files as docs/performance.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from .importable import REPOSITORY
from .plots import FRONT, front_cases, others, ours, ratio
from .settings import RESULTS

README = REPOSITORY / "README.md"
START = "<!-- figures: written by `python -m benchmarks page` -->"
END = "<!-- end of figures -->"


def front_text(records: list[dict[str, Any]]) -> str:
    """A plot and three numbers of the newest record that has them all, in Markdown.

    Raises:
        ValueError: no record has them all.
    """
    whole = _whole(records)
    if not whole:
        raise ValueError("no record holds the training step and the sentence embeddings")
    record = max(whole, key=lambda record: (record["date"], record["machine"]["slug"]))
    path = FRONT.path(record, RESULTS).relative_to(REPOSITORY)
    lines = "".join(f"{_wrapped(line)}\n" for line in _numbers(record))
    machine = record["machine"]
    where = f"Measured on {machine['processor']}, {machine['threads']} threads"
    if machine["device"] == "cuda":
        where = f"Measured on {machine['name']}"
    return (
        f"![{FRONT.caption}]({path})\n\n{lines}\n"
        f"{where}, beside the fastest peer in each case.\n"
        "[Performance](docs/performance.md) has every case, its floor and its command.\n"
    )


def _whole(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that have all three numbers."""
    return [record for record in records if len(list(_numbers(record))) == 3]


def _wrapped(line: str) -> str:
    return textwrap.fill(
        f"- {line}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _numbers(record: dict[str, Any]) -> Iterator[str]:
    """The lines of the README for which the record has a case."""
    cases = {(case["op"], case["dtype"]): case for case in reversed(front_cases(record))}
    step = cases.get(("step", "bfloat16"))
    if step:
        name, side = others(step, "peer")[0]
        yield f"**{ratio(side)}** the speed of *{name}* in a training step of BERT, in bfloat16"
    step = cases.get(("step", "float32"))
    if step:
        name, side = min(others(step, "peer"), key=lambda item: item[1]["peak_bytes"] or 2**62)
        if side["peak_bytes"]:
            share = ours(step)[1]["peak_bytes"] / side["peak_bytes"]
            yield f"**{share:.0%}** of the memory of *{name}* in that step, in float32"
    embedding = cases.get(("sentence_embedding", "float32"))
    if embedding:
        name, side = others(embedding, "peer")[0]
        yield f"**{ratio(side)}** the speed of *{name}* in sentence embeddings, from text"


def write_front(records: list[dict[str, Any]]) -> None:
    """Puts the plot and the numbers between the README's marks.

    Where no record has them all, as after a run that was stopped, what is there stays.
    """
    if not _whole(records):
        return
    text = README.read_text(encoding="utf-8")
    README.write_text(put_between(text, front_text(records)), encoding="utf-8")


def put_between(text: str, figures: str) -> str:
    """The text with what stands between the two marks exchanged.

    Raises:
        ValueError: the marks are not there, each once and in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise ValueError(f"the README must hold {START} and then {END}, each once")
    return f"{before}{START}\n\n{figures}\n{END}{after}"
