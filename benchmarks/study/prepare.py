"""What all jobs start from: models in which the way that an answer could take is open already.

`answers`: the backbone learns to answer clean puzzles (sft). `pictures` goes on to do so through z alone
(deterministic, in a bottleneck): the way from picture through prior and z to the answer is open. `leaks` goes on from
there with answers most of which are drawn, and a posterior that nothing holds back (ntp): it learns to hand them over.
So the study does not ask whether a way opens in the few steps of a job, which is a matter of luck and learning rates,
but which ways an objective keeps, and which it closes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.study import data
from benchmarks.study.data import CLEAN, DRAWN
from benchmarks.study.jobs import LEAKS, PICTURES, SLOTS, START, STARTS, result_of
from benchmarks.study.measure import keep, measured
from trainer import config as configuration
from trainer.config import Config
from trainer.finish import export_folder
from trainer.run import run
from trainer.signals import Stop


class Stage(NamedTuple):
    """One training."""

    times: int  # its steps, over those of a job
    rates: tuple[float, float]  # its learning rates of backbone and latent parts, over those of a job
    data: str
    settings: tuple[str, ...]


ANSWERS = "answers"
STAGES = {
    ANSWERS: Stage(3, (1.0, 1.0), CLEAN, ("objective.name=sft",)),
    PICTURES: Stage(4, (1.0, 1.0), CLEAN, ("objective.name=deterministic", "objective.bottleneck=true")),
    LEAKS: Stage(3, (0.4, 2.0), DRAWN, ("objective.name=ntp", "model.latents=export")),
}


def stages() -> list[tuple[str, int | None]]:
    """All trainings with their number of slots, each behind the one that it goes on from (`before`)."""
    return [(ANSWERS, None), *((PICTURES, slots) for slots in SLOTS), (LEAKS, SLOTS[0])]


def before(name: str, slots: int | None) -> tuple[str, int | None] | None:
    """The training that this one goes on from; None: none."""
    return None if name == ANSWERS else (ANSWERS, None) if name == PICTURES else (PICTURES, slots)


def start_of(config: Path, out: Path, name: str, slots: int) -> Path:
    """The export of a training, which jobs with so many slots begin with."""
    return export_folder(_config(config, out, name, slots))


def prepare(config: Path, out: Path, stop: Stop, number: int, samples: int) -> int:
    """One of the trainings, and before the first the data, so many samples. Returns the exit code.

    What most jobs begin with is measured as they are, for the table. A training that is done does nothing.
    """
    name, slots = stages()[number]
    if number == 0:
        data.build(out / "data", samples)
    settings = _config(config, out, name, slots)
    if (export_folder(settings) / "latent.json").exists():
        return 0
    code = run(settings, stop)
    task = next((task for task, start in STARTS.items() if start == name), None)
    if not code and task and slots == SLOTS[0]:
        facts = {"task": task, "variant": START, "seed": 0}
        keep(result_of(out, f"{task}-{START}-0"), facts | measured(settings.run.path, out, task))
    return code


def _config(config: Path, out: Path, name: str, slots: int | None) -> Config:
    return configuration.load(config, list(_settings(config, out, name, slots)))


def _settings(config: Path, out: Path, name: str, slots: int | None) -> Iterator[str]:
    plain, stage = configuration.load(config, []), STAGES[name]
    yield f"run.name={name}" if slots is None else f"run.name={name}_{slots}"
    yield f"run.folder={out / 'runs'}"
    yield f"data.train={out / 'data' / stage.data / 'train'}"
    yield f"data.heldout={out / 'data' / stage.data / 'heldout'}"
    yield f"train.steps={stage.times * plain.train.steps}"
    yield f"train.lr={stage.rates[0] * plain.train.lr}"
    yield f"train.latent_lr={stage.rates[1] * plain.train.latent_lr}"
    if slots is not None:
        yield f"latent.slots={slots}"
    if start := before(name, slots):
        yield f"model.folder={export_folder(_config(config, out, *start))}"
    elif plain.model.folder.name == data.UNTRAINED:  # made here; other configs name a trained model of their own
        yield f"model.folder={out / 'data' / data.UNTRAINED}"
    yield from stage.settings
