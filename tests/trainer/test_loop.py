"""What a step counts over its micro-steps and all ranks. Whole steps: tests/distributed/test_zero3.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from model.batch import Batch, collate
from tests.tiny import MARKERS, mixed_samples, tiny_model
from trainer import loop
from trainer.report import Counts
from trainer.throughput import Flops

ENGINE: Any = SimpleNamespace(device="cpu")
STATE = {"counts": {"shrunk": 2, "dropped": 1, "bad": 3, "drawn": 50}}
SAVER: Any = SimpleNamespace(status=lambda: (1.0, 0.0))
STOP: Any = SimpleNamespace(reason="SIGTERM")
RANKS = 3


@pytest.fixture(autouse=True)
def ranks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor: Tensor) -> None:
        tensor.mul_(RANKS)

    monkeypatch.setattr(loop.dist, "all_reduce", all_reduce)


@pytest.mark.parametrize("objective", ["sft", "amvl"])
def test_counts_are_sums_over_ranks_and_micro_steps(objective: str):
    model, samples = tiny_model(objective), mixed_samples()

    def batch_of(part: slice) -> Batch:
        return collate(samples[part], model.recipe, model.config, model.backbone, MARKERS)

    whole, flops = batch_of(slice(None)), Flops(model)
    counts = loop._global_counts([batch_of(slice(0, 2)), batch_of(slice(2, None))], STATE, flops, ENGINE, SAVER, STOP)
    assert counts == Counts(
        targets=RANKS * sum(len(s.answer) for s in samples),
        samples=RANKS * len(samples),
        tokens=RANKS * whole.tokens,
        image_tokens=RANKS * sum(int(s.grids.prod(1).sum()) // 4 for s in samples),
        flops=RANKS * flops(whole),
        shrunk=RANKS * 2,
        dropped=RANKS * 1,
        bad=RANKS * 3,
        stop=RANKS * 1,
        written=RANKS * 1,
    )
