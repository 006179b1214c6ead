"""The whole command line on two ranks: train, kill -9, resume, export, evaluate; a run of another config refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from model.build import load_export

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 60, 20


class Runner:
    """Starts the trainer under the launcher and the evaluator, with a small model and small steps."""

    def __init__(self, folder: Path, shards: Path, backbone: Path) -> None:
        self.folder, self.shards = folder, shards
        self.settings = {
            "run.folder": folder,
            "data.train": shards,
            "model.folder": backbone,
            "train.steps": STEPS,
            "train.tokens": 700,
            "train.save_every": SAVE_EVERY,
            "train.log_every": 1,
            "health.vitals_every": SAVE_EVERY,
            "train.precision": "fp32",
        }

    def start(self, name: str, **changes: Any) -> subprocess.Popen[str]:
        values = self.settings | {"run.name": name} | changes
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29613"]
        command = [*launcher, "trainer/main.py", "configs/quickstart.yaml", *(f"{k}={v}" for k, v in values.items())]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, name: str, **changes: Any) -> tuple[int, str]:
        process = self.start(name, **changes)
        output, _ = process.communicate(timeout=400)
        return process.returncode, output

    def summary(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())
        return found

    def losses(self, name: str) -> dict[int, list[float]]:
        """Every logged loss by step."""
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        by_step: dict[int, list[float]] = {}
        for metric in client.get_metric_history(self.summary(name)["mlflow_run_id"], "loss/total"):
            by_step.setdefault(metric.step, []).append(metric.value)
        return by_step


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_backbone: Path) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"), tiny_shards, tiny_backbone)


@pytest.fixture(scope="module")
def whole(runner: Runner) -> str:
    code, output = runner.train("whole")
    assert code == 0, output[-5000:]
    return output


@pytest.fixture(scope="module")
def resumed(runner: Runner) -> str:
    """Killed after the first checkpoint, then started again; what was logged already is not logged once more."""
    process = runner.start("broken")
    mark = runner.folder / "broken" / "checkpoints" / f"step_{SAVE_EVERY}" / "complete.json"
    deadline = time.monotonic() + 300
    while not mark.exists():
        assert process.poll() is None, process.communicate()[0][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (runner.folder / "broken" / "export").exists(), "killed too late to show anything"
    code, output = runner.train("broken")
    assert code == 0, output[-5000:]
    return output


def test_a_run_says_where_it_stands(whole: str):
    assert "attention: sdpa" in whole
    assert f"2 ranks, step 0 of {STEPS}" in whole
    assert "tokens/s" in whole


def test_the_resumed_run_is_the_unbroken_one(runner: Runner, whole: str, resumed: str):
    assert f"step {SAVE_EVERY} of {STEPS}" in resumed or f"step {2 * SAVE_EVERY} of {STEPS}" in resumed
    unbroken, again = runner.losses("whole"), runner.losses("broken")
    assert sorted(again) == sorted(unbroken) == list(range(1, STEPS + 1))
    for step, losses in again.items():
        assert losses == unbroken[step], f"step {step}"
    a, b = (load_export(Path(runner.summary(name)["export"])).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(runner: Runner, whole: str):
    losses = runner.losses("whole")
    assert sum(losses[s][0] for s in range(STEPS - 9, STEPS + 1)) < 0.7 * sum(losses[s][0] for s in range(1, 11))


def test_metrics_are_logged(runner: Runner, whole: str):
    summary = runner.summary("whole")
    run = MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"])
    expected = {"loss/ntp", "loss/forward_kl", "loss/reverse_kl", "weight/beta", "weight/gamma", "sigma/prior"}
    expected |= {"nats/forward_kl_per_sample", "sigma/posterior", "lr/backbone", "lr/latent", "gradient_norm"}
    expected |= {"health/gradient_norm/reverse_kl/posterior", "health/active/forward_kl", "health/sigma_prior/min"}
    expected |= {"speed/tokens_per_second", "speed/data_wait_share"}
    assert expected <= set(run.data.metrics)
    assert all(value == value for value in run.data.metrics.values()), "a metric is not a number"
    assert run.data.params["objective.name"] == "amvl"
    assert run.data.params["ranks"] == "2"
    assert run.info.status == "FINISHED"


def test_a_finished_run_is_left_alone(runner: Runner, whole: str):
    before = sorted((runner.folder / "whole").rglob("*"))
    code, output = runner.train("whole")
    assert code == 0
    assert f"all {STEPS} steps are done" in output
    assert sorted((runner.folder / "whole").rglob("*")) == before


def test_another_config_is_refused_by_the_launcher_too(runner: Runner, whole: str):
    before = sorted((runner.folder / "whole").rglob("*"))
    code, output = runner.train("whole", **{"train.lr": 1e-2})
    assert code == 2
    assert output.count("error: ") == 1
    assert "train.lr is 0.0007 in step_60 and 0.01 here" in output
    assert "run.accept=[train.lr]" in output
    assert "Traceback" not in output
    assert sorted((runner.folder / "whole").rglob("*")) == before


def test_the_evaluation_joins_the_run(runner: Runner, whole: str):
    command = [sys.executable, "eval/run_shards.py", "--checkpoint", runner.folder / "whole", "--data", runner.shards]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = runner.summary("whole")
    wanted = {"steps", "ranks", "zero_stage", "train_seconds", "checkpoint", "export", "mlflow_run_id"}
    assert wanted <= set(summary) and "accuracy" not in summary, "the run's own figures are those on data.heldout"
    found = summary["eval"][runner.shards.name]
    assert (summary["steps"], summary["ranks"], summary["zero_stage"], found["n"]) == (STEPS, 2, 3, 104)
    run = MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"])
    name = runner.shards.name
    assert run.data.metrics[f"eval/{name}/micro"] == pytest.approx(found["accuracy"])
    assert (runner.folder / "whole" / "eval" / f"step_{STEPS}" / name / "report.html").is_file()
    assert "mlflow ui --backend-store-uri" in done.stdout
