"""Runs of the whole command line on small data, for tests that disturb them."""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.build import load_export
from tests.distributed.zygote import Attempt, Zygote
from trainer import checkpoint


class Run:
    """A run folder, and what is started in it."""

    config = "configs/quickstart.yaml"

    def __init__(self, zygote: Zygote, folder: Path, name: str, ranks: int = 2, **settings: Any) -> None:
        self.zygote, self.ranks, self.path, self.logs = zygote, ranks, folder / name, folder
        self.settings = settings | {"run.name": name, "run.folder": folder}

    def start(self, **changes: Any) -> Attempt:
        ranks, clock = changes.pop("ranks", self.ranks), changes.pop("clock", 0)
        values = self.settings | changes
        overrides = [f"{key}={value}" for key, value in values.items()]
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.zygote.start(self.logs, ranks, self.config, *overrides, clock=clock)

    def finish(self, **changes: Any) -> str:
        """To the end. Returns what it printed."""
        attempt = self.start(**changes)
        codes = attempt.wait(300)
        assert not any(codes), f"{codes}\n{attempt.output[-6000:]}"
        return attempt.output

    @property
    def step(self) -> int:
        """Steps taken, as rank 0 has noted them; in the order of noting, so a resumed run is behind itself at first."""
        lines = self.noted(0)
        return lines[-1]["step"] if lines else 0

    def noted(self, rank: int) -> list[dict[str, Any]]:
        path = self.path / "samples" / f"rank_{rank}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def samples(self) -> dict[int, Counter[str]]:
        """By step, what all ranks took; of a step that was taken twice, the later time."""
        steps: dict[int, Counter[str]] = {}
        for path in (self.path / "samples").glob("rank_*.jsonl"):
            mine = {line["step"]: line["samples"] for line in self.noted(int(path.stem.removeprefix("rank_")))}
            for step, samples in mine.items():
                steps.setdefault(step, Counter()).update(samples)
        return steps

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint that claims to be complete; 0 without any."""
        return max(map(checkpoint.step_of, checkpoint.complete(self.path)), default=0)

    def checkpoints(self) -> list[int]:
        """Steps of those that claim to be complete; each is looked through, and must be. Not while it runs."""
        found = checkpoint.complete(self.path)
        for one in found:
            assert checkpoint.fault(one, 0, 1) is None
        return [checkpoint.step_of(one) for one in found]

    def weights(self) -> dict[str, torch.Tensor]:
        summary = json.loads((self.path / "summary.json").read_text())
        return load_export(Path(summary["export"])).state_dict()

    def wait_for(self, happened: Callable[[], bool], attempt: Attempt, seconds: float = 120) -> None:
        until(happened, seconds, lambda: attempt.output[-6000:])


def until(happened: Callable[[], bool], seconds: float, otherwise: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kill_at_random(run: Run, dice: random.Random, most: int) -> str:
    """Start it and kill ranks: while they start, after `most` steps or fewer, or once a checkpoint is being written.

    The others must end by themselves, if they have begun to train (before, it takes a launcher). Returns what was done.
    """
    attempt, noted = run.start(), len(run.noted(0))
    when, steps = dice.choice(("starting", "training", "saving", "saving")), dice.randint(1, most)
    if when != "starting":
        run.wait_for(lambda: len(run.noted(0)) >= noted + steps, attempt)
    if when == "saving":
        run.wait_for(lambda: any(run.path.glob("checkpoints/*.part")), attempt)
    time.sleep(dice.random() * {"starting": 2.0, "training": 0.5, "saving": 0.05}[when])
    victims = dice.choice([attempt.pids[:1], attempt.pids[1:], attempt.pids])
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    trained = len(run.noted(0)) > noted
    codes = attempt.wait(60)
    assert any(codes), "it was to be killed before its end"
    killed = [pid for pid, code in zip(attempt.pids, codes, strict=True) if code == -signal.SIGKILL]
    assert not trained or killed == victims, f"{codes}: they wait for it\n{attempt.output[-5000:]}"
    return f"ranks {[attempt.pids.index(pid) for pid in victims]} {when}"
