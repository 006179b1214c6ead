"""Scores of one run on one benchmark, with intervals, beside what can be had without looking at the pictures.

Everything is a share from 0 to 1 (tables print points, of 100) and every interval is of 95 %. Two averages are always
given: `micro` is the mean over items, `macro` the unweighted mean of the sub-tasks. The standard errors follow
E. Miller, Adding Error Bars to Evals (arXiv 2411.00640), for one run and for two on the same items.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import binomtest

from data.sample import DataError
from eval.benchmarks.item import Benchmark
from eval.results import Result

DIFFICULTIES = ("easy", "medium", "hard")  # other groups stand in the order of their names
TINY = 1e-12  # a variance that is one of rounding
Z = NormalDist().inv_cdf(0.975)  # 1.959964

_Value = TypeVar("_Value")


class Frozen(BaseModel):
    """Written to JSON once and read back as it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Frozen):
    value: float
    se: float
    low: float
    high: float


class Means(Frozen):
    macro: Estimate
    micro: Estimate


class Level(Frozen):
    """A baseline on the same items."""

    macro: float
    micro: float


class Range(Frozen):
    """The accuracy with items that have no answer counted as wrong, and at chance (1 / choices)."""

    low: float
    high: float


class Bounds(Frozen):
    macro: Range
    micro: Range


class LabelSet(Frozen):
    hash: str
    version: str


class Score(Frozen):
    """One group of items."""

    n: int
    correct: int
    accuracy: float  # an item without an answer is wrong
    low: float  # Wilson's interval
    high: float
    chance: float | None  # mean of 1 / choices; None where an open question's is not known
    majority: float  # of always giving the group's commonest right answer; ties go to the first in the alphabet
    majority_letter: str  # that answer: a letter, of open questions their text
    blind: float | None = None  # the same model without pictures
    gain_over_blind: Estimate | None = None  # accuracy - blind, paired by item
    text: float | None = None  # the text baseline (eval/text_baseline.py)
    gain_over_text: Estimate | None = None
    unresolved: int = 0  # replies that no rule could read
    failed: int = 0  # items that could not be run
    cut: int = 0  # items with a reply that ended at the token limit
    credited: float  # accuracy with unresolved and failed items at chance; open questions of unknown chance at 0


class Scores(Frozen):
    """What scores.json holds."""

    benchmark: str
    split: str
    n: int
    official: Literal["macro", "micro"]  # the average that the benchmark's authors print
    macro: Estimate
    micro: Estimate
    apart: dict[str, Means]  # by sub-task: the averages without it
    chance: Level | None
    majority: Level  # of always giving each sub-task's commonest right answer
    blind: Level | None
    gain_over_blind: Estimate | None  # micro, paired
    text: Level | None
    gain_over_text: Estimate | None
    bounds: Bounds
    tasks: dict[str, Score]
    groups: dict[str, dict[str, Score]]  # by grouping and its value, e.g. difficulty, hard
    unresolved: int
    failed: int
    cut: int
    labels: LabelSet
    settings: dict[str, Any]
    warnings: list[str]


def proportion(correct: int, n: int) -> Estimate:
    """An accuracy: SE sqrt(p (1 - p) / n), and Wilson's interval, which holds for few items and for 0 and 1 too."""
    p = correct / n
    wilson = binomtest(correct, n).proportion_ci(method="wilson")
    return Estimate(value=p, se=sqrt(p * (1 - p) / n), low=float(wilson.low), high=float(wilson.high))


def macro_mean(tasks: Iterable[Score]) -> Estimate:
    """Mean of K sub-tasks: SE (1 / K) sqrt(sum of p (1 - p) / n), normal interval.

    A sub-task that is all right or all wrong adds nothing to the SE, so for very few items it is too small.
    """
    scores = list(tasks)
    se = sqrt(sum(s.accuracy * (1 - s.accuracy) / s.n for s in scores)) / len(scores)
    return _normal(fmean(s.accuracy for s in scores), se, at_least=0)


