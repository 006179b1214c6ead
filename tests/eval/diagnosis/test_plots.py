"""The figures: whole SVGs whatever is drawn, nothing cut off and no names on top of one another."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from eval.diagnosis import plots
from eval.diagnosis.drawing import STYLE, inline
from eval.diagnosis.findings import Attention
from eval.scores import Estimate
from tests.eval.diagnosis.test_verdicts import K, altered, arm, bare, found, leaking, shape

FULL = found()
USE = {name: arm for name, arm in FULL.use.items() if name != "kept"}
WHOLE = FULL.gap.sources["prior_mean"].accuracy
NONE = Estimate(value=0.0, se=0.0, low=0.0, high=0.0)
EQUAL = arm(0.0, 0.0, margin=0.0).model_copy(update={"accuracy": NONE, "change": NONE, "flips": NONE, "nats": NONE})
STILL = altered(0.0, 0.0).model_copy(update={"change": NONE, "flips": NONE, "latents_alone": NONE})
SURE = Estimate(value=1.0, se=0.0, low=1.0, high=1.0)
NOTHING = Attention(answer_to_latents=[0.0] * 3, answer_to_images=[0.0] * 3, latents_to_images=[0.0] * 3)
DEEP = Attention(answer_to_latents=[0.1] * 64, answer_to_images=[0.3] * 64, latents_to_images=[0.2] * 64)
GAPS = {step: FULL.gap for step in (875, 12_000, 100_000, 1_000_000)}
BELOW = {step: FULL.gap.model_copy(update={"mean": Estimate(value=-1, se=0.1, low=-1.2, high=-0.8)}) for step in (1, 2)}

CASES: dict[str, tuple[Any, ...]] = {
    "use": (plots.causal_use, USE),
    "use, one": (plots.causal_use, {"removed": FULL.use["removed"]}),
    "use, equal": (plots.causal_use, {"removed": EQUAL, "other_item": EQUAL}),
    "use, unknown": (plots.causal_use, {"a $new$ arm \n" + "x" * 300: FULL.use["removed"]}),
    "sources": (plots.sources, FULL.gap),
    "sources, no posterior": (plots.sources, bare().gap),
    "steps": (plots.gap_over_steps, GAPS),
    "steps, below": (plots.gap_over_steps, BELOW),
    "leakage": (plots.leakage, FULL.leakage),
    "leakage, none": (plots.leakage, leaking(probe_posterior=0.0, probe_prior=0.0, probe_majority=0.0)),
    "leakage, all": (plots.leakage, leaking(probe_posterior=1.0, inflation=1234.5).model_copy(update={"rate": SURE})),
    "leakage, no answers": (plots.leakage, leaking().model_copy(update={"rate": NONE, "base": NONE})),
    "alterations": (plots.alterations, FULL.inputs),
    "alterations, one": (plots.alterations, {"words": FULL.inputs["words"]}),
    "alterations, equal": (plots.alterations, {"words": STILL, "patches": STILL}),
    "slots": (plots.slots, FULL.by_slots, WHOLE, K),
    "slots, many": (plots.slots, {2**n: arm(-0.1, 0.1) for n in range(7)}, WHOLE, 65),
    "slots, alone": (plots.slots, {1: arm(-0.1, 0.1)}, None, 2),
    "attention": (plots.attention, FULL.attention),
    "attention, one layer": (plots.attention, bare().attention),
    "attention, none": (plots.attention, NOTHING),
    "attention, deep": (plots.attention, DEEP),
    "geometry": (plots.geometry, FULL.geometry),
    "geometry, one slot": (plots.geometry, shape(0.3, slots=1, posterior=False)),
    "geometry, many": (plots.geometry, shape(0.3, slots=64)),
    "geometry, tiny": (plots.geometry, shape(3e-7)),
    "geometry, nothing": (plots.geometry, shape(0.0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_svg(name: str) -> None:
    draw, *given = CASES[name]
    svg = draw(*given)
    tree = ElementTree.fromstring(svg)
    assert tree.tag.endswith("svg") and b"nan" not in svg.lower() and b"<text" not in svg
    assert inline(svg).startswith("data:image/svg+xml;base64,PD94")


@pytest.mark.parametrize("name", CASES)
def test_all_names_have_their_place(name: str) -> None:
    figure = figure_of(name)
    width, height = figure.canvas.get_width_height()
    found = [(text, text.get_window_extent()) for text in texts(figure) if text.get_text()]
    assert len(found) > 2
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
        assert text.get_rotation() == 0 and text.get_fontsize() >= 10
    for (a, box_a), (b, box_b) in combinations(found, 2):
        assert not box_a.overlaps(box_b), (a.get_text(), b.get_text())


def figure_of(name: str) -> Figure:
    """As it is drawn, before it is written."""
    draw, *given = CASES[name]
    with matplotlib.rc_context(STYLE):
        figure: Figure = draw.__wrapped__(*given)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> Iterator[Text]:
    """Those that are seen: an axis also makes ticks beyond its ends."""
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            yield from (tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible())
            yield from (axis.label, axis.offsetText)
        yield from (panel.title, panel._left_title, *panel.texts)
    for legend in figure.legends:
        yield from legend.get_texts()


def test_the_whole_of_every_interval_is_seen() -> None:
    for name in ("use", "sources", "alterations", "slots", "steps", "geometry", "attention"):
        for panel in figure_of(name).axes:
            (left, right), (bottom, top) = panel.get_xlim(), sorted(panel.get_ylim())
            for line in panel.lines:
                if line.get_label() != "limit of agreement" and line.get_transform() == panel.transData:
                    x, y = line.get_xdata(), line.get_ydata()
                    assert min(x) >= left and max(x) <= right and min(y) >= bottom and max(y) <= top, name


def test_series_differ_without_colours() -> None:
    for name in ("attention", "steps", "geometry"):
        panel = figure_of(name).axes[-1]
        shown = [line for line in panel.lines if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"]
        assert len({(line.get_marker(), line.get_linestyle()) for line in shown}) == len(shown) > 1
    bars = figure_of("leakage").axes[1].patches
    assert len({bar.get_hatch() for bar in bars}) == len(bars) == 3


def test_arms_stand_where_their_numbers_are() -> None:
    left, right = figure_of("use").axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(USE)
    at = {float(y): float(x) for line in left.lines if line.get_marker() in "so^D" for x, y in line.get_xydata()}
    assert [at[row] for row in range(len(USE))] == [arm.change.value for arm in USE.values()]
    assert left.get_ylim()[0] > left.get_ylim()[1] and right.get_xlim()[0] == 0
