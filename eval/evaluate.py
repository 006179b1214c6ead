"""An evaluation from a benchmark and a model to predictions, results, scores and a page."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from data.sample import DataError
from eval import record, workers, zero3
from eval.answer import Job, Planner
from eval.benchmarks.item import Benchmark, Item, Prompt, sample_of
from eval.judge import Judge, JudgeConfig
from eval.models import Model
from eval.paired import compare
from eval.predictions import Prediction, Predictions
from eval.read_out import read_out
from eval.report import write_report
from eval.results import FREE, Result, as_json, read_results, write_results, write_whole
from eval.scores import Scores, read_scores, score
from eval.settings import Settings, SettingsError
from eval.tables import markdown, table

PACKAGES = ("torch", "transformers", "deepspeed", "flash-attn", "pillow", "tokenizers")
MOST_TOKENS = 1024  # of a reply, where neither the settings nor the benchmark say
MANY = 0.1  # of all items: replies that are cut off, or that no rule can read


@dataclass(frozen=True)
class Request:
    """One evaluation as it was asked for."""

    settings: Settings
    out: Path | None = None  # default: beside the model
    rules: str = "plain"
    judge: JudgeConfig | None = None
    with_blind: bool = False  # once more without the pictures, as a baseline
    baseline: Path | None = None  # another evaluation's folder, compared with this one
    only: Callable[[Item], bool] | None = None  # which items to take
    selection: tuple[str, ...] = ()  # that in words, e.g. limit=40
    retry: bool = False  # items that could not be run before
    rank: int = 0  # of several, with zero3
    max_new_tokens: int = MOST_TOKENS  # of the benchmark
    summary: Callable[[Scores], dict[str, Any]] = lambda scores: {}  # more for the run's summary
    text: Callable[[list[Item]], tuple[list[bool], dict[str, float]]] | None = None  # a text baseline, chance by task


def evaluate(benchmark: Benchmark, model: Model, request: Request) -> Scores | None:
    """All of it; prints the table and where the page is. Every file but predictions.jsonl is made anew.

    None on the ranks of `zero3` that help the first.
    """
    settings, prompt = _settled(benchmark, model, request)
    read = reading(request)
    name = ",".join([label(benchmark, request), *read])
    asked = request.out or _folder(model) / label(benchmark, request)  # what was said stays, however it is read
    out = asked / ",".join(read) if read and not request.out else asked
    items = [item for item in benchmark.items if request.only is None or request.only(item)]
    if not items:
        raise DataError(f"{benchmark.name}: no item is left; choose others with --tasks or --limit")
    others = _baseline(request.baseline, benchmark, items) if request.baseline else None
    jobs = plan(items, prompt, model, settings, request.with_blind)
    if request.rank > 0:
        zero3.help_first(model, settings, jobs.batches)
        return None
    for warning in benchmark.warnings:
        print(f"warning: {warning}")
    said = predict(jobs, model, settings, asked / "predictions.jsonl", request.retry)
    judge = Judge(request.judge, asked / "judge.jsonl") if request.judge else None
    results = read_out(benchmark, said[settings.blind], request.rules, judge)
    blind = read_out(benchmark, said[True], request.rules, judge) if request.with_blind else None
    text, chance = request.text(items) if request.text else (None, None)
    facts = _facts(model, settings, prompt, request)
    scores = score(benchmark, results, facts, blind, text, chance)
    comparison = compare(others, results, scores.official) if others else None
    out.mkdir(exist_ok=True)
    write_results(out / "results.jsonl", results)
    write_whole(out / "scores.json", as_json(scores.model_dump(mode="json")))
    write_whole(out / "scores.md", markdown(scores) + "\n")
    page = write_report(out / "report.html", str(model.folder), scores, benchmark, results, comparison, others)
    files = [out / "scores.json", out / "scores.md", page, out / "results.jsonl", asked / "predictions.jsonl"]
    print(table(scores))
    if comparison:
        print(f"against {request.baseline}: {comparison.verdict}")
    for hint in _hints(scores, settings, benchmark):
        print(f"hint: {hint}")
    headline = request.summary(scores) if name == benchmark.name else {}  # of nothing that was asked for by hand
    summary = record.summarise(model, name, scores, headline)
    record.track(model, name, scores, summary, files)
    print(f"report: {page}")
    return scores


def label(benchmark: Benchmark, request: Request) -> str:
    """A benchmark's name with what was asked for by hand, so that evaluations of one checkpoint stand side by side."""
    own, default = request.settings.model_dump(), Settings().model_dump() | {"prompt": next(iter(benchmark.prompts))}
    asked = {name: value for name, value in own.items() if value not in (default[name], None) and name not in FREE}
    parts = [benchmark.name, *request.selection, *(f"{name}={value}" for name, value in asked.items())]
    return ",".join(parts).replace("/", "_")[:200]


def reading(request: Request) -> list[str]:
    """How replies are read, where that was asked for by hand."""
    rules = [f"rules={request.rules}"] if request.rules != "plain" else []
    return [*rules, *([f"judge={request.judge.model}".replace("/", "_")[:100]] if request.judge else [])]


