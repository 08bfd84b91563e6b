"""Figures for people: the colours, curves, axes and legends that all figures share. matplotlib is
loaded when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirl.lm.text import escaped, visible

COLOURS = ("#2563a8", "#c8553d", "#3a7d44", "#8b5fa8", "#b8860b", "#4b5563")
DASHES = (0, (4, 1.5))
REACH = 3                         # neighbours on either side in a smoothed curve
FEW = 12                          # points up to which each is marked
Points = Sequence[tuple[int, float]]        # (step, value)


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def line_styles(n: int) -> list[dict[str, Any]]:
    """Return a look for each of n curves: six colours, then dashed; for more, shades in order."""
    if n <= 2 * len(COLOURS):
        return [{"color": colour, "linestyle": line} for line in ("-", DASHES)
                for colour in COLOURS][:n]
    import matplotlib
    shades = matplotlib.colormaps["viridis"]
    return [{"color": shades(0.95 * i / (n - 1)), "linestyle": "-"} for i in range(n)]


def draw(axis: Any, curve: Points, style: Mapping[str, Any], *, exact: bool = False) -> None:
    """Draw a line through exact points; through measured ones a faint line, and their means.

    A step is a few hundred samples: the points show the noise, and the mean leads the eye.
    """
    if not curve:
        return
    steps, values = zip(*curve, strict=True)
    marker = {"marker": "o", "markersize": 3.5} if len(curve) <= FEW else {}
    if exact:
        axis.plot(steps, values, linewidth=2, **style, **marker)
        return
    axis.plot(steps, values, alpha=0.28, linewidth=1, **style, **marker)
    axis.plot(steps, smooth(values), linewidth=2, **style, **(marker if len(curve) == 1 else {}))


def smooth(values: Sequence[float], reach: int = REACH) -> list[float]:
    """Return the mean of each value and its neighbours on either side, fewer at the ends."""
    windows = [values[max(0, i - reach):i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def circle(colour: Any) -> dict[str, Any]:
    return {"marker": "o", "color": colour, "markersize": 6, "markerfacecolor": "white",
            "markeredgewidth": 1.8}


def entry(label: str, **look: Any) -> Any:
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D
    return Line2D([], [], label=drawable(label), **look)


def legend_below(figure: Any, entries: Sequence[Any], title: str | None = None) -> None:
    """Put one legend under all axes, in as many columns as there is room for."""
    if not entries:
        return
    lengths = [len(entry.get_label()) + 7 for entry in entries]
    for columns in range(len(entries), 0, -1):
        rows, longer = divmod(len(entries), columns)    # the first ones have a row more
        starts = [rows * i + min(i, longer) for i in range(columns + 1)]
        longest = [max(lengths[i:j]) for i, j in zip(starts, starts[1:], strict=False)]
        if sum(longest) <= 13 * figure.get_figwidth():                  # letters to an inch
            break
    rows += longer > 0
    figure.set_figheight(figure.get_figheight() + 0.2 * (rows + (title is not None)))
    figure.legend(handles=list(entries), loc="outside lower left", ncols=columns, fontsize=8,
                  frameon=False, title=title, title_fontsize=8, alignment="left")


def log_scale(axis: Any, span: float) -> None:
    """Set ticks at 1, 2, 5, 10, ... as plain numbers; over three decades at powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def whole_steps(axis: Any) -> None:
    """There is no step 1.25. A single step has room on both sides."""
    from matplotlib.ticker import MaxNLocator
    low, high = axis.dataLim.intervalx
    if low == high:
        axis.set_xlim(low - 1, high + 1)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=(1, 2, 5, 10), integer=True,
                                             min_n_ticks=1))


def drawable(text: str) -> str:
    """Return text for matplotlib: no formula between $, no letter that its font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    text = "".join(c if ord(c) in glyphs else escaped(c) for c in visible(text)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text         # a legend leaves out names in _


def tidy(axis: Any, title: str = "", *, x: str = "", y: str = "") -> None:
    if title:
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
    for text, label in ((x, axis.set_xlabel), (y, axis.set_ylabel)):
        if text:
            label(text, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, out: Path) -> None:
    figure.savefig(out, dpi=130, format="png")
