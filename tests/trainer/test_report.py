"""The numbers of the log from known steps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.latent_vlm import PARTS, Weights
from trainer import config, report
from trainer.checkpoint import Progress
from trainer.report import Counts, Reporter, Step, postfix

COUNTS = Counts(targets=20, samples=4, tokens=600, image_tokens=150, flops=8e9, shrunk=3, dropped=1, bad=0)
PARTS_OF_A_STEP = [40.0, 6.0, 2.0, 2.0, 4.0, COUNTS.targets, COUNTS.samples]


class Tracker:
    """Keeps what would go to MLflow."""

    run_id = "run"

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.logged[step] = values


def reporter_of(tracker: Tracker | None, **overrides: object) -> Reporter:
    values = {"train.tokens": 500, "train.accumulation": 2, "train.log_every": 2} | overrides
    cfg = config.load(Path("configs/quickstart.yaml"), [f"{key}={value}" for key, value in values.items()])
    return Reporter(cfg, tracker, ranks=2, first_step=0)  # type: ignore[arg-type]


def logged(steps: list[Step], peak: float | None = None) -> dict[str, float]:
    """The last line after these steps."""
    assert len(PARTS_OF_A_STEP) == len(PARTS)
    tracker = Tracker()
    reporter, progress = reporter_of(tracker), Progress()
    reporter.peak = peak
    engine: Any = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"lr": 1e-3}, {"lr": 1e-2}]), get_global_grad_norm=lambda: 0.5
    )
    for step in steps:
        progress.step += 1
        reporter.step(progress, engine, step, {})
    reporter.close()
    return tracker.logged[progress.step]


def step_of(seconds: float = 2.0, waited: float = 0.0, **counts: float) -> Step:
    return Step(COUNTS._replace(**counts), Weights(0.5, 0.25, 1.0, 1.0), PARTS_OF_A_STEP, False, seconds, waited)


def test_speeds_are_those_of_all_ranks_since_the_last_line():
    values = logged([step_of(seconds=50), step_of(seconds=1), step_of(seconds=3), step_of(tokens=1000, shrunk=5)])
    # Lines follow steps 1, 2 and 4, so that the last covers 3 + 2 seconds.
    assert values["speed/tokens_per_second"] == pytest.approx((600 + 1000) / 5)
    assert values["speed/image_tokens_per_second"] == pytest.approx(2 * 150 / 5)
    assert values["speed/samples_per_second"] == pytest.approx(2 * 4 / 5)
    assert values["speed/seconds_per_step"] == pytest.approx(2.5)
    assert values["speed/model_flops_per_second"] == pytest.approx(2 * 8e9 / 5)
    assert values["packing/fill"] == pytest.approx(
        (600 + 1000) / (500 * 2 * 2 * 2)
    )  # budget, micro-steps, ranks, steps
    assert (values["packing/shrunk"], values["packing/dropped"]) == (5, 1)
    assert values["memory/peak_bytes"] > 2**20


def test_losses_are_means_as_they_are_optimised():
    values = logged([step_of(), step_of()])
    assert values["loss/ntp"] == pytest.approx(2.0)
    assert values["loss/total"] == pytest.approx(2.0 + 0.5 * 6 / 20 + 0.25 * 2 / 20)
    assert values["nats/forward_kl_per_sample"] == pytest.approx(1.5)
    assert (values["lr/backbone"], values["lr/latent"], values["gradient_norm"]) == (1e-3, 1e-2, 0.5)


def test_mfu_is_reported_where_the_peak_is_known():
    assert "speed/mfu" not in logged([step_of()])
    values = logged([step_of()], peak=1e10)
    assert values["speed/mfu"] == pytest.approx(8e9 / (2.0 * 2 * 1e10))
    assert postfix(values) == "loss 2.175, 300 tokens/s, MFU 20.0%"


@pytest.mark.parametrize(("waited", "words"), [(0.08, ""), (0.5, ", 25% waiting for data")])
def test_the_bar_speaks_of_waiting_when_it_matters(waited: float, words: str):
    values = logged([step_of(waited=waited)])
    assert values["speed/data_wait_share"] == pytest.approx(waited / 2)
    assert postfix(values) == "loss 2.175, 300 tokens/s" + words


def test_memory_of_a_device_is_counted_anew_after_each_line(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report.torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setattr(report.torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(report.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert reporter_of(None).peak == 989e12
    assert logged([step_of()])["memory/peak_bytes"] == 123
    assert calls == ["reset"]


def test_what_a_look_found_is_logged_at_its_step_as_far_as_it_is_finite():
    tracker = Tracker()
    reporter = reporter_of(tracker)
    reporter.vitals(500, {"health/injected_norm": 1.5, "health/gradient_norm/ntp/prior": float("nan")})
    reporter.close()
    assert tracker.logged == {500: {"health/injected_norm": 1.5}}


def test_other_ranks_say_nothing(capfd: pytest.CaptureFixture[str]):
    reporter = reporter_of(None)
    engine: Any = None
    reporter.step(Progress(step=1), engine, step_of(), {})
    reporter.vitals(1, {"health/injected_norm": 1.0})
    reporter.close()
    assert not reporter.steps
    assert capfd.readouterr().err == ""
