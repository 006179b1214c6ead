"""The study's page of plots: what each objective comes to, and the frontier of leakage against use.

Readable in print and by colour-blind readers: shapes tell groups apart, colours (Paul Tol's) only repeat them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks.study.jobs import BASE, TASKS
from benchmarks.study.report import Interval, Row

INK, GREY = "#222222", "#bbbbbb"
KINDS = {  # how a variant's name begins, its shape and colour
    "amvl": ("o", "#4477aa"),
    "elbo": ("s", "#ee6677"),
    "": ("^", "#228833"),  # all others
}
PANELS = {
    "accuracy": "accuracy, right answers",
    "gap": "train-inference gap, nats",
    "leak rate": "leak rate",
    "other item": "change with another item's latents",
}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}


def draw(path: Path, found: Sequence[Row]) -> None:
    """A row of panels for each task, then the frontier. SVG."""
    tasks = [task for task in TASKS if any(row.task == task for row in found)]
    with matplotlib.rc_context(STYLE):
        most = max(sum(row.task == task for row in found) for task in tasks)
        figure = Figure(figsize=(13, len(tasks) * (0.22 * most + 4.6)), layout="constrained")
        parts: Any = figure.subfigures(len(tasks), 1, squeeze=False)
        for part, task in zip(parts[:, 0], tasks, strict=True):
            part.suptitle(f"{task}: {TASKS[task]}", x=0.01, ha="left", fontweight="bold")
            _task(part, [row for row in found if row.task == task])
        figure.savefig(path, format="svg", metadata={"Date": None})


def _task(part: SubFigure, rows: Sequence[Row]) -> None:
    parts: Any = part.subfigures(2, 1, height_ratios=(0.22 * len(rows) + 1, 3.4))
    above, below = parts
    panels = above.subplots(1, len(PANELS), sharey=True)
    for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
        _listed(panel, rows, name)
        panel.set_title(title, loc="left", fontsize=9)
    panels[0].set_yticks(range(len(rows)), [row.variant for row in rows])
    panels[0].invert_yaxis()
    left, right = below.subplots(1, 2)
    _frontier(left, rows, "leak rate", "other item")
    _frontier(right, rows, "leak rate", "accuracy")


def _listed(panel: Axes, rows: Sequence[Row], name: str) -> None:
    for at, row in enumerate(rows):
        if (of := row.metrics.get(name)) is not None:
            shape, colour = kind(row.variant)
            panel.errorbar(of.mean, at, xerr=_half(of), fmt=shape, color=colour, capsize=2, markersize=4, lw=1)
            if row.variant == BASE:
                panel.axvline(of.mean, color=GREY, lw=0.8, zorder=0)
    panel.grid(axis="y", color="#eeeeee", lw=0.6)


def _frontier(panel: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    for number, row in enumerate(rows):
        if x in row.metrics and y in row.metrics:
            shape, colour = kind(row.variant)
            a, b = row.metrics[x], row.metrics[y]
            full = row.variant == BASE
            panel.plot(a.mean, b.mean, shape, color=colour, markersize=8 if full else 5, mfc=colour if full else "none")
            panel.annotate(str(number + 1), (a.mean, b.mean), (4, 3), textcoords="offset points", fontsize=7, color=INK)
    panel.set_xlabel(PANELS[x])
    panel.set_ylabel(PANELS[y])
    panel.set_title("numbers are rows of the panels above, from the top; full: amvl as shipped", loc="left", fontsize=8)


def kind(variant: str) -> tuple[str, str]:
    """(shape, colour) of a variant."""
    return next(look for start, look in KINDS.items() if variant.split(" ")[0] == start or not start)


def _half(of: Interval) -> float:
    half = of.mean - of.low
    return half if math.isfinite(half) else 0.0
