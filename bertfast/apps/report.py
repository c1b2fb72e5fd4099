"""The demo's report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertfast.escape import html as escape

INK, QUIET, STRONG, GRID = "#1f2933", "#9fb3c8", "#2463a6", "#e4e7eb"

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933; max-width: 46rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #e4e7eb; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption, .quiet { color: #52606d; font-size: .9rem; } svg { width: 100%; height: auto; }
code, pre { font: .88rem/1.5 ui-monospace, monospace; background: #f5f7fa; border-radius: 4px; padding: .1rem .3rem; }
pre { padding: .7rem 1rem; overflow-x: auto; }
"""


def write_report(path: Path, facts: dict[str, Any]) -> None:
    """Writes the report of what ``demo.json`` holds.

    Args:
        path: of the HTML file.
        facts: as `bertfast.apps.demo.run_demo` returns them.
    """
    corpus, methods, steps, last = (
        facts["corpus"],
        facts["methods"],
        facts["steps"],
        facts["pretraining"]["last"],
    )
    by_name = {row["name"]: row for row in methods}
    gain = (
        by_name["pretrained, fine-tuned"]["accuracy"]
        - by_name["not pretrained, fine-tuned"]["accuracy"]
    )
    rows = "".join(
        f"<tr><td>{escape(row['name'])}</td><td class=number>{row['accuracy']:.3f}</td>"
        f"<td class=number>{row['low']:.3f} to {row['high']:.3f}</td><td class=number>{runs_of(row)}</td>"
        f"<td class=number>{row['seconds']:.0f}</td></tr>"
        for row in methods
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
            f"On the same batches a training step of the packed encoder takes <b>{steps['ratio']:.1f} times less</b> than transformers' "
            f"eager BertForPreTraining, which pads: {steps['fill_rate']:.0%} of its cells are real tokens. Medians of "
            f"{len(next(iter(steps['times'].values())))} steps each, taken in turn: forward, backward, clipping and AdamW."
        )
    else:
        speed = "transformers is not installed, so its step was not measured."
    page = f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><title>bertfast demo</title>
<style>{STYLE}</style>
<h1>bertfast demo</h1>
<p class=quiet>{escape(machine["processor"])}, {machine["threads"]} threads, Python {machine["python"]}, bertfast {facts["bertfast"]},
seed {facts["seed"]}, {facts["seconds"]:.0f} s in all</p>
<p>A BERT was pretrained from nothing on the {corpus["megabytes"]:.2f} MB of English that this Python ships, then fine-tuned to tell which of
{len(corpus["labels"])} parts of the standard library a docstring comes from. Pretraining is worth
<b>{gain * 100:+.1f} points</b> of accuracy on files that neither training has seen.</p>

<h2>Accuracy on held-out files</h2>
<figure>{_svg(lambda axes: _accuracy(axes, methods), 2.6)}<figcaption>Bars are 95 % intervals over the {corpus["dev"]} held-out docstrings
(they do not cover the choice of files or of seed).</figcaption></figure>
<table><tr><th>method<th class=number>accuracy<th class=number>95 % interval<th class=number>runs<th class=number>seconds</tr>{rows}</table>
<p class=quiet>{corpus["train"]} docstrings of {corpus["train_files"]} files to train on, {corpus["dev"]} of {corpus["dev_files"]} other files to test on. The pretrained and
the not-pretrained encoder have the same shape, settings, seeds and number of updates; their accuracy is the mean of the runs shown. The best epoch was chosen on the held-out docstrings for
every encoder alike, so the encoders' scores are a little optimistic beside TF-IDF's. Parts:
{escape(", ".join(corpus["labels"]))}.</p>

<h2>Pretraining</h2>
<figure>{_svg(lambda axes: _curve(axes, facts["pretraining"]["curve"]), 3.0)}<figcaption>{last["tokens"]:,} tokens in {last["seconds"]:.0f} s
({last["tokens"] / last["seconds"]:,.0f} a second); at the end the loss is {last["loss"]:.3f} and {last["mlm_accuracy"]:.1%} of the hidden words are
guessed.</figcaption></figure>

<h2>Step time against eager PyTorch</h2>
<figure>{_svg(lambda axes: _steps(axes, steps["medians"]), 1.6)}</figure>
<p>{speed}</p>

<h2>Masks filled in</h2>
<table><tr><th>sentence<th>likeliest words</tr>{fills}</table>

<h2>Again, and on</h2>
<pre>bertfast demo --seed {facts["seed"] + 1} --out {escape(shlex.quote(f"{path.parent}-seed-{facts['seed'] + 1}"))}
echo "Return a coroutine that waits for the event." | bertfast predict {escape(shlex.quote(str(path.parent / "classifier")))} -
bertfast fill {escape(shlex.quote(str(path.parent / "pretrained")))} "Return the [MASK] of the file."</pre>
<p class=quiet>The numbers are in demo.json beside this page.</p>
</html>
"""
    path.write_text(page, encoding="utf-8")


def runs_of(row: dict[str, Any]) -> str:
    """The accuracy of each run, where a method was run more than once."""
    return " ".join(f"{accuracy:.3f}" for accuracy in row["runs"]) if len(row["runs"]) > 1 else ""


def _svg(draw: Callable[[Any], None], height: float) -> str:
    """A figure as inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(
        {
            "font.size": 10,
            "axes.edgecolor": QUIET,
            "text.color": INK,
            "axes.labelcolor": INK,
            "svg.hashsalt": "bertfast",
        }
    ):
        figure, axes = pyplot.subplots(figsize=(7.4, height), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _accuracy(axes: Any, methods: list[dict[str, Any]]) -> None:
    names = [row["name"] for row in methods]
    values = [row["accuracy"] for row in methods]
    errors = [
        [row["accuracy"] - row["low"] for row in methods],
        [row["high"] - row["accuracy"] for row in methods],
    ]
    colours = [STRONG if name == "pretrained, fine-tuned" else QUIET for name in names]
    axes.barh(
        names,
        values,
        color=colours,
        xerr=errors,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )
    for place, row in enumerate(methods):
        axes.text(row["high"] + 0.012, place, f"{row['accuracy']:.3f}", va="center")
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy")


def _curve(axes: Any, curve: list[dict[str, Any]]) -> None:
    steps = [line["step"] for line in curve]
    axes.plot(steps, [line["mlm_loss"] for line in curve], color=STRONG, label="masked words")
    axes.plot(steps, [line["nsp_loss"] for line in curve], color=QUIET, label="next sentence")
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
        label="masked words, accuracy",
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
    for place, name in enumerate(names):
        axes.text(medians[name] * 1e3, place, f" {medians[name] * 1e3:.0f} ms", va="center")
    axes.set_xlabel("milliseconds a step (median)")
    axes.margins(x=0.15)
