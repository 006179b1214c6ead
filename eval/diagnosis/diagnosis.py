"""A diagnosis from its request to its files: find, load, collect, measure, write."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.sample import DataError, Sample, UserError
from data.shards import read_set
from eval import cli, record
from eval.answer import is_out_of_memory
from eval.benchmarks import cells
from eval.diagnosis.arms import ORACLE
from eval.diagnosis.cases import ALTERATIONS, Case, cases
from eval.diagnosis.collect import Collected, Collector
from eval.diagnosis.findings import Findings, Gap
from eval.diagnosis.geometry import geometry_of
from eval.diagnosis.measure import attention_of, gap_of, inputs_of, leakage_of, use_of
from eval.diagnosis.page import markdown, text, write_page
from eval.diagnosis.verdicts import verdicts
from eval.evaluate import versions
from eval.models import Model, every_step, find_model
from eval.request import spread
from eval.results import as_json, write_whole
from eval.scores import Estimate
from eval.settings import Settings
from model.build import markers_of
from model.latent import Gaussian

LIMIT = 500  # items, by default
ASKED = ("seed", "dtype", "min_pixels", "max_pixels")  # settings that numbers depend on


class DiagnosisError(UserError):
    """A model or a set that cannot be diagnosed, or an intervention that changed nothing where it should have."""


class Diagnosis(NamedTuple):
    """What was found, and of every item what it rests on."""

    findings: Findings
    items: list[dict[str, Any]]


def run(arguments: argparse.Namespace) -> Diagnosis:
    """As the command line asks. DiagnosisError at the end, when all is written, where an arm did not take effect."""
    model = find_model(arguments.checkpoint, arguments.step)
    data = arguments.data or model.data("heldout")
    settings = model.effective(cli.settings(arguments))
    count = LIMIT if arguments.limit is None else arguments.limit
    if count < 2:
        raise DiagnosisError(f"--limit {count}: two items at least are needed; raise it")
    samples = spread(cells.unique(read_set(data), data, "key"), count)
    facts = {"data": str(data), "limit": count} | settings.model_dump(include=set(ASKED))
    try:
        found = diagnose(model, samples, settings, facts)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DiagnosisError(f"--tokens {settings.tokens}: more than the memory holds ({error}); give fewer") from error
    limit = [f"limit={arguments.limit}"] if arguments.limit is not None else []
    out = _folder(arguments.out or model.results / ",".join([Path(data).name, "diagnosis", *limit]))
    write_whole(out / "diagnosis.json", as_json(found.findings.model_dump(mode="json")))
    known = _known(model, out, facts) | ({model.step: found.findings.gap} if model.step is not None else {})
    history = _history(model, samples, settings, facts, out, known) if arguments.history else known
    _write(found, model, history, out)
    # A posterior that agrees with the prior is no fault.
    if idle := {name: arm.no_effect for name, arm in found.findings.use.items() if arm.no_effect and name != ORACLE}:
        raise DiagnosisError("; ".join(f"{name}: no effect: {why}" for name, why in idle.items()))
    return found


def _folder(path: Path) -> Path:
    """Made where it is not there yet."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror}); name another --out") from error
    return path


def _history(
    model: Model,
    samples: Sequence[Sample],
    settings: Settings,
    facts: Mapping[str, Any],
    out: Path,
    known: Mapping[int, Gap],
) -> dict[int, Gap]:
    """The gap at every step of the run; those not known yet are measured and kept."""
    known = dict(known)
    for other in every_step(model):
        assert other.step is not None
        if other.step in known:
            continue
        print(f"step {other.step}: the gap alone")
        known[other.step] = measure_gap(other, samples, settings)
        path = _folder(other.results / out.name) / "gap.json"
        write_whole(path, as_json({"facts": dict(facts), "gap": known[other.step].model_dump(mode="json")}))
        record.track(other, out.name, _gap_metrics(known[other.step], out.name), [path])
    return dict(sorted(known.items()))


def _known(model: Model, out: Path, facts: Mapping[str, Any]) -> dict[int, Gap]:
    """By step, the gaps that earlier diagnoses of the run measured on the same set in the same way."""
    found: dict[int, Gap] = {}
    for path in sorted(model.run.glob(f"eval/step_*/{out.name}/*.json")) if model.run else []:
        if path.name in ("gap.json", "diagnosis.json"):
            there = json.loads(path.read_text())
            if all(there["facts"].get(name) == value for name, value in facts.items()):
                step = int(path.parent.parent.name.removeprefix("step_"))
                found[step] = Gap.model_validate(there["gap"])
    return dict(sorted(found.items()))


def _write(found: Diagnosis, model: Model, history: dict[int, Gap], out: Path) -> None:
    """Files, what is printed, and MLflow's metrics."""
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found.items)
    write_whole(out / "items.jsonl", lines)
    write_whole(out / "diagnosis.md", markdown(found.findings, history))
    page = write_page(out / "diagnosis.html", found.findings, history)
    print(text(found.findings))
    files = [out / "diagnosis.json", out / "items.jsonl", out / "diagnosis.md", page]
    record.track(model, out.name, metrics(found.findings, out.name), files)
    print(f"page: {page}")


