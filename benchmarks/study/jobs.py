"""What the study trains: every job is one run of the trainer, told apart by task, variant and seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.objective import RECIPES

SEEDS, FEW_SEEDS = range(5), range(3)
TASKS = {
    "noisy": "half of the answers are drawn: the picture leaves them open. At first the posterior hands answers over",
    "hidden": "pictures reach the answer through z alone, 3 answers in 10 are drawn. At first z carries the picture",
}
PICTURES, LEAKS = "pictures", "leaks"  # what jobs begin with (benchmarks/study/prepare.py)
STARTS = {"noisy": LEAKS, "hidden": PICTURES}
SLOTS = (4, 8, 16)  # the first is the study's default
START = "start"  # what jobs begin with, as the table names it
BASE = "amvl"  # what every variant is compared with: the shipped defaults
AMVL, ELBO = "objective.name=amvl", "objective.name=elbo"


def result_of(out: Path, name: str) -> Path:
    """Where a job's result is, by the job's name."""
    return out / "results" / f"{name}.json"


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    variant: str
    seed: int
    settings: tuple[str, ...]  # overrides of the trainer's configuration

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-{self.seed}".replace("=", "_").replace(" ", "_")

    @property
    def slots(self) -> int:
        """k."""
        return next((int(s.split("=")[1]) for s in self.settings if s.startswith("latent.slots=")), SLOTS[0])

    def overrides(self, out: Path, start: Path) -> list[str]:
        """All that this job changes in the configuration; `start`: the export that it begins with."""
        data = out / "data" / self.task
        bottleneck = ["objective.bottleneck=true"] if self.task == "hidden" else []
        return [
            f"run.name={self.name}",
            f"run.folder={out / 'runs'}",
            f"run.seed={self.seed}",
            f"data.train={data / 'train'}",
            f"data.heldout={data / 'heldout'}",
            f"model.folder={start}",
            "model.latents=export",
            *bottleneck,
            *self.settings,
        ]


def objectives(task: str) -> dict[str, tuple[str, ...]]:
    """All objectives as shipped, and AMVL with one weight after the other, by name with their overrides."""
    found: dict[str, tuple[str, ...]] = {
        name: (f"objective.name={name}",)
        for name, recipe in RECIPES.items()
        if task != "hidden" or recipe.rounds == 2  # the others would be blind
    }
    late = "objective.late=[0.3,0.4]"
    return found | {
        "amvl forward_first": (AMVL, late),
        "amvl reverse_first": (AMVL, late, "objective.order=reverse_first"),
    }


def settings(task: str) -> dict[str, tuple[str, ...]]:
    """One setting at a time, of AMVL or of the ELBO: weights where answers leak, k where all has to pass the slots."""
    gammas = ("0.01", "0.03", "0.1", "1") if task == "noisy" else ("0.03", "0.1", "1")
    found: dict[str, tuple[str, ...]] = {f"amvl gamma={x}": (AMVL, f"objective.gamma={x}") for x in gammas}
    found |= {f"elbo beta={x}": (ELBO, f"objective.beta={x}") for x in ("0.3", "1")}
    if task == "noisy":
        return found | {
            "amvl beta=1": (AMVL, "objective.beta=1"),
            "amvl reduction=mean": (AMVL, "objective.kl_reduction=mean"),
        }
    return found | {f"amvl k={k}": (AMVL, f"latent.slots={k}") for k in SLOTS[1:]}


def variants(task: str) -> dict[str, tuple[str, ...]]:
    """All of a task, by name with their overrides."""
    return objectives(task) | settings(task)


def all_jobs() -> list[Job]:
    """In an order in which those done so far compare, whenever it is broken off."""
    return list(_jobs())


def _jobs() -> Iterator[Job]:
    for seed in SEEDS:
        for task in TASKS:
            for variant, overrides in objectives(task).items():
                yield Job(task, variant, seed, overrides)
    for seed in FEW_SEEDS:
        for task in TASKS:
            for variant, overrides in settings(task).items():
                yield Job(task, variant, seed, overrides)
