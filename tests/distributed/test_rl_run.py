"""The whole command line with reinforcement learning: tracked, stopped, killed, and on to the same end."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.distributed.rl_ranks import EVERYTHING
from tests.distributed.runs import Run, same
from tests.distributed.zygote import Zygote
from trainer.signals import STOPPED

STEPS = 12
PARTS = ("accuracy", "format", "length", "attention")
ROLLOUT = {
    *(f"reward/{name}" for name in (*PARTS, "attention_mass", "total")),
    *(f"reward/weight/{name}" for name in PARTS),
    *(f"rollout/{name}" for name in ("latent_use", "length", "ended", "empty", "left_out", "entropy", "mismatch")),
    *(f"rollout/{name}" for name in ("tokens", "tokens_per_second")),
    *(f"attention/{name}" for name in ("to_latents", "to_images", "lift", "latents_over_images")),
    *(f"groups/{name}" for name in ("kept", "invalid", "filtered", "equal", "one_text")),
    *("advantage/attention_share", "memory/peak_bytes"),
    *("data/bad_samples", "packing/dropped", "packing/shrunk"),
    *(f"seconds/{phase}" for phase in ("rollout", "measure", "reference")),
}
STEP = {
    *(f"update/{name}" for name in ("loss", "policy", "kl", "ratio", "furthest_ratio", "clipped", "tokens", "empty")),
    *("update/tokens_per_second", "seconds/update", "gradient_norm", "lr/backbone", "lr/latent"),
    *(f"progress/{name}" for name in ("samples", "rollouts", "tokens", "skipped")),
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with contextlib.closing(Zygote()) as started:
        yield started


@pytest.fixture(scope="module")
def make(zygote: Zygote, tiny_shards: Path, export_of: Callable[[str], Path]) -> Callable[..., Run]:
    def run(folder: Path, name: str, **settings: Any) -> Run:
        fixed = EVERYTHING | {
            "data.train": tiny_shards,
            "model.folder": export_of("amvl"),
            "train.steps": STEPS,
            "train.save_every": 5,
            "train.record": "true",
            "rl.update": "{minibatches: 2, kl: 0.1}",
            "rl.pages": 4,
            "rl.rewards.attention": "{weight: [[0, 1], [1, 0.5]], gate: none, layers: all}",
            "tracking.enabled": "false",
        }
        made = Run(zygote, folder, name, **(fixed | settings))
        made.config = "configs/quickstart_rl.yaml"
        return made

    return run


@pytest.fixture(scope="module")
def whole(make: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbs, tracked."""
    run = make(tmp_path_factory.mktemp("whole"), "whole", **{"tracking.enabled": "true", "tracking.system_seconds": 0})
    run.finish()
    return run


def test_everything_is_tracked(whole: Run) -> None:
    """Metrics of every rollout and step, and a page of completions with their pictures."""
    client = MlflowClient(f"sqlite:///{whole.path.parent / 'mlflow.db'}")
    run_id = json.loads((whole.path / "summary.json").read_text())["mlflow_run_id"]
    metrics = client.get_run(run_id).data.metrics
    assert metrics.keys() >= ROLLOUT | STEP
    assert [m.step for m in client.get_metric_history(run_id, "reward/accuracy")] == list(range(0, STEPS, 2))
    assert [m.step for m in client.get_metric_history(run_id, "update/loss")] == list(range(1, STEPS + 1))
    # The first step on every rollout has its own policy still.
    furthest = [m.value for m in client.get_metric_history(run_id, "update/furthest_ratio")]
    assert max(furthest[::2]) <= 1e-5 < min(furthest[1::2])
    assert metrics["rollout/mismatch"] < 1e-4 and metrics["rollout/latent_use"] == 1
    assert 0 < metrics["attention/to_latents"] < 1 and 0 <= metrics["advantage/attention_share"] <= 1
    assert metrics["progress/rollouts"] == STEPS / 2 and metrics["progress/samples"] == 8 * STEPS / 2
    weights = [m.value for m in client.get_metric_history(run_id, "reward/weight/attention")]
    assert weights == pytest.approx([1 - 0.5 * step / STEPS for step in range(0, STEPS, 2)])
    pages = [artifact.path for artifact in client.list_artifacts(run_id, "rollouts")]
    assert pages == ["rollouts/rollout_0.html", "rollouts/rollout_4.html"]
    assert "data:image/" in (whole.path / pages[0]).read_text()


def test_the_export_is_another_model(whole: Run, export_of: Callable[[str], Path]) -> None:
    """Trained but for the posterior, which stays as it was, and the vision tower."""
    from model.build import load_export

    before, after = load_export(export_of("amvl")).state_dict(), whole.weights()
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert not any(name.startswith("posterior") or ".visual." in name for name in changed)
    for name in ("prior.outer.weight", "slots.table.weight", "injection.project.weight"):
        assert name in changed


def test_stopped_and_killed(make: Callable[..., Run], whole: Run, tmp_path: Path) -> None:
    """By a signal, then without warning; what is done twice is the same, and so is the end."""
    run = make(tmp_path, "disturbed")
    attempt = run.start()
    run.wait_for(lambda: run.step >= 3, attempt)
    for pid in attempt.pids:
        os.kill(pid, signal.SIGTERM)
    assert attempt.wait(60) == [STOPPED] * 2
    assert "stopped (SIGTERM)" in attempt.output
    stopped_at = run.newest
    assert 3 <= stopped_at < STEPS
    attempt = run.start()
    run.wait_for(lambda: run.step > stopped_at, attempt)
    os.kill(attempt.pids[1], signal.SIGKILL)
    assert any(attempt.wait(60))
    run.finish()
    assert same(run.weights(), whole.weights())
    assert run.samples() == whole.samples()


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"rl.rollout.prompts": 7}, "rl.rollout.prompts is 7, for 2 ranks with as many each; set it to a multiple"),
        ({"train.tokens": 30}, "more than the budget of 30; raise train.tokens or lower model.max_pixels"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[..., Run], tmp_path: Path, change: Any, refusal: str) -> None:
    """In one line of each rank, before the model is loaded (tests/trainer/rl/test_config.py has more)."""
    attempt = make(tmp_path, "refused").start(**change)
    assert attempt.wait(60) == [2, 2]
    first, *_ = [line for line in attempt.output.splitlines() if line.startswith("error: ")]
    assert refusal in first
    assert "Traceback" not in attempt.output and "attention: " not in attempt.output
