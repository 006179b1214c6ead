"""Interventions on latents: what becomes of the answers when z is taken away, or another is put in its place?

The experiment of Leveraging Latent Visual Reasoning in Silence (arXiv 2605.18641), and the token replacement test of
arXiv 2605.21642, on any benchmark: a model that reasons in its latents answers worse without them, and with those of
another item. Every arm asks the same items, and is compared with the first arm item by item.

Letters in shapes: N items, k slots, d latent width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from eval import zero3
from eval.benchmarks.item import Benchmark
from eval.evaluate import Measured, hints, measure, warn
from eval.intervention_table import ARMS, Interventions, arm_of, write
from eval.models import Model
from eval.plan import answering, plan, predict
from eval.predictions import pack, unpack
from eval.replacements import GIVEN, ONE_SLOT, InterventionError, moved_by, replacement, unchanged, unmoved
from eval.request import Folders, Request, chosen, folders, label, prompt_of, settle
from eval.workers import Workers
from eval.zero3 import Ranks
from model.thinking import Thinking

LATENTS = {"removed": "off", "markers": "markers"}  # as a setting; in the other arms z is given


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
            z = {name: replacement(name, keys, means, settled.settings.seed) for name in names if name in GIVEN}
            moved = {name: moved_by(z[name], means) for name in z}
            no_effect = {name: f"no effect, not run: {why}" for name in z if (why := unchanged(name, moved[name]))}
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
    lost: Mapping[str, str] = {}  # arms that this model cannot have, and why
    if kind == "pause":
        lost = dict.fromkeys(GIVEN, "a model of pause tokens has no z to replace")
    elif model.slots == 1:
        lost = ONE_SLOT
        if not wanted and request.rank == 0:
            print("; ".join(f"{name}: left out, as {why}" for name, why in lost.items()))
    there = [name for name in ARMS if name not in lost]
    for name in wanted:
        if name not in ARMS:
            raise InterventionError(f"--arms {name}: not one of {', '.join(ARMS)}; name some of these")
        if name in lost:
            raise InterventionError(f"--arms {name}: {lost[name]}; use {','.join(there)}")
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


def _unmoved(kept: Measured, found: Measured) -> str | None:
    """Why this intervention is none, if no log-likelihood moved. Replies can stay the same: that is a finding."""
    pairs = [(a.scores, b.scores) for a, b in zip(kept.results, found.results, strict=True) if a.scores and b.scores]
    why = unmoved(pairs) if pairs and kept is not found else None
    return f"no effect: {why}" if why else None