def paired_difference(only_a: int, only_b: int, n: int) -> Estimate:
    """B - A on the same n items, of which `only_a` and `only_b` were right in one run alone.

    The n differences are -1, 0 or 1; SE = sqrt(their variance (n - 1 degrees of freedom) / n), normal interval.
    One item says nothing: SE 1, the interval everything. Where all differences are alike their variance is no guide:
    then others may be as many as Clopper and Pearson (1934) allow where none of n was seen, 1 - 0.025^(1/n).
    """
    value = (only_b - only_a) / n
    if n == 1:
        return Estimate(value=value, se=1.0, low=-1.0, high=1.0)
    variance = max(0.0, only_a + only_b - n * value**2) / (n - 1)
    if variance < TINY:
        margin = (1 + abs(value)) * (1 - 0.025 ** (1 / n))
        return Estimate(value=value, se=0.0, low=max(-1.0, value - margin), high=min(1.0, value + margin))
    return _normal(value, sqrt(variance / n), at_least=-1)


def _normal(value: float, se: float, at_least: float) -> Estimate:
    return Estimate(value=value, se=se, low=max(at_least, value - Z * se), high=min(1.0, value + Z * se))


def score(
    benchmark: Benchmark,
    results: Sequence[Result],
    settings: dict[str, Any],
    blind: Sequence[Result] | None = None,
    text: Sequence[bool] | None = None,
    open_chance: Mapping[str, float] | None = None,
) -> Scores:
    """Everything about one run. `blind`: the run without pictures on the same items, in any order; `text`: whether the
    text baseline was right, in the order of the results; `open_chance`: by task, chance of its open questions."""
    if not results:
        raise DataError(f"{benchmark.name}: no results to score; evaluate at least one item")
    rows = _rows(benchmark.name, results, blind, text, open_chance or {})
    tasks = {name: _score(group) for name, group in _grouped(rows, [r.task for r in results]).items()}
    whole = _score(rows)
    macro = macro_mean(tasks.values())
    return Scores(
        benchmark=benchmark.name,
        split=benchmark.split,
        n=len(rows),
        official=benchmark.mean,
        macro=macro,
        micro=proportion(whole.correct, whole.n),
        apart={name: _without(name, tasks) for name in benchmark.apart if name in tasks and len(tasks) > 1},
        chance=_level(tasks, lambda s: s.chance),
        majority=_known(_level(tasks, lambda s: s.majority)),
        blind=_level(tasks, lambda s: s.blind),
        gain_over_blind=whole.gain_over_blind,
        text=_level(tasks, lambda s: s.text),
        gain_over_text=whole.gain_over_text,
        bounds=_bounds(tasks),
        tasks=tasks,
        groups=_groups(rows),
        unresolved=whole.unresolved,
        failed=whole.failed,
        cut=whole.cut,
        labels=LabelSet(hash=benchmark.labels.hash, version=benchmark.labels.version),
        settings=settings,
        warnings=[*benchmark.warnings, *_warnings(benchmark, len(rows), macro)],
    )


class _Row(NamedTuple):
    """An item with what the baselines said to it."""

    result: Result
    chance: float | None
    blind: bool | None
    text: bool | None


def _rows(
    name: str,
    results: Sequence[Result],
    blind: Sequence[Result] | None,
    text: Sequence[bool] | None,
    open_chance: Mapping[str, float],
) -> list[_Row]:
    seen = {r.key: r for r in blind or ()}
    if blind is not None and {k: r.label for k, r in seen.items()} != {r.key: r.label for r in results}:
        raise DataError(f"{name}: the run without pictures has other items or labels; evaluate both on the same items")
    texts = text if text is not None else [None] * len(results)
    return [
        _Row(
            result=r,
            chance=1 / r.n_choices if r.n_choices else open_chance.get(r.task),
            blind=seen[r.key].correct if blind is not None else None,
            text=right,
        )
        for r, right in zip(results, texts, strict=True)
    ]


