"""The self-contained page of an evaluation, which opens from disk: scores with intervals, and items to look at.

It shows the averages, every sub-task beside chance and the other baselines, a comparison with a baseline run where one
is given, the settings, and a gallery of items (eval/gallery.py, which bounds the size of the page). It runs no script:
the gallery's filters are radio buttons that the style sheet asks about.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from data.shards.page import render
from eval.benchmarks.item import Benchmark
from eval.gallery import KINDS, Card, cards, clip, flip, kind
from eval.paired import LEVEL, Comparison, TaskDifference
from eval.results import Result, write_whole
from eval.scores import Estimate, Scores, paired_difference
from eval.tables import interval, percent

FOLDER = Path(__file__).parent
BODY = ("report.html", "comparison.html", "gallery.html")  # in this order on the page
MARKS = {
    "chance": "chance",
    "majority": "always the sub-task's commonest right answer",
    "blind": "the same model without pictures",
    "text": "from the text alone, by training answers",
}
LONGEST_SETTING = 4000  # characters


def write_report(
    path: Path,
    title: str,
    scores: Scores,
    benchmark: Benchmark,
    results: Sequence[Result],
    comparison: Comparison | None = None,
    baseline: Sequence[Result] | None = None,
) -> Path:
    """Write the page, all or nothing, and return its path.

    `comparison` is of the baseline (A) with this run (B), `baseline` its results: of items on which they differ the
    gallery shows both replies. All text is escaped. A picture that cannot be decoded is named in its place.
    """
    gallery = cards(benchmark, results, baseline)
    values = _numbers(scores) | _filters(gallery, results, baseline) | _differences(comparison) | {"clip": clip}
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    body = "".join((FOLDER / name).read_text(encoding="utf-8") for name in BODY)
    page = render(style, body, title=f"{benchmark.name} {benchmark.split}: {title}", gallery=gallery, **values)
    write_whole(path, page)
    return path


def _numbers(scores: Scores) -> dict[str, Any]:
    every = [*scores.tasks.values(), *(s for group in scores.groups.values() for s in group.values())]
    marks = {name: words for name, words in MARKS.items() if any(getattr(s, name) is not None for s in every)}
    return {
        "scores": scores,
        "settings": [(name, clip(value, LONGEST_SETTING)) for name, value in flat(scores.settings)],
        "marks": list(marks),
        "entries": [("bar", "accuracy"), ("whisker", "its 95 % interval"), *marks.items()],
        "points": lambda share, form=".1f": percent(share, form),
        "interval": lambda of, form=".1f": interval(of, form),
        "gain": _gain,
    }


def _differences(comparison: Comparison | None) -> dict[str, Any]:
    """With the span of their axis in points, a multiple of ten to each side of zero."""
    tasks = comparison.tasks.values() if comparison else ()
    ends = [abs(end) for t in tasks for end in (_paired(t).low, _paired(t).high)]
    span = 10 * max(1, ceil(10 * max(ends, default=0.0)))
    return {"comparison": comparison, "paired": _paired, "span": span, "level": LEVEL}


def _paired(task: TaskDifference) -> Estimate:
    return paired_difference(task.only_a, task.only_b, task.n)


def _gain(gain: Estimate | None) -> str:
    return "-" if gain is None else f"{percent(gain.value, '+.1f')} {interval(gain, '+.1f')}"


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as rows of `a.b`, and their values as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "-" if value is None else str(value)


def _filters(
    gallery: Mapping[str, Sequence[Card]], results: Sequence[Result], baseline: Sequence[Result] | None
) -> dict[str, Any]:
    """The choices of the gallery's filters, and which of their pairs show nothing."""
    before = {result.key: result for result in baseline or ()}
    every = {name: sum(kind(r) == name for r in results) for name in KINDS}
    if baseline is not None:
        every["flips"] = sum(flip(r, before.get(r.key)) != "" for r in results)
    shown = [{name for card in listed for name in _kinds(card)} for listed in gallery.values()]
    everywhere = set().union(*shown)
    listed = [card for several in gallery.values() for card in several]
    counts = {name: sum(name in _kinds(card) for card in listed) for name in every}
    absent = [(name, number) for number, found in enumerate(shown) for name in every if name not in found]
    return {
        "total": len(listed),
        "flips": "flips" in every,
        "kinds": [(name, name, f"{counts[name]} of {every[name]}") for name in every],
        "chips": list(every),
        "numbers": range(len(gallery)),
        "absent": absent + [(name, "all") for name in every if name not in everywhere],
    }


def _kinds(card: Card) -> set[str]:
    return {card.kind, "flips"} if card.flip else {card.kind}
