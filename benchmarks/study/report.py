"""From the results of all jobs to a table, paired tests and one page of plots.

Seeds are the samples: every number is a mean over them with Student's 95 % interval, and every comparison with AMVL's
defaults is paired by seed, which fixes sample order and noise. All begin with the same weights, so intervals leave out
how starts differ. Of many comparisons some are past 95 % by chance: marked are those that differ after Holm's (1979)
correction for all variants of a task, number by number.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.record import RESULTS, circumstances
from benchmarks.study.job import read
from benchmarks.study.jobs import BASE, START, TASKS, variants
from data.sample import UserError
from eval.paired import LEVEL
from eval.tables import piped

Result = Mapping[str, Any]
TINY = 1e-12  # a spread that is none but for rounding


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval; the interval is infinite with one seed."""

    mean: float
    low: float
    high: float
    n: int
    p: float  # two-sided, of a mean of 0; 1 where the spread is not known


def interval(values: Sequence[float]) -> Interval:
    """By Student's t; of values that are all the same, that value alone."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, -np.inf, np.inf, n, 1.0)
    se = float(np.std(values, ddof=1) / n**0.5)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se > TINY else 1.0
    return Interval(mean, mean - half, mean + half, n, p)


def _found(*path: str) -> Callable[[Result], float | None]:
    """A number of a result, None where the objective has none."""

    def get(result: Result) -> float | None:
        at: Any = result
        for name in path:
            if at is None:
                return None
            at = at.get(name)
        return at["value"] if isinstance(at, dict) else at

    return get


def _change(arm: str) -> Callable[[Result], float | None]:
    """Of the accuracy, with another arm."""

    def get(result: Result) -> float | None:
        accuracy = result["accuracy"]
        return accuracy[arm] - accuracy["kept"] if arm in accuracy else None

    return get


METRICS: dict[str, Callable[[Result], float | None]] = {
    "accuracy": lambda result: result["accuracy"]["kept"],
    "nats": _found("gap", "sources", "prior_mean", "nats"),
    "gap": _found("gap", "mean"),
    "gap drawn": _found("gap", "drawn"),
    "leak rate": _found("findings", "leakage", "rate"),
    "leak base": _found("findings", "leakage", "base"),
    "sensitivity": _found("findings", "leakage", "sensitivity"),
    "removed": _change("removed"),
    "other item": _change("other_item"),
    "probe q": _found("findings", "leakage", "probe_posterior"),
    "probe p": _found("findings", "leakage", "probe_prior"),
    "inflation": _found("findings", "leakage", "inflation"),
}


class Row(NamedTuple):
    """One variant of one task."""

    task: str
    variant: str
    metrics: dict[str, Interval]
    against: dict[str, Interval]  # BASE's value less this one's, paired by seed; empty for BASE
    differs: frozenset[str]  # the numbers in which it does, after Holm's correction


def rows(results: Sequence[Result]) -> list[Row]:
    """Of all variants that have results, in the order of the study."""
    by_name: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        by_name.setdefault((result["task"], result["variant"]), {})[result["seed"]] = result
    found = []
    for task in TASKS:
        base = by_name.get((task, BASE), {})
        names = [variant for variant in (START, *variants(task)) if (task, variant) in by_name]
        against = {name: _paired(base, by_name[task, name]) for name in names if name != BASE}
        differ = _differ(against)
        for name in names:
            means = _means(list(by_name[task, name].values()))
            found.append(Row(task, name, means, against.get(name, {}), differ.get(name, frozenset())))
    return found


def _differ(against: Mapping[str, Mapping[str, Interval]]) -> dict[str, frozenset[str]]:
    """By variant, the numbers in which it differs; the comparisons of each number are one family."""
    found: dict[str, set[str]] = {variant: set() for variant in against}
    for metric in METRICS:
        # One seed alone cannot differ, and must not make it harder for the others.
        ps = {variant: of[metric].p for variant, of in against.items() if metric in of and of[metric].n > 1}
        if ps:
            for variant, differs in zip(ps, multipletests(list(ps.values()), LEVEL, method="holm")[0], strict=True):
                if differs:
                    found[variant].add(metric)
    return {variant: frozenset(of) for variant, of in found.items()}


def _means(own: Sequence[Result]) -> dict[str, Interval]:
    values = {name: [get(result) for result in own] for name, get in METRICS.items()}
    return {name: interval([x for x in xs if x is not None]) for name, xs in values.items() if None not in xs}


def _paired(base: Mapping[int, Result], own: Mapping[int, Result]) -> dict[str, Interval]:
    seeds = sorted(set(base) & set(own))
    found = {}
    for name, get in METRICS.items():
        pairs = [(get(base[seed]), get(own[seed])) for seed in seeds]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        if differences and len(differences) == len(pairs):
            found[name] = interval(differences)
    return found


def read_all(out: Path) -> list[Result]:
    """The results that are there, in the order of their names."""
    return [read(path) for path in sorted((out / "results").glob("*.json"))]


def cell(of: Interval | None, form: str = ".3f") -> str:
    if of is None:
        return ""
    spread = f" ± {of.mean - of.low:{form}}" if np.isfinite(of.low) else ""
    return f"{of.mean:{form}}{spread}"


SHOWN = ("accuracy", "nats", "gap", "leak rate", "leak base", "sensitivity", "removed", "other item")


def table(found: Sequence[Row], task: str) -> list[str]:
    """The lines of a Markdown table of one task's variants."""
    header = ["objective", "seeds", *SHOWN]
    lines = [header]
    for row in found:
        if row.task == task:
            seeds = row.metrics["accuracy"].n
            lines.append([row.variant, str(seeds), *(cell(row.metrics.get(name)) for name in SHOWN)])
    return piped(lines)