def _grouped(rows: Iterable[_Row], names: Iterable[str | None]) -> dict[str, list[_Row]]:
    """In the order in which the names first come up; rows without one are in no group."""
    groups: dict[str, list[_Row]] = {}
    for row, name in zip(rows, names, strict=True):
        if name is not None:
            groups.setdefault(name, []).append(row)
    return groups


def _groups(rows: Sequence[_Row]) -> dict[str, dict[str, Score]]:
    kinds = dict.fromkeys(kind for row in rows for kind in row.result.groups)
    grouped = {kind: _grouped(rows, [row.result.groups.get(kind) for row in rows]) for kind in kinds}
    return {
        kind: {name: _score(groups[name]) for name in sorted(groups, key=_rank)} for kind, groups in grouped.items()
    }


def _rank(name: str) -> tuple[int, str]:
    return DIFFICULTIES.index(name) if name in DIFFICULTIES else len(DIFFICULTIES), name


def _score(rows: Sequence[_Row]) -> Score:
    results = [row.result for row in rows]
    n, correct = len(rows), sum(r.correct for r in results)
    labels = Counter(r.label for r in results)
    letter = min(labels, key=lambda label: (-labels[label], label))
    estimate = proportion(correct, n)
    return Score(
        n=n,
        correct=correct,
        accuracy=estimate.value,
        low=estimate.low,
        high=estimate.high,
        chance=_mean(row.chance for row in rows),
        majority=labels[letter] / n,
        majority_letter=letter,
        blind=_mean(row.blind for row in rows),
        gain_over_blind=_gain((r.correct, row.blind) for r, row in zip(results, rows, strict=True)),
        text=_mean(row.text for row in rows),
        gain_over_text=_gain((r.correct, row.text) for r, row in zip(results, rows, strict=True)),
        unresolved=sum(r.answer is None and r.failed is None for r in results),
        failed=sum(r.failed is not None for r in results),
        cut=sum("length" in r.finish for r in results),
        credited=(correct + sum(row.chance or 0.0 for row in rows if row.result.answer is None)) / n,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """None when any is missing: a mean of the others would be of other items."""
    known = list(values)
    return None if None in known else fmean(_known(value) for value in known)


def _known(value: _Value | None) -> _Value:
    assert value is not None
    return value


def _gain(pairs: Iterable[tuple[bool, bool | None]]) -> Estimate | None:
    counts = Counter(pairs)
    if any(other is None for _, other in counts):
        return None
    return paired_difference(counts[False, True], counts[True, False], counts.total())


def _level(tasks: Mapping[str, Score], of: Callable[[Score], float | None]) -> Level | None:
    """Both averages of one figure of the sub-tasks."""
    values = [of(s) for s in tasks.values()]
    if None in values:
        return None
    sizes = [s.n for s in tasks.values()]
    return Level(macro=fmean(map(_known, values)), micro=fmean(map(_known, values), weights=sizes))


def _bounds(tasks: Mapping[str, Score]) -> Bounds:
    low, high = _known(_level(tasks, lambda s: s.accuracy)), _known(_level(tasks, lambda s: s.credited))
    return Bounds(macro=Range(low=low.macro, high=high.macro), micro=Range(low=low.micro, high=high.micro))


def _without(name: str, tasks: Mapping[str, Score]) -> Means:
    rest = [s for other, s in tasks.items() if other != name]
    return Means(macro=macro_mean(rest), micro=proportion(sum(s.correct for s in rest), sum(s.n for s in rest)))


def _warnings(benchmark: Benchmark, n: int, macro: Estimate) -> list[str]:
    found = []
    if n != len(benchmark.items):
        found.append(f"{n} of the {len(benchmark.items)} items were evaluated: not comparable with published figures")
    if macro.se == 0:
        found.append("macro: every sub-task is all right or all wrong, so its interval says nothing; add items")
    return found


def read_scores(path: Path) -> Scores:
    """DataError when the file is missing or not of this form."""
    try:
        return Scores.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a folder that an evaluation wrote") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not the scores of an evaluation; evaluate again") from error
