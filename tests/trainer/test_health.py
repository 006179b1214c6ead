"""Spikes are told from noise and from a slow rise, and named with their samples; too many bad steps end a run."""

import json
import math
import random
from pathlib import Path

import pytest

from tests.refusal import refusal
from trainer.checkpoint import MARK
from trainer.health import MEMORY, Health, HealthConfig, HealthError


def losses(count: int) -> list[float]:
    dice = random.Random(0)
    return [2 + dice.gauss(0, 0.1) for _ in range(count)]


def check(health: Health, values: list[float], skipped: bool = False) -> list[str]:
    found = [health.check(step, value, skipped, [f"sample {step}"]) for step, value in enumerate(values, 1)]
    return [message for message in found if message]


def test_a_spike_is_told_with_its_samples(tmp_path: Path):
    health = Health(HealthConfig(), tmp_path, rank=3)
    (message,) = check(health, [*losses(MEMORY), 5.0, *losses(20)])
    assert message.startswith(f"step {MEMORY + 1}: loss 5 after 1.99") and str(tmp_path / "spikes") in message
    (line,) = (tmp_path / "spikes" / "rank_3.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": MEMORY + 1, "loss": 5.0, "samples": [f"sample {MEMORY + 1}"]}


@pytest.mark.parametrize("values", [losses(1000), [2 + step / 50 for step in range(1000)], [9.0, 2.0] * 10])
def test_noise_a_slow_rise_and_the_first_steps_are_no_spikes(tmp_path: Path, values: list[float]):
    assert check(Health(HealthConfig(), tmp_path, 0), values) == []
    assert not (tmp_path / "spikes").exists()


def test_spikes_can_be_left_alone(tmp_path: Path):
    assert check(Health(HealthConfig(spike=0), tmp_path, 0), [*losses(MEMORY), 50.0]) == []


def test_skipped_steps_count_while_they_come_in_a_row(tmp_path: Path):
    health = Health(HealthConfig(in_a_row=3), tmp_path, 0)
    for _ in range(4):
        assert len(check(health, [math.nan, math.nan, 2.0])) == 2
    error = refusal(lambda: check(health, [math.nan] * 3), HealthError)
    assert "step 3: no finite gradient for 3 steps in a row; there is no checkpoint yet" in error
    mark = tmp_path / "checkpoints" / "step_7" / MARK
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert str(mark.parent) in refusal(lambda: check(health, [1.0], skipped=True), HealthError)


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path):
    (tmp_path / "spikes").touch()
    assert len(check(Health(HealthConfig(), tmp_path, 0), [math.inf])) == 1
