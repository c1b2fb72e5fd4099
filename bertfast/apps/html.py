"""What reports share: one HTML file that needs nothing beside it, on a light ground or a dark one,
and plots in it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from bertfast.escape import html as escape

# matplotlib has no variables: these stand for the page's own colours.
INK, GRID = "#010203", "#010204"
QUIET, STRONG, OTHER = "#7b8fa3", "#3b82c4", "#d2691e"
# Lines that are told apart on both grounds; then they come again with other markers.
COLOURS = (STRONG, OTHER, "#3d9a57", "#a561c4", "#b8860b", "#cc4b72", "#2a9d9d", QUIET)

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --quiet: #52606d; --grid: #d5dbe1;
  --ground: #ffffff; --code: #f5f7fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --quiet: #9fb3c8; --grid: #3e4c59;
  --ground: #16191d; --code: #242a31; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 52rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--grid);
  vertical-align: top; overflow-wrap: break-word; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; }
code, pre { font: .88rem/1.5 ui-monospace, monospace; background: var(--code); }
code, pre { border-radius: 4px; padding: .1rem .3rem; overflow-wrap: anywhere; }
pre { padding: .7rem 1rem; overflow-x: auto; }
summary { cursor: pointer; margin: .6rem 0; }
"""


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: text.
        body: HTML.
    """
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{escape(title)}</title>
<style>{STYLE}</style>
{body}
</html>
"""


def svg(draw: Callable[[Any], None], height: float, *, inline: bool = True) -> str:
    """A figure as SVG.

    Args:
        draw: draws on matplotlib's axes.
        height: in inches, of a width of 7.4.
        inline: in the colours of the page that it stands in, and not those of paper.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = ("axes.edgecolor", "text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"font.size": 10, "svg.hashsalt": "bertfast"}
    style |= dict.fromkeys(names, INK)
    with rc_context(style):
        figure = Figure(figsize=(7.4, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for name, mark, colour in (("ink", INK, "#1f2933"), ("grid", GRID, "#d5dbe1")):
        text = text.replace(mark, f"var(--{name})" if inline else colour)
    return text[text.index("<svg") :]