def metrics(findings: Findings, name: str) -> dict[str, float]:
    """For MLflow, by names such as diagnosis/leakage/rate."""
    found = _gap_metrics(findings.gap, name)
    before = f"eval/{name}"
    if findings.leakage:
        found |= {f"{before}/leakage/{key}": _value(x) for key, x in findings.leakage}
    for arm, of_arm in findings.use.items():
        found |= {f"{before}/use/{arm}/{key}": _value(getattr(of_arm, key)) for key in ("change", "nats", "flips")}
    for count, of_arm in findings.by_slots.items():
        found[f"{before}/slots/{count}/change"] = of_arm.change.value
    for alteration, of_it in findings.inputs.items():
        found[f"{before}/inputs/{alteration}/moved"] = of_it.moved
        found |= {f"{before}/inputs/{alteration}/{key}": getattr(of_it, key).value for key in ("change", "flips")}
    found |= {f"{before}/geometry/{key}": getattr(findings.geometry, key) for key in ("effective_rank", "spread")}
    return {record.metric_name(key): value for key, value in found.items()}


def _gap_metrics(gap: Gap, name: str) -> dict[str, float]:
    found = {}
    for source, of_source in gap.sources.items():
        found[f"eval/{name}/gap/{source}/nats"] = of_source.nats.value
        found[f"eval/{name}/gap/{source}/accuracy"] = of_source.accuracy.value
    for key in ("mean", "drawn", "accuracy"):
        if (estimate := getattr(gap, key)) is not None:
            found[f"eval/{name}/gap/{key}"] = estimate.value
    return {record.metric_name(key): value for key, value in found.items()}


def _value(x: Estimate | float) -> float:
    return x.value if isinstance(x, Estimate) else x


def diagnose(
    model: Model,
    samples: Sequence[Sample],
    settings: Settings,
    facts: Mapping[str, Any],
    alterations: Iterable[str] = ALTERATIONS,
) -> Diagnosis:
    """Everything about a model's latents on some samples. `settings`: effective ones; `facts`: more, for the record;
    `alterations`: of prompts, which take a third of the time.
    """
    collector, chosen, left_out = _prepare(model, samples, settings)
    collected = collector.collect(chosen, alterations)
    gap, leakage = gap_of(collected), leakage_of(collected)
    use, by_slots = use_of(collected)
    inputs, attention = inputs_of(collected), attention_of(collected)
    geometry = geometry_of(*_clouds(collected))
    findings = Findings(
        facts={
            "model": str(model.folder),
            "model_id": model.id,
            "step": model.step,
            "objective": model.objective,
            "bottleneck": model.recipe.bottleneck,
            **facts,
            **settings.model_dump(mode="json", include={*ASKED, "attention"}),
            "left_out": left_out,
            "versions": versions(),
        },
        n=len(chosen),
        slots=collector.model.config.slots,
        width=collector.model.config.width,
        gap=gap,
        leakage=leakage,
        use=use,
        by_slots=by_slots,
        inputs=inputs,
        geometry=geometry,
        attention=attention,
        verdicts=[],
    )
    findings = findings.model_copy(update={"verdicts": verdicts(findings)})
    return Diagnosis(findings, list(_items(collected)))


def measure_gap(model: Model, samples: Sequence[Sample], settings: Settings) -> Gap:
    """The gap of a model on some samples, alone. `settings`: effective ones."""
    collector, chosen, _ = _prepare(model, samples, settings)
    return gap_of(collector.collect_gap(chosen))


def _prepare(model: Model, samples: Sequence[Sample], settings: Settings) -> tuple[Collector, list[Case], list[str]]:
    """The model on its device, and the cases."""
    if model.recipe.rounds == 1:
        mend = (
            "run eval/run_interventions.py on pause tokens" if model.recipe.latents == "pause" else "name one that has"
        )
        raise DiagnosisError(f"{model.folder}: has no z to diagnose; {mend}")
    processor = model.processor(settings)
    chosen, left_out = cases(samples, processor, settings.seed)
    if len(chosen) < 2:
        raise DataError(f"{len(chosen)} of {len(samples)} items can be diagnosed ({left_out[:1]}); take another set")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = model.load(settings).to(device)
    return Collector(loaded, processor, markers_of(processor), settings.tokens, settings.seed), chosen, left_out


def _clouds(collected: Collected) -> tuple[Gaussian, torch.Tensor | None]:
    """The priors of all items, and the log sigma of their posteriors for the right answers."""
    beliefs = [collected.beliefs[case.key] for case in collected.cases]
    prior = Gaussian(*(torch.stack(parts) for parts in zip(*(b.prior for b in beliefs), strict=True)))
    if not len(beliefs[0].posteriors.mean):
        return prior, None
    return prior, torch.stack([b.posteriors.log_sigma[0] for b in beliefs])


def _items(collected: Collected) -> Any:
    """Of every item its label and, by arm, the likeliest answer and the nats of the right one."""
    for case in collected.cases:
        scores = collected.scores[case.key]
        yield {
            "key": case.key,
            "label": case.candidates[case.right],
            "shown": [case.candidates[wrong] for wrong in case.wrong],
            "answers": {arm: case.candidates[int(x.argmax())] for arm, x in scores.items()},
            "nats": {arm: round(-float(x[case.right]), 6) for arm, x in scores.items()},
        }
