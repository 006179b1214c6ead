"""The figure of a set's statistics, as a picture or in a page that needs nothing besides itself."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter

from data.shards.page import check_form, render
from data.shards.stats import NAMES, NUMBERS, Stats, short

BLUE, PALE, SAND = "#4477aa", "#bbd2ec", "#ddaa33"  # told apart by everybody (Paul Tol)
WIDE = 50  # largest over smallest from which an axis is logarithmic
FEW = 12  # whole numbers up to which each has its own bar
FEWEST = 5  # bars there is room for
COLUMNS = 4
INK, GREY = "#222222", "#bbbbbb"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names come from anywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "figure.dpi": 110,
}

STYLES = """.scroll { overflow-x: auto } img { max-width: 100% }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } .names td { text-align: left; overflow-wrap: anywhere }
tr { border-top: 1px solid #ddd }
"""
BODY = """<img alt="The distributions of the tables below" src="data:image/png;base64,{{ figure }}">
<div class="scroll"><table><thead><tr><th><th>smallest<th>median<th>mean<th>99 %<th>largest</tr></thead><tbody>
{% for row in rows %}<tr>{% for part in row %}<td>{{ part }}{% endfor %}</tr>
{% endfor %}</tbody></table>
<table class="names"><tbody>{% for name, listed in shares %}<tr><td>{{ name }}<td>{{ listed }}</tr>
{% endfor %}</tbody></table></div>
{% if faults %}<h2>{{ faults|length }} samples that cannot be read</h2><ul>
{% for fault in faults[:100] %}<li>{{ fault }}</li>{% endfor %}</ul>{% endif %}
"""


def write(path: Path, stats: Stats, title: str) -> None:
    """Draw all panels that have something in them."""
    check_form(path)
    with matplotlib.rc_context(STYLE):
        drawn = _figure(stats, title)
    if path.suffix == ".png":
        path.write_bytes(drawn)
        return
    figure = base64.b64encode(drawn).decode()
    tables = {"rows": stats.rows(), "shares": stats.shares(), "faults": stats.faults}
    path.write_text(render(STYLES, BODY, title=title, figure=figure, **tables), encoding="utf-8")


def _figure(stats: Stats, title: str) -> bytes:
    numbers = [name for name in NUMBERS if name in stats.numbers]
    names = [name for name in NAMES if name in stats.names]
    rows = -(-(len(numbers) + len(names)) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.1 * rows + 0.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for name in numbers:
        _spread(next(panels), np.array(stats.numbers[name]), NUMBERS[name])
    for name in names:
        _bars(next(panels), stats, name)
    for panel in panels:
        panel.set_visible(False)
    content = io.BytesIO()
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of letters that the font has not
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _spread(panel: Axes, values: np.ndarray, title: str) -> None:
    """How often each value comes, with the median."""
    low, high, median = float(values.min()), float(values.max()), float(np.median(values))
    panel.set_title(title)
    if low == high:
        panel.text(0.5, 0.5, f"all {low:,.4g}", transform=panel.transAxes, ha="center", va="center", fontsize=14)
        panel.set_axis_off()
        return
    if (values == values.round()).all() and high - low < FEW:
        found, counts = np.unique(values, return_counts=True)
        panel.bar(found, counts, width=0.7, color=BLUE)
        panel.set_xticks(np.arange(int(low), int(high) + 1))
    else:
        logarithmic = low > 0 and high / low >= WIDE
        edges = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
        panel.hist(values, bins=list(edges), color=BLUE)
        if logarithmic:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axvline(median, color=SAND, linewidth=2, linestyle="--")
    panel.set_xlabel(f"median {median:,.4g}")
    panel.set_ylabel("images" if title.startswith("image ") and "token" not in title else "samples")
    panel.grid(axis="y", color=GREY, linewidth=0.5)
    panel.set_axisbelow(True)


def _bars(panel: Axes, stats: Stats, name: str) -> None:
    """The commonest names, each on its bar."""
    listed, total = stats.commonest(name), stats.names[name].total()
    panel.barh(range(len(listed)), [100 * n / total for _, n in listed], color=PALE)
    for place, (key, n) in enumerate(listed):
        text = f" {short(key)}  {100 * n / total:.1f}"
        panel.text(0, place, text, va="center", fontsize=9 if len(listed) > FEWEST else 10)
    panel.set_ylim(max(FEWEST, len(listed)) - 0.5, -0.5)  # the first on top, none too thick
    panel.set_yticks([])
    panel.set_title(NAMES[name])
    panel.set_xlabel("% of these" if name in ("letter", "answer") else "%")
