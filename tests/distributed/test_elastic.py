"""A checkpoint of some ranks goes on as others, by DeepSpeed's universal form: the same losses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distributed.elastic_ranks import CASES, STEPS
from tests.distributed.zygote import free_port
from trainer.checkpoint import complete, step_of

ROOT = Path(__file__).parents[2]
# Where the checkpoints come from, and how many ranks go on. The last is the second change of the same run.
MOVES = {"2 to 1": ("broken", 1), "2 to 3": ("broken", 3), "1 to 2": ("by_1", 2)}


class Moved(NamedTuple):
    """A run that went on as other ranks."""

    first: int  # step of the checkpoint
    unbroken: dict[str, Any]  # losses
    losses: dict[str, Any]
    runs: Path


class Ranks:
    """Starts ranks, each kind once."""

    def __init__(self, folder: Path, shards: Path, backbone: Path) -> None:
        self.folder, self.shards, self.backbone = folder, shards, backbone

    def start(self, ranks: int, phase: str) -> dict[str, Any]:
        out = self.folder / f"{phase}_{ranks}.json"
        launcher = [
            str(Path(sys.executable).with_name("deepspeed")),
            "--num_gpus",
            str(ranks),
            "--master_port",
            str(free_port()),
        ]
        command = [*launcher, "--module", "tests.distributed.elastic_ranks", phase, out]
        command += [self.shards, self.backbone, self.folder]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        found: dict[str, Any] = json.loads(out.read_text())
        return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_backbone: Path) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("elastic"), tiny_shards, tiny_backbone)


@pytest.fixture(scope="module")
def whole(ranks: Ranks) -> dict[str, Any]:
    """Losses of unbroken runs of two ranks, which leave checkpoints of broken ones."""
    return ranks.start(2, "write")


@pytest.fixture(scope="module", params=MOVES, ids=MOVES)
def moved(request: pytest.FixtureRequest, ranks: Ranks, whole: dict[str, Any]) -> Moved:
    source, number = MOVES[request.param]
    runs = ranks.folder / f"by_{number}"
    shutil.copytree(ranks.folder / source, runs)
    for last in runs.glob(f"*/checkpoints/step_{STEPS}"):
        shutil.rmtree(last)
    first = max(step_of(path) for path in complete(runs / "plain"))
    return Moved(first, whole, ranks.start(number, "read"), runs)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_unbroken_run(moved: Moved, case: str):
    losses = moved.losses[case]
    assert len(losses) == STEPS - moved.first
    worst = max(abs(a - b) / b for a, b in zip(losses, moved.unbroken[case][moved.first :], strict=True))
    print(f"{case}: worst relative difference of {len(losses)} losses {worst:.1e}")  # shown by pytest -rP
    assert worst <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_what_they_write_is_theirs(moved: Moved, case: str):
    """The next checkpoint is one of the new ranks: it is loaded as it is, bit for bit.

    But not with DeepSpeed's Adam for the CPU, which multiplies up its bias correction and takes a power when it loads.
    """
    again = moved.losses[f"{case} again"]
    exact = moved.losses[case][-len(again) :]
    assert again and again == (pytest.approx(exact, rel=1e-6) if case == "offloaded" else exact)


def test_it_is_converted_once(moved: Moved):
    for case in CASES:
        there = {path.name for path in moved.runs.glob(f"{case}/checkpoints/*")}
        assert {f"step_{moved.first}", f"step_{STEPS}"} <= there
        converted = [path.parent.name for path in moved.runs.glob(f"{case}/checkpoints/*/universal")]
        assert f"step_{moved.first}" in converted and f"step_{STEPS}" not in converted
        assert not list(moved.runs.glob(f"{case}/**/*.part"))