class Plan(NamedTuple):
    """The jobs of an evaluation, with pictures (False) and without (True), and the batches they make."""

    jobs: dict[bool, list[Job]]
    batches: list[list[Job]]


def plan(items: list[Item], prompt: Prompt, model: Model, settings: Settings, with_blind: bool) -> Plan:
    """The same for the same items and settings, whatever was done before."""
    jobs, batches = {}, []
    for blind in sorted({settings.blind, settings.blind or with_blind}):
        planner = Planner(model, settings.model_copy(update={"blind": blind}))
        made = (planner.job(sample_of(item, prompt, blind), _options(item, prompt, settings)) for item in items)
        jobs[blind] = list(tqdm(made, "planning", len(items), leave=False, disable=len(items) < 1000))
        batches += planner.batches(jobs[blind])
    return Plan(jobs, batches)


def predict(jobs: Plan, model: Model, settings: Settings, path: Path, retry: bool) -> dict[bool, dict[str, Prediction]]:
    """Predictions by key, with pictures and without. Those that the file has are kept, others added as they come."""
    with contextlib.closing(Predictions(path)) as kept:
        if retry:
            kept.forget_failures()
        # Whole batches, so that a killed run gives the numbers of an unbroken one to the last digit.
        todo = [n for n, batch in enumerate(jobs.batches) if any(job.id not in kept.known for job in batch)]
        run = zero3.lead if settings.zero3 else workers.run
        for found in _shown(run(model, settings, jobs.batches, todo), jobs.batches, todo, kept):
            kept.add(found)
    return {blind: {job.sample.key: kept.known[job.id] for job in own} for blind, own in jobs.jobs.items()}


def _options(item: Item, prompt: Prompt, settings: Settings) -> tuple[str, ...]:
    if settings.mode == "generate":
        return ()
    if not item.n_choices:
        raise SettingsError(
            f"{item.key}: has no options, which mode score needs; use generate, or leave it out by --tasks"
        )
    return tuple(prompt.reply.format(letter=letter) for letter in item.letters)


def _shown(
    found: Iterator[list[Prediction]], batches: list[list[Job]], todo: list[int], kept: Predictions
) -> Iterator[list[Prediction]]:
    """The same, with a bar whose time left goes by tokens, as the longest items come first."""
    costs = {job.id: job.cost for batch in batches for job in batch}
    total, rest = sum(costs.values()), sum(job.cost for number in todo for job in batches[number])
    with tqdm(total=total, initial=total - rest, unit="token", unit_scale=True, disable=not todo) as bar:
        for predictions in found:
            yield predictions
            bar.update(sum(costs[p.id] for p in predictions))
            bar.set_postfix_str(f"{sum(name in kept.known for name in costs)} of {len(costs)} items")


def _settled(benchmark: Benchmark, model: Model, request: Request) -> tuple[Settings, Prompt]:
    """Settings with what is left to the benchmark and to the model filled in, and the prompt they name."""
    settings = model.effective(request.settings)
    name = settings.prompt or next(iter(benchmark.prompts))
    if name not in benchmark.prompts:
        raise SettingsError(f"--prompt {name}: {benchmark.name} has {', '.join(benchmark.prompts)}; name one of these")
    if request.rules == "official" and benchmark.rules == "plain":
        raise SettingsError(f"--rules official: {benchmark.name} has none of its own; leave it out")
    filled: dict[str, Any] = {"prompt": name}
    if settings.mode == "generate":
        filled["max_new_tokens"] = settings.max_new_tokens or request.max_new_tokens
    return settings.model_copy(update=filled), benchmark.prompts[name]


def _hints(scores: Scores, settings: Settings, benchmark: Benchmark) -> Iterator[str]:
    """What to try where many replies say nothing."""
    if scores.cut > MANY * scores.n:
        where = f"cut off at {settings.max_new_tokens} tokens"
        yield f"{scores.cut} of {scores.n} replies were {where}: raise --max-new-tokens"
    if scores.unresolved > MANY * scores.n:
        others = ", ".join(name for name in benchmark.prompts if name != settings.prompt)
        mends = [f"ask in the form that the model was trained on (--prompt {others})"] if others else []
        mend = ", or ".join([*mends, "measure the options with --mode score"])
        yield f"{scores.unresolved} of {scores.n} replies name no option: {mend}"


def _folder(model: Model) -> Path:
    if model.run:
        return model.run / "eval" / model.folder.name
    return Path("runs") / "eval" / f"{model.folder.resolve().name}-{model.id[:8]}"


def _facts(model: Model, settings: Settings, prompt: Prompt, request: Request) -> dict[str, Any]:
    """Everything that the numbers depend on, for the result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "model": str(model.folder),
        "model_id": model.id,
        "step": model.step,
        **settings.model_dump(mode="json"),
        "prompt": prompt.id,
        "rules": request.rules,
        "judge": request.judge.model if request.judge else None,
        "device": device,
        "versions": dict(_versions()),
    }


def _versions() -> Iterable[tuple[str, str]]:
    for package in ("amvl", *PACKAGES):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


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
