"""The policy's weights while completions are drawn: all of them on every rank, or gathered layer by layer, in step."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import deepspeed
import deepspeed.comm as dist
import psutil
import torch
from deepspeed import DeepSpeedEngine

from model.build import twin
from model.policy import Policy

T = TypeVar("T")
Work = Callable[[Policy], T]
ROOM = 0.6  # share of the free memory that a copy of the weights may take: keys, values and logits want some too


class Sharded:
    """ZeRO-3 gathers every layer's weights as it runs, so all ranks run the same layers at the same time."""

    in_step = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.stopped = False  # while it was ready last

    @contextmanager
    def ready(self) -> "Iterator[Callable[[Work[Any]], Any]]":
        """Something that gives work the policy."""
        self.stopped = False
        self.engine.eval()
        try:
            yield self.engine
        finally:
            self.engine.train()

    def together(self, own: bool, going: bool) -> bool:
        """Whether any rank has something to do, and none was told to stop."""
        told = torch.tensor([float(own), float(not going)], device=self.engine.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        some, stopped = told.tolist()
        self.stopped = self.stopped or stopped > 0
        return some > 0 and not self.stopped


class Gathered:
    """A second model that has all weights, for the length of a rollout. Ranks go their own ways."""

    in_step = False

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.stopped = False
        self.twin = twin(engine.module, Policy).eval()

    @contextmanager
    def ready(self) -> "Iterator[Callable[[Work[Any]], Any]]":
        """The same."""
        self.stopped = False
        self._fill()
        try:
            yield self.twin
        finally:
            self.twin.to("meta")  # its memory is the training's again

    def together(self, own: bool, going: bool) -> bool:
        """The same of this rank."""
        self.stopped = self.stopped or not going
        return own and not self.stopped

    def _fill(self) -> None:
        """Gather every weight once, one after the other. Collective."""
        copies: dict[int, torch.Tensor] = {}
        state: dict[str, torch.Tensor] = {}
        for name, weight in self.engine.module.named_parameters(remove_duplicate=False):
            if id(weight) not in copies:
                with deepspeed.zero.GatheredParameters([weight]):
                    copies[id(weight)] = weight.detach().clone()
            state[name] = copies[id(weight)]
        self.twin.load_state_dict(state, assign=True, strict=False)
        for name, buffer in self.engine.module.named_buffers():  # those that no state holds, too
            owner, _, leaf = name.rpartition(".")
            self.twin.get_submodule(owner)._buffers[leaf] = buffer


def weights_of(engine: DeepSpeedEngine, asked: Literal["auto", "gathered", "sharded"]) -> Gathered | Sharded:
    """As asked; auto: gathered where a copy fits beside what every rank has by now. Collective."""
    if asked == "auto":
        size = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
        short = size > ROOM * _free()
        asked = "sharded" if over_ranks(engine.device, short) else "gathered"
    return Gathered(engine) if asked == "gathered" else Sharded(engine)


def over_ranks(device: torch.device, value: float, op: Any = dist.ReduceOp.MAX) -> float:
    """The largest value of all ranks, or what else `op` makes of them."""
    told = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(told, op)
    return float(told)


def _free() -> float:
    """Bytes that this rank may still take."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", 1)))
