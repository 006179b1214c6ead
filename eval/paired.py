"""Two runs on the same items: is the difference more than chance?

Pairing by item takes out how hard the items are, which is most of the spread: the same difference needs far fewer items
than between two separate samples (E. Miller, Adding Error Bars to Evals, arXiv 2411.00640). All differences
are B - A, as shares; all intervals are of 95 %.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from data.sample import DataError
from eval.results import Result
from eval.scores import Estimate, Frozen, paired_difference
from eval.tables import interval, percent

FEW = 20  # items of a sub-task, below which resampling them says too little
LEVEL = 0.05  # of p, below which two runs are said to differ

CAUTION = (
    "Checkpoints of one training are not independent runs: this says whether two checkpoints differ on these items, "
    "not whether a recipe is better; that takes several seeds of each."
)


class TaskDifference(Frozen):
    """One sub-task. Single ones are noise below some 10 points, so `p_holm` is the one to go by."""

    n: int
    only_a: int  # McNemar's b: right in A alone
    only_b: int  # McNemar's c
    accuracy_a: float
    accuracy_b: float
    difference: float
    p: float  # exact McNemar
    p_holm: float  # adjusted for the number of sub-tasks
    detectable: float | None


class Comparison(Frozen):
    """What `compare` finds."""

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    missing_a: int  # items that only B has, left out
    missing_b: int
    official: str  # the average that the verdict is about: macro or micro
    micro_a: float
    micro_b: float
    micro: Estimate  # the difference, with its paired SE
    micro_p: float  # exact McNemar
    macro_a: float
    macro_b: float
    macro: Estimate  # the difference, SE and percentile interval from the bootstrap
    macro_p: float  # two-sided, from the bootstrap
    detectable: float | None  # micro difference found with a power of 80 %; None: the runs disagree on no item
    draws: int
    seed: int
    tasks: dict[str, TaskDifference]
    verdict: str
    caution: str = CAUTION


class Counts(NamedTuple):
    """Items by which of the two runs got them right."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return sum(self)


class Bootstrap(NamedTuple):
    se: float
    low: float
    high: float
    p: float


