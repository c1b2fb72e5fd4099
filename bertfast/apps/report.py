"""The demo's report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from bertfast.apps.html import GRID, OTHER, QUIET, STRONG, page, svg
from bertfast.escape import html as escape


def write_report(path: Path, facts: dict[str, Any]) -> None:
    """Writes the report of what ``demo.json`` holds.

    Args:
        path: of the HTML file.
        facts: as `bertfast.apps.demo.run_demo` returns them.
    """
    corpus, rows, steps, last = (
        facts["corpus"],
        facts["labels"],
        facts["steps"],
        facts["pretraining"]["last"],
    )
    table = "".join(
        f"<tr><td class=number>{row['labels']:,}</td><td>{escape(row['name'])}</td>"
        f"<td class=number>{row['accuracy']:.3f}</td><td class=number>{_runs(row)}</td>"
        f"<td class=number>{row['seconds']:.0f}</td></tr>"
        for row in rows
    )
    names = list(dict.fromkeys(row["name"] for row in rows))
    examples = "".join(
        f"<tr><td>{escape(row['text'])}</td><td>{escape(row['word'])}</td>"
        + "".join(
            f"<td>{'<b>' * right}{escape(row[name])}{'</b>' * right}</td>"
            for name in names
            for right in (row[name] == row["word"],)
        )
        + "</tr>"
        for row in facts["shown"]
    )
    fills = "".join(
        f"<tr><td>{escape(row['sentence'])}</td><td>"
        + ", ".join(
            f"<b>{escape(word)}</b> {probability:.2f}" for word, probability in row["words"]
        )
        + "</td></tr>"
        for row in facts["fills"]
    )
    machine = facts["machine"]
    if steps["ratio"]:
        speed = (
            f"On the same batches a training step of the packed encoder takes "
            f"<b>{steps['ratio']:.1f} times less</b> than transformers' eager one. That one pads: "
            f"{steps['fill_rate']:.0%} of its cells are real tokens. Medians of "
            f"{len(next(iter(steps['times'].values())))} steps each, taken in turn: forward, "
            f"backward, clipping and AdamW."
        )
    else:
        speed = "transformers is not installed, so its step was not measured."
    folder, again = path.parent, facts["seed"] + 1
    other, pretrained = (
        escape(shlex.quote(str(name))) for name in (f"{folder}-seed-{again}", folder / "pretrained")
    )
    words, most_labels = corpus["words"], max(row["labels"] for row in rows)
    curve = facts["pretraining"]["curve"]
    body = f"""<h1>bertfast demo</h1>
<p class=quiet>{escape(machine["processor"])}, {machine["threads"]} threads,
Python {machine["python"]}, bertfast {facts["bertfast"]}, seed {facts["seed"]},
{facts["seconds"]:.0f} s in all</p>
<p>An encoder was pretrained from nothing on the {corpus["megabytes"]:.2f} MB of English that this
Python ships. Then it learned to tell which of {len(words)} prepositions
({escape(", ".join(words))}) stood in a gap.</p>
<p><b>{escape(in_words(facts))}</b></p>

<h2>Accuracy against labels</h2>
<figure>{svg(lambda axes: _labels(axes, rows, 1 / len(words)), 3.4)}
<figcaption>Accuracy on {corpus["test"]:,} gaps of documents that no training has seen. A band goes
from the lowest run to the highest; each run draws other labels and other weights. The dotted line
is chance. With {corpus["test"]:,} gaps the 95 % interval of one accuracy is
{_half_interval(corpus["test"]):.1f} points to either side at most.</figcaption></figure>
<table><tr><th class=number>labels<th>method<th class=number>accuracy<th class=number>runs
<th class=number>seconds</tr>{table}</table>
<p>Order and context decide here, so TF-IDF gets the gap as a word of its n-grams ("list [MASK]",
"[MASK] the"). Of word 1-2-grams and 2-grams alone, with C of 1 and 10, it takes the best on
{corpus["dev"]} development gaps. Both encoders have the same shape, settings, labels and number of
updates.</p>
<p class=quiet>What the comparison does not say: the hidden word is what pretraining predicts. So
its text holds answers of this very kind, without anyone's labels. The encoder can use them, and
TF-IDF cannot. No document is on two sides. Gaps with the same words around them are made once.
Every preposition is equally frequent.</p>

<h2>The first held-out gaps</h2>
<table><tr><th>text<th>word{"".join(f"<th>{escape(name)}" for name in names)}</tr>{examples}</table>
<p class=quiet>Each method after its last run, with {most_labels:,} labels; what is right is
bold.</p>

<h2>Pretraining</h2>
<figure>{svg(lambda axes: _curve(axes, curve), 3.0)}
<figcaption>{last["tokens"]:,} tokens in {last["seconds"]:.0f} s
({last["tokens"] / last["seconds"]:,.0f} a second); at the end the loss is {last["loss"]:.3f} and
{last["mlm_accuracy"]:.1%} of the hidden words are guessed.</figcaption></figure>

