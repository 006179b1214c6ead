"""The trace of chosen steps, and what a short run of one process logs."""

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from model.build import shape_only
from tests.trainer.test_main import overrides, run
from trainer import config
from trainer.profiler import Profiler
from trainer.throughput import Flops


def profiler_of(folder: Path, rank: int = 0, steps: str = "[2,3]") -> Profiler:
    changes = [f"run.folder={folder}", f"train.profile={steps}"]
    return Profiler(config.load(Path("configs/quickstart.yaml"), changes), rank)


def take(profiler: Profiler, numbers: range) -> None:
    for number in numbers:
        with profiler.step(number):
            torch.ones(4, 4) @ torch.ones(4, 4)


def steps_in(path: Path) -> list[str]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::mm" for event in events)
    return sorted({event["name"] for event in events if event["name"].startswith("step ")})


def test_the_chosen_steps_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    take(profiler_of(tmp_path), range(1, 6))
    path = tmp_path / "quickstart" / "profile" / "steps_2_to_3.json.gz"
    assert list(path.parent.iterdir()) == [path]
    assert steps_in(path) == ["step 2", "step 3"]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert str(path) in printed


def test_a_run_resumed_in_between_records_the_rest(tmp_path: Path):
    take(profiler_of(tmp_path), range(3, 6))
    assert steps_in(tmp_path / "quickstart" / "profile" / "steps_3_to_3.json.gz") == ["step 3"]


@pytest.mark.parametrize(
    ("rank", "steps", "numbers"), [(1, "[2,3]", range(1, 6)), (0, "null", range(1, 6)), (0, "[2,3]", range(4, 6))]
)
def test_nothing_is_recorded_unasked(tmp_path: Path, rank: int, steps: str, numbers: range):
    take(profiler_of(tmp_path, rank, steps), numbers)
    assert not list(tmp_path.iterdir())


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_short_run_of_one_process(tmp_path: Path, tiny_shards: Path, tiny_backbone: Path):
    settings = overrides(tmp_path, tiny_shards, tiny_backbone, **{"train.steps": 3, "train.tokens": 700})
    settings += ["train.profile=[2,3]", "train.log_every=1"]
    done = run("configs/quickstart.yaml", *settings, MASTER_PORT=free_port())
    assert done.returncode == 0, done.stderr[-5000:]
    path = tmp_path / "runs" / "quickstart" / "profile" / "steps_2_to_3.json.gz"
    assert steps_in(path) == ["step 2", "step 3"]
    assert str(path) in done.stdout

    summary = json.loads((tmp_path / "runs" / "quickstart" / "summary.json").read_text())
    metrics = MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"]).data.metrics
    speeds = {"tokens_per_second", "image_tokens_per_second", "samples_per_second", "seconds_per_step"}
    speeds |= {"data_wait_share", "model_flops_per_second"}  # a CPU has no peak, so no MFU
    assert speeds == {name.removeprefix("speed/") for name in metrics if name.startswith("speed/")}
    assert 0.5 < metrics["packing/fill"] <= 1
    assert (metrics["packing/shrunk"], metrics["packing/dropped"]) == (0, 0)
    assert metrics["memory/peak_bytes"] > 50 * 2**20
    assert 0 < metrics["speed/image_tokens_per_second"] < metrics["speed/tokens_per_second"]
    cfg = config.load(Path("configs/quickstart.yaml"), settings)
    language_model = Flops(shape_only(cfg.model, cfg.latent, cfg.objective.recipe)).per_token
    # The rest are the vision tower, which is trained here, attention, lm_head and latent parts.
    assert 1 < metrics["speed/model_flops_per_second"] / metrics["speed/tokens_per_second"] / language_model < 4
