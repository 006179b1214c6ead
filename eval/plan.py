"""Items to jobs, and jobs to predictions: what is to do, and what has been done before."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from eval.answer import Job, Planner
from eval.benchmarks.item import Item, Prompt, sample_of
from eval.models import Model
from eval.predictions import Prediction, Predictions
from eval.settings import Settings, SettingsError
from eval.workers import Workers
from eval.zero3 import Ranks


class Plan(NamedTuple):
    """The jobs of an evaluation, with pictures (False) and without (True), and the batches they make."""

    jobs: dict[bool, list[Job]]
    batches: list[list[Job]]


@contextlib.contextmanager
def answering(model: Model, settings: Settings) -> Iterator[Workers | Ranks]:
    """Whoever answers plans: processes on this machine, or with `zero3` the ranks."""
    if settings.zero3:
        yield Ranks(model, settings)
    else:
        with contextlib.closing(Workers(model, settings)) as workers:
            yield workers


def plan(
    items: list[Item],
    prompt: Prompt,
    model: Model,
    settings: Settings,
    with_blind: bool = False,
    given: Mapping[str, str] | None = None,
) -> Plan:
    """The same for the same items and settings, whatever was done before. `given`: z of every item, by key."""
    jobs, batches, given = {}, [], given or {}
    for blind in sorted({settings.blind, settings.blind or with_blind}):
        planner = Planner(model, settings.model_copy(update={"blind": blind}))
        made = (
            planner.job(sample_of(item, prompt, blind), _options(item, prompt, settings), given.get(item.key))
            for item in items
        )
        jobs[blind] = list(tqdm(made, "planning", len(items), leave=False, disable=len(items) < 1000))
        batches += planner.batches(jobs[blind])
    return Plan(jobs, batches)


def predict(jobs: Plan, by: Workers | Ranks, path: Path, retry: bool) -> dict[bool, dict[str, Prediction]]:
    """Predictions by key, with pictures and without. Those that the file has are kept, others added as they come."""
    with contextlib.closing(Predictions(path)) as kept:
        if retry:
            kept.forget_failures()
        # Whole batches, so that a killed run gives the numbers of an unbroken one to the last digit.
        todo = [n for n, batch in enumerate(jobs.batches) if any(job.id not in kept.known for job in batch)]
        for found in _shown(by.run(jobs.batches, todo), jobs.batches, todo, kept):
            kept.add(found)
    return {blind: {job.sample.key: kept.known[job.id] for job in own} for blind, own in jobs.jobs.items()}


def _options(item: Item, prompt: Prompt, settings: Settings) -> tuple[str, ...]:
    if settings.mode != "score":
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
