"""The figures of a diagnosis, each as an SVG.

Series differ in marker, line or hatch as well as in colour (Paul Tol's), which colour-blind eyes and grey prints need.
"""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.shards.figure import BLUE, INK, PALE, SAND
from eval.diagnosis.causal import CONTENTS
from eval.diagnosis.drawing import (
    ROW,
    WIDTH,
    bars,
    from_zero,
    grid,
    layout,
    legend,
    marks,
    named,
    numbered,
    panels,
    series,
    single,
    styled,
)
from eval.diagnosis.findings import Alteration, Arm, Attention, Gap, Geometry, Leakage
from eval.diagnosis.said import NATS
from eval.scores import Estimate

RED = "#aa3377"  # of Paul Tol's too
KINDS = {  # of arms: their colour, marker, and what they are
    "gone": (INK, "s", "taken away"),
    "other": (BLUE, "o", "others such as the model meets"),
    "strange": (SAND, "^", "strange to the model"),
    "oracle": (RED, "D", "from the posterior, which sees the answer"),
}
SOURCES = {
    "posterior": "posterior (in training)",
    "prior_mean": "prior's mean (at inference)",
    "prior": "drawn from the prior",
    "noise": "noise, N(0, I)",
}


@styled
def causal_use(use: Mapping[str, Arm]) -> Figure:
    """Change of the accuracy under every arm, and the answers that change."""
    figure, (left, right) = panels(len(use), 2)
    names = list(use)
    for kind, (color, marker, label) in KINDS.items():
        rows = [n for n, name in enumerate(names) if _kind(name) == kind]
        arms = [use[names[n]] for n in rows]
        marks(left, rows, [arm.change for arm in arms], color, marker, label)
        marks(right, rows, [arm.flips for arm in arms], color, marker, "")
    left.axvline(0, color=INK, linewidth=0.8)
    named(left, names, "change of accuracy")
    right.set_title("answers that change")
    from_zero(right, "x")
    legend(figure, left)
    return figure


def _kind(arm: str) -> str:
    if arm in ("removed", "markers"):
        return "gone"
    return "oracle" if arm == "oracle" else "other" if arm in CONTENTS else "strange"


@styled
def sources(gap: Gap) -> Figure:
    """What the right answer costs, and how often it is given, by where z comes from."""
    names = [name for name in SOURCES if name in gap.sources] + [name for name in gap.sources if name not in SOURCES]
    figure, (left, right) = panels(len(names), 2, legend=False)
    for n, name in enumerate(names):
        color, marker = {"posterior": (RED, "D"), "prior_mean": (BLUE, "o"), "prior": (BLUE, "v")}.get(
            name, (SAND, "^")
        )
        marks(left, [n], [gap.sources[name].nats], color, marker)
        marks(right, [n], [gap.sources[name].accuracy], color, marker)
    named(left, [SOURCES.get(name, name) for name in names], "nats of the right answer")
    from_zero(left, "x")
    right.set_title("accuracy")
    return figure


@styled
def gap_over_steps(history: Mapping[int, Gap]) -> Figure:
    """Nats that the right answer costs more than with the posterior, as training went on."""
    figure, panel = single()
    for color, marker, line, label, kind in (
        (BLUE, "o", "-", "at the prior's mean", "mean"),
        (SAND, "^", "--", "drawn from the prior", "drawn"),
    ):
        there = {step: e for step, gap in sorted(history.items()) if (e := getattr(gap, kind)) is not None}
        if there:
            series(panel, list(there), list(there.values()), color, marker, line, label)
    panel.axhline(0, color=INK, linewidth=0.8)
    panel.axhline(NATS, color=INK, linewidth=1.2, linestyle=":", label=f"limit of agreement, {NATS:g}")
    if panel.get_ylim()[0] > -NATS / 2:
        from_zero(panel, "y")
    panel.set_title("nats more than with the posterior")
    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(figure, panel)
    return figure


