"""The gallery of a report: which items it shows, and what of each.

Failures come first: items that could not be run, unresolved replies, wrong answers; then some right ones. Beside a
baseline, some items on which the two runs disagree are taken before others of their kind.

A page holds at most CARDS cards of PICTURES pictures each, none of them beyond SIDE pixels (as JPEG some 15 kB), and
texts of at most LONGEST characters: whatever is evaluated, a browser can open it.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from data.pictures import decode
from data.sample import IMAGE_MARK, LETTERS, DataError
from eval.benchmarks.item import Benchmark, Item
from eval.results import Result

KINDS = ("failed", "unresolved", "wrong", "right")  # every result is one of these; the order of the gallery
EACH = 3  # cards of each kind in a sub-task
FLIPS = 2  # of them at most, that differ from the baseline
CARDS = 160  # on the page
PICTURES = 8  # on a card
SIDE = 320  # pixels: no thumbnail is larger
EXACT = 160  # pixels up to which a picture stays as it is, and is enlarged to about this by a whole factor
FOLDED = 450  # characters from which the middle of a text is folded away
LINES = 12  # lines, likewise
WORD = 30  # characters that the beginning and the end may lack so as not to split a word
LONGEST = 20_000  # characters of one text in the page


class Picture(NamedTuple):
    """A picture of a card; one that cannot be decoded has a fault and no address."""

    address: str = ""
    width: int = 0
    height: int = 0
    size: str = ""  # of the picture itself
    exact: bool = False  # pixel by pixel
    fault: str = ""


class Folded(NamedTuple):
    """A text whose beginning and end are always seen."""

    head: str
    middle: str = ""
    tail: str = ""


class Option(NamedTuple):
    """One line of the choices."""

    letter: str
    text: str
    right: bool
    chosen: bool
    probability: float | None  # of the options among themselves


class Side(NamedTuple):
    """What one run made of the item."""

    name: str
    result: Result
    kind: str
    replies: list[Folded]


class Card(NamedTuple):
    """An item as it is shown."""

    kind: str
    flip: str  # "lost": right in the baseline, wrong now; "won": the reverse; or nothing
    item: Item
    question: Folded
    options: list[Option]
    pictures: list[Picture]
    more: int  # pictures that are not shown
    sides: list[Side]  # this run, and of a flip the baseline


class Pick(NamedTuple):
    """A card to be made."""

    rank: int  # among those of its kind in its sub-task
    kind: str
    flip: str
    result: Result


def kind(result: Result) -> str:
    """failed, unresolved, wrong or right."""
    if result.failed is not None:
        return "failed"
    if result.answer is None:
        return "unresolved"
    return "right" if result.correct else "wrong"


def flip(result: Result, before: Result | None) -> str:
    """How it differs from the same item of the baseline."""
    if before is None or before.correct == result.correct:
        return ""
    return "won" if result.correct else "lost"


def cards(
    benchmark: Benchmark, results: Sequence[Result], baseline: Sequence[Result] | None = None
) -> dict[str, list[Card]]:
    """The cards of each sub-task, in the benchmark's order."""
    items = {item.key: item for item in benchmark.items}
    before = {result.key: result for result in baseline or ()}
    picks: list[Pick] = []
    for task in dict.fromkeys(item.task for item in benchmark.items):
        picks += _pick([r for r in results if r.task == task and r.key in items], before)
    kept = set(sorted(range(len(picks)), key=lambda at: picks[at].rank)[:CARDS])  # of every sub-task the first ones
    shown: dict[str, list[Card]] = {}
    for at, pick in enumerate(picks):
        if at in kept:
            shown.setdefault(pick.result.task, []).append(_card(items[pick.result.key], pick, before))
    return shown


def _pick(results: list[Result], before: dict[str, Result]) -> list[Pick]:
    """Of one sub-task, sorted by kind."""
    picks: list[Pick] = []
    for name in KINDS:
        fitting = [(flip(r, before.get(r.key)), r) for r in results if kind(r) == name]
        flips = [pair for pair in fitting if pair[0]][:FLIPS]
        others = [pair for pair in fitting if not pair[0]]
        chosen = [*flips, *others][:EACH]
        picks += [Pick(rank, name, changed, result) for rank, (changed, result) in enumerate(chosen)]
    return picks


def _card(item: Item, pick: Pick, before: dict[str, Result]) -> Card:
    sides = [_side("this run", pick.result)]
    if pick.flip:
        sides.append(_side("baseline", before[item.key]))
    shown = [
        picture(content, f"picture {number} cannot be shown")
        for number, content in enumerate(item.images[:PICTURES], 1)
    ]
    more = len(item.images) - len(shown)
    return Card(pick.kind, pick.flip, item, fold(_question(item)), _options(item, pick.result), shown, more, sides)


def _side(name: str, result: Result) -> Side:
    return Side(name, result, kind(result), [fold(reply) for reply in result.replies])


def _question(item: Item) -> str:
    """With the pictures' places in words."""
    first, *others = item.question.split(IMAGE_MARK)
    return first + "".join(f"[picture {number}]{part}" for number, part in enumerate(others, 1))


def _options(item: Item, result: Result) -> list[Option]:
    """With the right and the chosen one marked. Letters alone where the choices are in the picture."""
    texts = item.choices or ("",) * item.n_choices
    probabilities: Sequence[float | None] = softmax(result.scores) if result.scores else [None] * len(texts)
    rows = zip(LETTERS, texts, probabilities, strict=False)
    return [Option(a, clip(t, FOLDED), a == item.label, a == result.answer, p) for a, t, p in rows]


def softmax(scores: Sequence[float]) -> list[float]:
    """Log-likelihoods of the options as probabilities among them."""
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def clip(text: str, most: int) -> str:
    """The text without its middle, where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters left out] {text[-half:]}"


def fold(text: str) -> Folded:
    """A short text as it is; of a long one the middle apart."""
    lines = text.splitlines(keepends=True)
    if len(text) <= FOLDED and len(lines) <= LINES:
        return Folded(text)
    head = "".join(lines[: LINES // 2])[: FOLDED // 2]
    tail = "".join(lines[-(LINES // 3) :])[-(FOLDED // 3) :]
    head = head[: head.rfind(" ", len(head) - WORD) + 1 or len(head)]
    tail = tail[tail.find(" ", 0, WORD) + 1 :]
    return Folded(head, clip(text[len(head) : len(text) - len(tail)], LONGEST), tail)


def picture(content: bytes, fault: str) -> Picture:
    """A thumbnail, or what is wrong with the picture after `fault`."""
    try:
        opened = decode(content, fault)
    except DataError as error:
        return Picture(fault=str(error))
    size = f"{opened.width} x {opened.height} pixels"
    exact = max(opened.size) <= EXACT
    factor = EXACT // max(opened.size) if exact else 1
    opened.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    opened.save(file, "PNG") if exact else opened.save(file, "JPEG", quality=80)
    address = f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(address, opened.width * factor, opened.height * factor, size, exact)