<h2>Step time against eager PyTorch</h2>
<figure>{svg(lambda axes: _steps(axes, steps["medians"]), 1.6)}</figure>
<p>{speed}</p>

<h2>Masks filled in</h2>
<table><tr><th>sentence<th>likeliest words</tr>{fills}</table>

<h2>Again, and on</h2>
<pre>bertfast demo --seed {again} --out {other}
bertfast fill {pretrained} "Return the [MASK] of the file."</pre>
<p>The pretrained encoder with {most_labels:,} labels is in <code>{escape(folder / "gap")}</code>, a
folder that transformers loads:</p>
<pre>import transformers

gap = transformers.pipeline("token-classification", {escape(repr(str(folder / "gap")))})
text = "The return value depends [MASK] the mode of the file."
print([word for word in gap(text) if word["word"] == "[MASK]"])</pre>
<p class=quiet>The numbers are in demo.json beside this page.</p>"""
    path.write_text(page("bertfast demo", body), encoding="utf-8")


def in_words(facts: dict[str, Any]) -> str:
    """What the curve says: the last method's lead or lag at the fewest labels and at the most.

    It also names every number of labels at which another method is ahead of it.
    """
    by_place = {(row["labels"], row["name"]): row["accuracy"] for row in facts["labels"]}
    numbers = sorted({labels for labels, _ in by_place})
    *others, ours = dict.fromkeys(row["name"] for row in facts["labels"])
    sentences = []
    for labels in (numbers[0], numbers[-1]):
        own = by_place[labels, ours]
        gains = (
            f"{(own - by_place[labels, name]) * 100:+.1f} points beside {name}" for name in others
        )
        sentences.append(
            f"With {labels:,} labels the {ours} reaches {own:.3f}: {' and '.join(gains)}."
        )
    for name in others:
        ahead = [
            f"{labels:,}" for labels in numbers if by_place[labels, name] > by_place[labels, ours]
        ]
        where = f"at {', '.join(ahead)} labels" if ahead else "nowhere"
        sentences.append(f"{name} is ahead of it {where}.")
    return " ".join(sentences)


def draw_learning_curve(path: Path, rows: list[dict[str, Any]], chance: float) -> None:
    """Writes the picture of accuracy against labels.

    Args:
        path: of the SVG file.
        rows: a method's accuracies at a number of labels each.
        chance: the accuracy of a guess.
    """
    picture = svg(lambda axes: _labels(axes, rows, chance), 3.4, inline=False)
    path.write_text(picture, encoding="utf-8")


def _runs(row: dict[str, Any]) -> str:
    """The accuracy of each run, where there are several."""
    return " ".join(f"{accuracy:.3f}" for accuracy in row["runs"]) if len(row["runs"]) > 1 else ""


def _half_interval(count: int) -> float:
    """Points that the 95 % interval of a share of ``count`` cases has to either side, at most."""
    return 100 * 1.96 * (0.25 / count) ** 0.5


def _labels(axes: Any, rows: list[dict[str, Any]], chance: float) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name, colour, marker in zip(names, (OTHER, QUIET, STRONG), "s^o", strict=False):
        own = [row for row in rows if row["name"] == name]
        labels = [row["labels"] for row in own]
        lows, highs = ([side(row["runs"]) for row in own] for side in (min, max))
        axes.fill_between(labels, lows, highs, color=colour, alpha=0.2, linewidth=0)
        axes.plot(labels, [row["accuracy"] for row in own], marker, ls="-", c=colour, label=name)
    axes.axhline(chance, color=QUIET, linestyle=":")
    axes.set_xscale("log")
    numbers = sorted({row["labels"] for row in rows})
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy")
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, loc="upper left")


def _curve(axes: Any, curve: list[dict[str, Any]]) -> None:
    steps = [line["step"] for line in curve]
    axes.plot(steps, [line["mlm_loss"] for line in curve], color=STRONG, label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    other = axes.twinx()
    other.plot(
        steps,
        [line["mlm_accuracy"] for line in curve],
        color=STRONG,
        linestyle=":",
        label="accuracy",
    )
    other.set_ylabel("accuracy")
    other.set_ylim(0, 1)
    other.spines["top"].set_visible(False)
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, loc="upper right")


def _steps(axes: Any, medians: dict[str, float]) -> None:
    names = list(medians)[::-1]
    axes.barh(
        names,
        [medians[name] * 1e3 for name in names],
        color=[STRONG if "bertfast" in name else QUIET for name in names],
    )
    for row, name in enumerate(names):
        axes.text(medians[name] * 1e3, row, f" {medians[name] * 1e3:.0f} ms", va="center")
    axes.set_xlabel("milliseconds a step (median)")
    axes.margins(x=0.15)