@styled
def leakage(of: Leakage) -> Figure:
    """Three panels of bars: answers given as shown, what a probe reads, and variances."""
    rows = (2, 3, 2)
    figure = Figure(figsize=(WIDTH, ROW * sum(rows) + 3 * 0.75), layout=layout())
    given, probes, spread = figure.subplots(3, 1, height_ratios=[n + 0.6 for n in rows])
    shares = {"a wrong answer shown": of.rate, "the right answer shown": of.base}
    bars(
        given,
        {name: e.value for name, e in shares.items()},
        "share of answers that are the wrong one",
        list(shares.values()),
    )
    read = {
        "posterior's mean": of.probe_posterior,
        "prior's mean": of.probe_prior,
        "always the commonest": of.probe_majority,
    }
    bars(probes, read, "share of answers that a linear probe reads off")
    probes.set_xlim(0, 1.1)
    probes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    times = {"measured": of.inflation, "if it covered all answers": of.inflation_by_answers}
    bars(spread, times, "prior's variance over the posterior's")
    spread.axvline(1, color=INK, linewidth=1, linestyle="--")
    return figure


@styled
def alterations(inputs: Mapping[str, Alteration]) -> Figure:
    """How far the latents move with an altered prompt, and the answers that change with it."""
    figure, (left, right) = panels(len(inputs), 2)
    rows = range(len(inputs))
    left.barh(rows, [of.moved for of in inputs.values()], height=0.5, color=PALE, edgecolor=BLUE)
    left.axvline(1, color=INK, linewidth=1, linestyle="--")
    named(left, list(inputs), "latents move by")
    left.set_xlabel("1: as far as to another item")
    from_zero(left, "x")
    both = [of.flips for of in inputs.values()]
    marks(right, [n - 0.16 for n in rows], both, SAND, "^", "answer and latents see the altered prompt")
    alone = [of.latents_alone for of in inputs.values()]
    marks(right, [n + 0.16 for n in rows], alone, BLUE, "o", "the latents alone see it")
    right.set_title("answers that change")
    from_zero(right, "x")
    legend(figure, right)
    return figure


@styled
def slots(by_slots: Mapping[int, Arm], whole: Estimate | None, count: int) -> Figure:
    """Accuracy by the number of slots; `whole` is that with all `count` of them."""
    figure, panel = single()
    points = {number: arm.accuracy for number, arm in sorted(by_slots.items())} | ({count: whole} if whole else {})
    places = range(len(points))  # evenly: numbers that double would stand on top of one another at the left
    series(panel, places, list(points.values()), BLUE, "o", "-", "the first slots alone")
    if whole is not None:
        panel.axhline(whole.value, color=SAND, linewidth=1.2, linestyle="--", label="all slots")
        panel.axhspan(whole.low, whole.high, color=SAND, alpha=0.18, linewidth=0)
    panel.set_title("accuracy")
    panel.set_xlabel("slots")
    panel.set_xticks(places, [str(number) for number in points])
    panel.set_xlim(-0.5, len(points) - 0.5)
    legend(figure, panel)
    return figure


@styled
def attention(of: Attention) -> Figure:
    """Mass by layer: of the answer on latents and pictures, and of the latents on pictures."""
    figure, panel = single()
    lines = (
        (BLUE, "o", "-", "answer to latents", of.answer_to_latents),
        (SAND, "^", "--", "answer to pictures", of.answer_to_images),
        (RED, "s", ":", "latents to pictures", of.latents_to_images),
    )
    for color, marker, style, label, mass in lines:
        panel.plot(range(1, len(mass) + 1), mass, style, color=color, marker=marker, markersize=5, label=label)
    panel.set_title("share of the attention")
    numbered(panel, "layer", len(of.answer_to_latents))
    from_zero(panel, "y")
    legend(figure, panel)
    return figure


@styled
def geometry(of: Geometry) -> Figure:
    """By slot: how far items lie apart, and how wide the Gaussians are."""
    figure = Figure(figsize=(WIDTH, 2.9), layout=layout())
    left, right = figure.subplots(1, 2)
    places = range(1, len(of.slot_spread) + 1)
    left.bar(places, of.slot_spread, width=0.6, color=PALE, edgecolor=BLUE)
    left.set_title("deviation of the items' means")
    right.plot(places, of.sigma_prior, "-", color=BLUE, marker="o", markersize=5, label="prior")
    if of.sigma_posterior is not None:
        right.plot(places, of.sigma_posterior, "--", color=RED, marker="D", markersize=5, label="posterior")
    right.set_title("mean σ of the Gaussians")
    from_zero(right, "y")
    for panel in (left, right):
        numbered(panel, "slot", len(of.slot_spread))
        grid(panel, "y")
    legend(figure, right)
    return figure
