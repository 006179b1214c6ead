"""Interventions on latents: what becomes of the answers when z is taken away, or another is put in its place?

The experiment of Leveraging Latent Visual Reasoning in Silence (arXiv 2605.18641), and the token replacement test of
arXiv 2605.21642, on any benchmark: a model that reasons in its latents answers worse without them, and with those of
another item. Every arm asks the same items, and is compared with the first arm item by item.

Letters in shapes: N items, k slots, d latent width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.sample import UserError
from eval import zero3
from eval.benchmarks.item import Benchmark
from eval.evaluate import Measured, hints, measure, warn
from eval.intervention_table import ARMS, Interventions, arm_of, write
from eval.models import Model
from eval.plan import answering, plan, predict
from eval.predictions import pack, unpack
from eval.request import Folders, Request, chosen, folders, label, prompt_of, settle
from eval.workers import Workers
from eval.zero3 import Ranks
from model.batch import generator_of
from model.thinking import Thinking

LATENTS = {"removed": "off", "markers": "markers"}  # as a setting; in the other arms z is given
GIVEN = ("unit_noise", "matched_noise", "other_item")
SAME = 1e-3  # of z's length: a change below it is lost where z is rounded to bf16, which has 8 bits
TINY = 1e-6  # a length that counts as none
NATS = 1e-4  # a log-likelihood that moves less has not moved: other batches alone move it by 1e-5
MOST = 0.1  # of the items may have the z that they had


class InterventionError(UserError):
    """An intervention that cannot be made, or that changed nothing where it should have."""


def intervene(benchmark: Benchmark, model: Model, request: Request, arms: Sequence[str] = ()) -> Interventions | None:
    """All arms (by default those that the model can have), their table, and where it is.

    InterventionError at the end, when all is written, where one did not take effect. None on the ranks of `zero3` that
    help the first.
    """
    names = _arms(model, request, arms)
    settled = settle(benchmark, model, request)
    where = folders(benchmark, model, request, ",interventions")
    warn(benchmark, request)
    done: dict[str, Measured] = {}
    no_effect: dict[str, str] = {}
    moved: dict[str, Tensor] = {}
    with answering(model, settled.settings) as by:
        z: dict[str, dict[str, Tensor]] = {}
        if set(names) & set(GIVEN):
            means = _prior_means(benchmark, model, settled, by, where)
            keys = [item.key for item in chosen(benchmark, request)]
            z = {name: latents(name, keys, means, settled.settings.seed) for name in names if name in GIVEN}
            moved = {name: _moved(z[name], means) for name in z}
            no_effect = {name: why for name in z if (why := _unchanged(moved[name]))}
        for name in names:
            if name in no_effect:
                continue
            if request.rank == 0:
                print(f"{name}: {ARMS[name]}")
            one, kept = _request(settled, name, z.get(name)), done.get("kept")
            place = Folders(where.said / name, where.read / name)
            if found := measure(benchmark, model, one, by, place, kept.results if kept else None):
                done[name] = found
    if not done:
        return None
    no_effect |= {name: why for name, found in done.items() if (why := _unmoved(done["kept"], found))}
    table = Interventions(
        benchmark=benchmark.name,
        official=benchmark.mean,
        settings=done["kept"].scores.settings,
        arms={name: arm_of(done["kept"], done.get(name), moved.get(name), no_effect.get(name)) for name in names},
    )
    for hint in hints(done["kept"].scores, settled.settings, benchmark):
        print(f"hint: {hint}")
    write(table, model, label(benchmark, request), where)
    if no_effect:
        raise InterventionError("; ".join(f"{name}: {why}" for name, why in no_effect.items()))
    return table


def _arms(model: Model, request: Request, wanted: Sequence[str]) -> list[str]:
    """The arms to run, `kept` first; InterventionError where one cannot be."""
    kind, asked = model.recipe.latents, request.settings.latents
    if kind == "none":
        raise InterventionError(f"{model.folder}: this model has no latents to intervene on; name one that has")
    if request.with_blind or request.baseline:
        flag = "--blind" if request.with_blind else "--baseline"
        raise InterventionError(f"{flag}: interventions are compared with kept latents alone; leave it out")
    if Thinking.parse(asked).kind in ("off", "markers", "optional"):
        raise InterventionError(
            f"--latents {asked}: nothing that is always there to intervene on; use mean, sample:T or vote:N"
        )
    there = [name for name in ARMS if name not in GIVEN or kind != "pause"]
    for name in wanted:
        if name not in ARMS:
            raise InterventionError(f"--arms {name}: not one of {', '.join(ARMS)}; name some of these")
        if name not in there:
            raise InterventionError(
                f"--arms {name}: a model of pause tokens has no z to replace; use {','.join(there)}"
            )
    return [name for name in there if not wanted or name in wanted or name == "kept"]


def _request(settled: Request, name: str, z: Mapping[str, Tensor] | None) -> Request:
    """That of one arm."""
    kind = settled.settings.latents if name == "kept" else LATENTS.get(name, "given")
    settings = settled.settings.model_copy(update={"latents": kind})
    given = {key: pack(one) for key, one in z.items()} if z is not None else None
    return replace(settled, settings=settings, given=given, facts={"intervention": name})


def _prior_means(
    benchmark: Benchmark, model: Model, settled: Request, by: Workers | Ranks, where: Folders
) -> dict[str, Tensor]:
    """[k, d] of every item that can be run, by key, on every rank. They are kept as predictions are."""
    settings = settled.settings.model_copy(update={"mode": "prior", "latents": "mean"})
    jobs = plan(chosen(benchmark, settled), prompt_of(benchmark, settled), model, settings)

    means: dict[str, Tensor] = {}
    if isinstance(by, Ranks) and settled.rank > 0:
        by.help(jobs.batches)
    else:
        said = predict(jobs, by, where.said / "prior" / "predictions.jsonl", settled.retry)[settings.blind]
        means = {key: unpack(one.prior, model.slots) for key, one in said.items() if one.prior is not None}
        if not means:
            raise InterventionError(f"no item can be run: {next(iter(said.values())).failed}")
    return zero3.found_by_first(lambda: means) if isinstance(by, Ranks) else means


def latents(name: str, keys: Sequence[str], means: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """z [k, d] of every item, by key, for one of GIVEN. The same for the same items, in whatever order they come.

    An item without a mean cannot be run, and fails in every arm; it gets some z all the same.
    """
    known = sorted(means)
    if name == "other_item":
        if len(known) < 2:
            raise InterventionError(f"other_item: {len(known)} item is too few to exchange latents; raise --limit")
        # Around one circle in a random order: no item keeps its own.
        order = torch.randperm(len(known), generator=generator_of(f"{seed}/{name}")).tolist()
        source = {known[order[at - 1]]: known[there] for at, there in enumerate(order)}
        return {key: means[source.get(key, known[0])] for key in keys}
    shape = means[known[0]].shape
    noise = {key: torch.randn(shape, generator=generator_of(f"{seed}/{name}/{key}")) for key in keys}
    if name == "unit_noise":
        return noise
    every = torch.stack([means[key] for key in known]).double()  # [N, k, d]
    mean, spread = every.mean(0), every.std(0, correction=0)
    return {key: (mean + spread * one).float() for key, one in noise.items()}


def _moved(z: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> Tensor:
    """How far each item's z is from its prior's mean, in lengths of that mean [N]."""
    return torch.stack([(z[key] - mean).norm() / mean.norm().clamp(min=TINY) for key, mean in means.items()])


def _unchanged(moved: Tensor) -> str | None:
    """Why this intervention is none, if too many items would be given the z that they have."""
    same = int((moved <= SAME).sum())
    if same <= MOST * len(moved):
        return None
    return (
        f"no effect, not run: z of {same} of {len(moved)} items stays the prior's mean to {SAME:.1%}, as that mean "
        "hardly differs from item to item"
    )


def _unmoved(kept: Measured, found: Measured) -> str | None:
    """Why this intervention is none, if no log-likelihood moved. Replies can stay the same: that is a finding."""
    pairs = [(a.scores, b.scores) for a, b in zip(kept.results, found.results, strict=True) if a.scores and b.scores]
    if kept is found or not pairs:
        return None
    if max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)) > NATS:
        return None
    return f"no effect: every log-likelihood stays what it was to {NATS:g} nats, so latents do not reach the answer"