def compare(
    a: Sequence[Result],
    b: Sequence[Result],
    official: str = "micro",
    common: bool = False,
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Items are matched by key. DataError when labels differ, and when items do unless `common`: then those in both are
    compared."""
    by_a, by_b = _by_key("A", a), _by_key("B", b)
    keys = _keys_of_both(by_a, by_b, common)
    tasks: dict[str, list[tuple[bool, bool]]] = {}
    for key in keys:
        tasks.setdefault(by_a[key].task, []).append((by_a[key].correct, by_b[key].correct))
    counts = {task: _count(pairs) for task, pairs in tasks.items()}
    whole = Counts(*(sum(column) for column in zip(*counts.values(), strict=True)))
    boot = bootstrap(list(counts.values()), draws, seed)
    differences = _by_task(counts)
    micro, micro_p = paired_difference(whole.only_a, whole.only_b, whole.n), exact_p(whole)
    macro_a, macro_b = (_mean_of(differences, name) for name in ("accuracy_a", "accuracy_b"))
    macro = Estimate(value=_mean_of(differences, "difference"), se=boot.se, low=boot.low, high=boot.high)
    told = (macro, boot.p) if official == "macro" else (micro, micro_p)
    return Comparison(
        **whole._asdict(),
        n=whole.n,
        missing_a=len(by_b) - len(keys),
        missing_b=len(by_a) - len(keys),
        official=official,
        micro_a=(whole.both + whole.only_a) / whole.n,
        micro_b=(whole.both + whole.only_b) / whole.n,
        micro=micro,
        micro_p=micro_p,
        macro_a=macro_a,
        macro_b=macro_b,
        macro=macro,
        macro_p=boot.p,
        detectable=detectable(whole),
        draws=draws,
        seed=seed,
        tasks=differences,
        verdict=_verdict(*told, official, differences),
    )


def exact_p(counts: Counts) -> float:
    """McNemar's exact test, two-sided: of the items that only one run got right, is each run's share a half?

    It fits the micro average alone.
    """
    cells = [[counts.both, counts.only_a], [counts.only_b, counts.neither]]
    return float(mcnemar(cells, exact=True).pvalue)


def detectable(counts: Counts) -> float | None:
    """The true difference that n such items show with a power of 80 %: 2.8 sqrt(d / n), with d the share of items that
    one run alone got right, and 2.8 = 1.96 + 0.84 standard normal quantiles."""
    discordant = counts.only_a + counts.only_b
    return 2.8 * sqrt(discordant / counts.n / counts.n) if discordant else None


def bootstrap(tasks: Sequence[Counts], draws: int, seed: int) -> Bootstrap:
    """Of the macro difference: items are drawn anew within each sub-task, the same ones for both runs.

    An item's difference is -1, 0 or 1, so drawing n items with replacement is one multinomial draw of how many there
    are of each: no approximation, and fast. Interval: percentiles. p: twice the smaller share of draws at or beyond
    no difference, with the observed data as one draw more, so it is never below 2 / (draws + 1).
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for task in tasks:
        odds = [task.only_a / task.n, task.only_b / task.n, (task.both + task.neither) / task.n]
        drawn = generator.multinomial(task.n, odds, size=draws)  # (draws, 3)
        total += (drawn[:, 1] - drawn[:, 0]) / task.n
    total /= len(tasks)
    near_zero = 1e-12  # sums of fractions that cancel are not quite 0
    extreme = min(int((total <= near_zero).sum()), int((total >= -near_zero).sum()))
    low, high = np.quantile(total, (0.025, 0.975))
    return Bootstrap(float(total.std()), float(low), float(high), min(1.0, 2 * (extreme + 1) / (draws + 1)))


def _by_key(name: str, results: Sequence[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result.key in found:
            raise DataError(f"{name}: item {result.key} is there twice, so items cannot be matched; evaluate again")
        found[result.key] = result
    return found


def _keys_of_both(a: Mapping[str, Result], b: Mapping[str, Result], common: bool) -> list[str]:
    """Keys in both, in A's order; the same question with the same right answer in each."""
    keys = [key for key in a if key in b]
    only_a, only_b = len(a) - len(keys), len(b) - len(keys)
    if not keys:
        raise DataError("A and B have no item in common; compare two runs on one benchmark and split")
    if (only_a or only_b) and not common:
        raise DataError(
            f"A has {only_a} items that B lacks and B has {only_b} that A lacks; "
            f"evaluate both on the same items, or compare the {len(keys)} that both have with --common"
        )
    different = [key for key in keys if (a[key].label, a[key].task) != (b[key].label, b[key].task)]
    if different:
        one, other = a[different[0]], b[different[0]]
        raise DataError(
            f"{len(different)} of {len(keys)} items have another label or sub-task in A than in B, {one.key} for one "
            f"({one.task} {one.label}, {other.task} {other.label}); evaluate both with the same labels"
        )
    return keys


def _count(pairs: Sequence[tuple[bool, bool]]) -> Counts:
    return Counts(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))


def _by_task(counts: Mapping[str, Counts]) -> dict[str, TaskDifference]:
    ps = [exact_p(task) for task in counts.values()]
    adjusted = multipletests(ps, method="holm")[1]
    return {
        name: TaskDifference(
            n=task.n,
            only_a=task.only_a,
            only_b=task.only_b,
            accuracy_a=(task.both + task.only_a) / task.n,
            accuracy_b=(task.both + task.only_b) / task.n,
            difference=(task.only_b - task.only_a) / task.n,
            p=p,
            p_holm=float(holm),
            detectable=detectable(task),
        )
        for (name, task), p, holm in zip(counts.items(), ps, adjusted, strict=True)
    }


def _mean_of(tasks: Mapping[str, TaskDifference], name: str) -> float:
    return sum(getattr(task, name) for task in tasks.values()) / len(tasks)


def _verdict(difference: Estimate, p: float, official: str, tasks: Mapping[str, TaskDifference]) -> str:
    if p >= LEVEL:
        said = "No difference between A and B can be told from chance on these items"
    else:
        said = f"{'B' if difference.value > 0 else 'A'} is better on these items"
    found = sum(task.p_holm < LEVEL for task in tasks.values())
    fewest = min(task.n for task in tasks.values())
    if official == "macro" and fewest < FEW:
        said = f"Too few items to tell (a sub-task has {fewest}; below {FEW} the interval is too narrow)"
    return (
        f"{said}: B - A is {percent(difference.value, '+.2f')} points {official} {interval(difference, '+.2f')}, "
        f"p = {p:.2g}; {found} of {len(tasks)} sub-tasks differ after Holm's correction"
    )
