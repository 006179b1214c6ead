"""How the figures of a diagnosis are drawn: style, panels with names and numbers, marks with their intervals, SVG.

Letters are outlines, so that a figure looks the same everywhere. Names come from anywhere: they are clipped, and drawn
as they are, without mathematics. Error bars are 95 % intervals.
"""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import isfinite
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from data.shards.figure import BLUE, GREY, INK, PALE
from data.shards.figure import STYLE as BASE
from data.shards.stats import short
from eval.scores import Estimate

WIDTH = 7.2  # inches, 691 pixels in a browser
ROW = 0.32  # inches for a name and its mark
FRAME = 1.1  # inches for titles and axis
STEPS = (1, 2, 2.5, 5, 10)  # of an axis
MOST_TICKS = 12  # of whole numbers along an axis
STYLE: dict[Any, Any] = BASE | {
    "axes.titlesize": 10.5,
    "font.size": 10.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
}

_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, bytes]:
    """The drawing as SVG, in this file's style."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> bytes:
        content = io.BytesIO()
        # The warnings are of letters that the font has not.
        with matplotlib.rc_context(STYLE), warnings.catch_warnings(category=UserWarning, action="ignore"):
            draw(*args, **kwargs).savefig(content, format="svg", metadata={"Date": None, "Creator": None})
        return content.getvalue()

    return drawn


def inline(svg: bytes) -> str:
    """As the address of a picture."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def panels(rows: int, columns: int, legend: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """Beside one another, with the same rows from top to bottom."""
    height = ROW * max(rows, 2) + FRAME + (0.5 if legend else 0)
    figure = Figure(figsize=(WIDTH, height), layout=layout())
    panels = figure.subplots(1, columns, sharey=True)
    panels[0].set_ylim(rows - 0.5, -0.5)
    for panel in panels:
        grid(panel, "x")
        panel.tick_params(axis="y", length=0)
    return figure, panels


def single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.2), layout=layout())
    panel = figure.subplots()
    grid(panel, "y")
    return figure, panel


def grid(panel: Axes, axis: Any) -> None:
    """Of the values' axis. As many ticks whatever the size: else ticks and layout may chase one another."""
    values = getattr(panel, f"{axis}axis")
    values.set_major_locator(MaxNLocator(5, steps=STEPS))
    values.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))  # with no factor in a corner
    panel.grid(axis=axis, color=GREY, linewidth=0.5)
    panel.set_axisbelow(True)


def named(panel: Axes, names: Sequence[str], title: str) -> None:
    panel.set_yticks(range(len(names)), [short(name) for name in names])
    panel.set_title(title)


def numbered(panel: Axes, what: str, count: int) -> None:
    """Whole numbers from 1; a few stand in the middle, so that their bars are no wider than others."""
    room = max(0.6, (5 - count) / 2)
    panel.set_xlabel(what)
    panel.set_xlim(1 - room, count + room)
    if count <= MOST_TICKS:
        panel.set_xticks(range(1, count + 1))
    else:
        panel.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))


def from_zero(panel: Axes, axis: str) -> None:
    """From 0 to above all that is drawn, with room for half a marker."""
    top = getattr(panel, f"get_{axis}lim")()[1]
    getattr(panel, f"set_{axis}lim")(0, 1.05 * top if top > 0 else 1)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Below and above; rounding may put an end on the wrong side by a hair."""
    return [[max(0.0, e.value - e.low) for e in estimates], [max(0.0, e.high - e.value) for e in estimates]]


def marks(panel: Axes, rows: Sequence[float], of: Sequence[Estimate], color: str, marker: str, label: str = "") -> None:
    """One point with its interval to a row."""
    if of:
        values = [e.value for e in of]
        panel.errorbar(
            values,
            rows,
            xerr=_errors(of),
            fmt=marker,
            color=color,
            capsize=3,
            markersize=6,
            label=label or None,
            clip_on=False,
        )


def series(
    panel: Axes, at: Sequence[float], of: Sequence[Estimate], color: str, marker: str, line: str, label: str
) -> None:
    values = [e.value for e in of]
    panel.errorbar(at, values, yerr=_errors(of), fmt=marker + line, color=color, capsize=3, markersize=6, label=label)


def bars(panel: Axes, values: Mapping[str, float], title: str, of: Sequence[Estimate] | None = None) -> None:
    """Bars told apart by their names and hatches, their values beside them."""
    hatches = ("", "//", "..")
    ends = [e.high for e in of] if of else list(values.values())
    bars = panel.barh(
        range(len(values)), list(values.values()), xerr=_errors(of) if of else None, capsize=3, height=0.6,
        color=PALE, edgecolor=BLUE, ecolor=INK,
    )  # fmt: skip
    room = max([0.0, *(end for end in ends if isfinite(end))]) * 0.02
    for row, (bar, value, end) in enumerate(zip(bars, values.values(), ends, strict=True)):
        bar.set_hatch(hatches[row % len(hatches)])
        panel.text(end + room, row, f" {value:.3g}", va="center")
    panel.set_ylim(len(values) - 0.5, -0.5)
    panel.margins(x=0.15)
    from_zero(panel, "x")
    panel.tick_params(axis="y", length=0)
    named(panel, list(values), title)
    grid(panel, "x")


def legend(figure: Figure, panel: Axes) -> None:
    """Below, where it covers nothing."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) == 4 else 3)