def comparison(found: Sequence[Row], task: str) -> list[str]:
    """The same for AMVL's defaults less each variant, paired by seed; * where they differ after Holm's correction."""
    lines = [["amvl less", *SHOWN]]
    for row in found:
        if row.task == task and row.against:
            marked = (cell(row.against.get(name)) + "*" * (name in row.differs) for name in SHOWN)
            lines.append([row.variant, *marked])
    return piped(lines)


def write(out: Path, found: Sequence[Row], results: Sequence[Result], saved: bool) -> list[Path]:
    """Tables and plots into the study's folder and, `saved`, into benchmarks/results with machine and versions."""
    from benchmarks.study.plots import draw

    folder = RESULTS if saved else out
    lines = [f"{len(results)} runs; means over seeds ± Student's 95 % interval", ""]
    for task, words in TASKS.items():
        if any(row.task == task for row in found):
            lines += [f"## {task}: {words}", "", *table(found, task), "", *comparison(found, task), ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.md").write_text("\n".join(lines))
    draw(folder / "study.svg", found)
    facts = circumstances() | {"command": "make study", "runs": len(results)}
    numbers = [
        {
            "task": row.task,
            "variant": row.variant,
            "metrics": {name: _plain(x) for name, x in row.metrics.items()},
            "amvl_less_this": {name: _plain(x) for name, x in row.against.items()},
            "differs": sorted(row.differs),
        }
        for row in found
    ]
    (folder / "study.jsonl").write_text("\n".join(json.dumps(x) for x in [facts, *numbers]) + "\n")
    return [folder / name for name in ("study.md", "study.svg", "study.jsonl")]


def _plain(of: Interval) -> dict[str, float | int | None]:
    """As JSON has it, which knows no infinity."""
    return {name: value if np.isfinite(value) else None for name, value in of._asdict().items()}


def report(out: Path, saved: bool) -> int:
    """Print the tables and write them. UserError where there is no result."""
    results = read_all(out)
    if not results:
        raise UserError(f"{out / 'results'}: no result; `python -m benchmarks.study run` makes them")
    files = write(out, rows(results), results, saved)
    print(files[0].read_text())
    print(*files, sep="\n")
    return 0
