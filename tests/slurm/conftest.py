"""The cluster, and a folder from which jobs are submitted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, cluster, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


class Place:
    """A folder with the scripts and, for trainer and evaluation, stand_in.py."""

    def __init__(self, slurm: Cluster, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        evaluators = (f"eval/run_{name}.py" for name in ("shards", "blink", "visual_puzzles", "tsv"))
        for name in ("trainer/main.py", "eval/diagnose.py", *evaluators):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(Path(__file__).with_name("stand_in.py"), folder / name)

    def train(self, options: str = "", keys: str = "stops=0", **environment: str) -> str:
        """Submit a job: sbatch's options, the trainer's overrides."""
        command = ("sbatch", "--parsable", *options.split(), "slurm/train.sh", "x.yaml", *keys.split())
        return self.slurm.submit(self.folder, *command, **environment)

    def evaluate(self, options: str, arguments: str) -> str:
        command = ("sbatch", "--parsable", *options.split(), "slurm/eval.sh", *arguments.split())
        return self.slurm.submit(self.folder, *command)

    def starts(self, job: str, restarts: int | None = None) -> list[dict[str, Any]]:
        """What the ranks of a job, or of all tasks of an array, said when they started, in their order."""
        log = self.folder / "log.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        found = [start for start in found if job in (start["SLURM_JOB_ID"], start["SLURM_ARRAY_JOB_ID"])]
        if restarts is not None:
            found = [start for start in found if int(start["SLURM_RESTART_COUNT"] or 0) == restarts]
        return sorted(found, key=lambda start: (start["SLURM_ARRAY_TASK_ID"] or "", start["RANK"]))

    def running(self, job: str, ranks: int, restarts: int = 0) -> list[dict[str, Any]]:
        """The same, once so many ranks have started."""
        self.slurm.until(lambda: len(self.starts(job, restarts)) == ranks, 60, lambda: self.output(job))
        return self.starts(job, restarts)

    def output(self, job: str) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"slurm-*-{job}.out"))


@pytest.fixture
def place(slurm: Cluster, tmp_path: Path) -> Place:
    return Place(slurm, tmp_path)
