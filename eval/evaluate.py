"""An evaluation from a benchmark and a model to predictions, results, scores and a page."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.sample import DataError
from eval import record
from eval.benchmarks.item import Benchmark, Item, Prompt
from eval.judge import Judge
from eval.models import Model
from eval.paired import Comparison, compare
from eval.plan import answering, plan, predict
from eval.read_out import read_out
from eval.report import write_report
from eval.request import Folders, Request, chosen, folders, label, prompt_of, reading, settle
from eval.results import Result, as_json, read_results, write_results, write_whole
from eval.scores import Scores, read_scores, score
from eval.settings import Settings
from eval.tables import markdown, table
from eval.workers import Workers
from eval.zero3 import Ranks

PACKAGES = ("torch", "transformers", "deepspeed", "flash-attn", "pillow", "tokenizers")
MANY = 0.1  # of all items: replies that are cut off, or that no rule can read


class Measured(NamedTuple):
    """What `measure` found and wrote."""

    scores: Scores
    results: list[Result]
    comparison: Comparison | None  # with the others
    files: list[Path]  # scores.json first
    page: Path


def evaluate(benchmark: Benchmark, model: Model, request: Request) -> Scores | None:
    """All of it; prints the table and where the page is. Every file but predictions.jsonl is made anew.

    None on the ranks of `zero3` that help the first.
    """
    settled = settle(benchmark, model, request)
    name = ",".join([label(benchmark, request), *reading(request)])
    others = _baseline(request.baseline, benchmark, chosen(benchmark, request)) if request.baseline else None
    warn(benchmark, request)
    with answering(model, settled.settings) as by:
        found = measure(benchmark, model, settled, by, folders(benchmark, model, request), others)
    if found is None:
        return None
    scores, settings = found.scores, settled.settings
    print(table(scores))
    if found.comparison:
        print(f"against {request.baseline}: {found.comparison.verdict}")
    for hint in hints(scores, settings, benchmark):
        print(f"hint: {hint}")
    headline = request.summary(scores) if name == benchmark.name else {}  # of nothing that was asked for by hand
    record.summarise(model, name, scores, headline)
    values = record.metrics(scores.model_copy(update={"benchmark": name}))
    record.track(model, name, values, found.files)
    print(f"report: {found.page}")
    return scores


def measure(
    benchmark: Benchmark,
    model: Model,
    request: Request,
    by: Workers | Ranks,
    where: Folders,
    others: list[Result] | None = None,
) -> Measured | None:
    """One settled request: predictions, results, scores and a page, which compares with the others' results.

    None on the ranks of `zero3` that help the first.
    """
    settings, prompt = request.settings, prompt_of(benchmark, request)
    items = chosen(benchmark, request)
    jobs = plan(items, prompt, model, settings, request.with_blind, request.given)
    if isinstance(by, Ranks) and request.rank > 0:
        by.help(jobs.batches)
        return None
    said = predict(jobs, by, where.said / "predictions.jsonl", request.retry)
    judge = Judge(request.judge, where.said / "judge.jsonl") if request.judge else None
    results = read_out(benchmark, said[settings.blind], request.rules, judge)
    blind = read_out(benchmark, said[True], request.rules, judge) if request.with_blind else None
    text, chance = request.text(items) if request.text else (None, None)
    scores = score(benchmark, results, _facts(model, prompt, request), blind, text, chance)
    comparison = compare(others, results, scores.official) if others else None
    out = where.read
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "results.jsonl", results)
    write_whole(out / "scores.json", as_json(scores.model_dump(mode="json")))
    write_whole(out / "scores.md", markdown(scores) + "\n")
    page = write_report(out / "report.html", str(model.folder), scores, benchmark, results, comparison, others)
    files = [out / "scores.json", out / "scores.md", page, out / "results.jsonl", where.said / "predictions.jsonl"]
    return Measured(scores, results, comparison, files, page)


def warn(benchmark: Benchmark, request: Request) -> None:
    """What is not as the benchmark should be, said once, before the model runs."""
    for warning in benchmark.warnings if request.rank == 0 else ():
        print(f"warning: {warning}")


def hints(scores: Scores, settings: Settings, benchmark: Benchmark) -> Iterator[str]:
    """What to try where many replies say nothing."""
    if scores.cut > MANY * scores.n:
        where = f"cut off at {settings.max_new_tokens} tokens"
        yield f"{scores.cut} of {scores.n} replies were {where}: raise --max-new-tokens"
    if scores.unresolved > MANY * scores.n:
        others = ", ".join(name for name in benchmark.prompts if name != settings.prompt)
        mends = [f"ask in the form that the model was trained on (--prompt {others})"] if others else []
        mend = ", or ".join([*mends, "measure the options with --mode score"])
        yield f"{scores.unresolved} of {scores.n} replies name no option: {mend}"


def _facts(model: Model, prompt: Prompt, request: Request) -> dict[str, Any]:
    """Everything that the numbers depend on, for the result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "model": str(model.folder),
        "model_id": model.id,
        "step": model.step,
        **request.settings.model_dump(mode="json"),
        "prompt": prompt.id,
        "rules": request.rules,
        "judge": request.judge.model if request.judge else None,
        **request.facts,
        "device": device,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that a result depends on, as far as they are there."""
    found = {}
    for package in ("amvl", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _baseline(folder: Path, benchmark: Benchmark, items: list[Item]) -> list[Result]:
    """The results of another evaluation, which must be of the same items."""
    other = read_scores(folder / "scores.json")
    for name, wanted in (("benchmark", benchmark.name), ("split", benchmark.split)):
        if (found := getattr(other, name)) != wanted:
            raise DataError(f"{folder}: of {name} {found}, not {wanted}; name another one")
    if other.labels.hash != benchmark.labels.hash:
        raise DataError(
            f"{folder}: labels {other.labels.hash}, not {benchmark.labels.hash}; evaluate it on the same data"
        )
    results = read_results(folder / "results.jsonl")
    if {result.key for result in results} != {item.key for item in items}:
        what = f"has {len(results)} items, not the {len(items)} evaluated here"
        raise DataError(f"{folder}: {what}; take the same --tasks and --limit, or use eval/compare.py --common")
    return results
