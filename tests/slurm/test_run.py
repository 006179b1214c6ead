"""A training over two nodes, stopped by its time limit and by Slurm, ends as one that nothing disturbed."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient

from model.build import load_export
from tests.distributed.rl_ranks import EVERYTHING
from tests.slurm.cluster import Cluster
from trainer.checkpoint import complete, step_of

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 24, 4


class Runner:
    """Submits jobs of the trainer, with a small model and small steps."""

    def __init__(self, slurm: Cluster, folder: Path, shards: Path, backbone: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.settings = {
            "run.folder": folder,
            "data.train": shards,
            "data.workers": 1,
            "model.folder": backbone,
            "train.steps": STEPS,
            "train.tokens": 700,
            "train.save_every": SAVE_EVERY,
            "train.log_every": 1,
            "train.precision": "fp32",
        }

    def submit(self, name: str, *options: str, config: str = "configs/quickstart.yaml", **changes: Any) -> str:
        values = [f"{key}={value}" for key, value in (self.settings | {"run.name": name} | changes).items()]
        options = ("--parsable", "--nodes=2", f"--output={self.folder}/%j.out", *options)
        command = ("sbatch", *options, "slurm/train.sh", config, *values)
        return self.slurm.submit(ROOT, *command, CUDA_VISIBLE_DEVICES="")

    def output(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def saved(self, name: str) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max(map(step_of, complete(self.folder / name)), default=0)

    @contextmanager
    def held_after_a_step(self, name: str, job: str) -> Iterator[list[psutil.Process]]:
        """The ranks, halted in the middle of the run once it has got further, so that it cannot end meanwhile."""
        before, after = self.saved(name), f"run.name={name}"
        self.slurm.until(lambda: self.saved(name) > before, 240, lambda: self.output(job))
        ranks = [one for one in psutil.process_iter() if _runs(one, "trainer/main.py", after)]
        assert len(ranks) == 2, self.output(job)
        for rank in ranks:
            rank.suspend()
        try:
            yield ranks
        finally:
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):  # Slurm may have sent SIGCONT as well
                    rank.resume()

    def summary(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())
        return found


def _runs(process: psutil.Process, *words: str) -> bool:
    """Whether it is Python with all these words on its command line."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return bool(line) and "python" in line[0] and all(word in line for word in words)


def _told(rank: psutil.Process) -> bool:
    """Whether a halted rank has been sent SIGUSR1; one that was woken up to take it may be gone."""
    try:
        status = Path(f"/proc/{rank.pid}/status").read_text()
    except FileNotFoundError:
        return True
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.fixture(scope="module")
def runner(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_backbone: Path) -> Runner:
    return Runner(slurm, tmp_path_factory.mktemp("runs"), tiny_shards, tiny_backbone)


def test_reinforcement_learning_by_the_same_script(runner: Runner, export_of: Callable[[str], Path]):
    changes = EVERYTHING | {"model.folder": export_of("amvl"), "train.steps": 3, "rl.update": "{kl: 0.1}"}
    job = runner.submit("reinforced", "--time=60", config="configs/quickstart_rl.yaml", **changes)
    assert runner.slurm.ended(job, 300)["JobState"] == "COMPLETED", runner.output(job)
    assert "2 ranks, step 0 of 3" in runner.output(job)
    summary = runner.summary("reinforced")
    metrics = MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"]).data.metrics
    assert metrics["progress/rollouts"] == 3 and metrics["update/tokens"] > 0
    assert load_export(Path(summary["export"])).recipe.latents == "posterior"


def test_a_run_stopped_twice_is_the_undisturbed_one(runner: Runner):
    slurm, job = runner.slurm, runner.submit("stopped", "--time=60")
    whole = runner.submit("whole")

    # By the time limit: the warning comes five minutes before it, as slurm/train.sh asks for.
    with runner.held_after_a_step("stopped", job) as ranks:
        slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=5")
        slurm.until(lambda: all(map(_told, ranks)), 90, lambda: runner.output(job))
    slurm.until(lambda: slurm.job(job)["Restarts"] == "1", 120, lambda: runner.output(job))
    slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    # By Slurm, which takes the nodes away.
    first = runner.saved("stopped")
    with runner.held_after_a_step("stopped", job):
        slurm.ask("scontrol", "requeue", job)
    slurm.until(lambda: slurm.job(job)["JobState"] == "RUNNING", 90, lambda: runner.output(job))
    second = runner.saved("stopped")
    assert 0 < first < second < STEPS

    for one, restarts in ((whole, "0"), (job, "2")):
        found = slurm.ended(one, 300)
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", restarts), runner.output(one)
    output = runner.output(job)
    assert [f"2 ranks, step {step} of {STEPS}" in output for step in (0, first, second)] == [True] * 3, output
    assert output.count("saved; requeued") == 1, output
    losses, weights, runs = {}, {}, {}
    for name in ("whole", "stopped"):
        summary = runner.summary(name)
        client = MlflowClient(summary["mlflow_uri"])
        history = client.get_metric_history(summary["mlflow_run_id"], "loss/total")
        losses[name] = {metric.step: metric.value for metric in history}
        weights[name] = load_export(Path(summary["export"])).state_dict()
        runs[name] = client.get_run(summary["mlflow_run_id"])
    assert sorted(losses["whole"]) == list(range(1, STEPS + 1))
    assert losses["stopped"] == losses["whole"]
    assert all(torch.equal(weights["stopped"][key], weights["whole"][key]) for key in weights["whole"])

    # In MLflow it is one run.
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    found = client.search_runs([runs["stopped"].info.experiment_id])
    names = [run.info.run_name for run in found]
    assert names.count("stopped") == names.count("whole") == 1
