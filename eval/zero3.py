"""Models too large for one device: ZeRO-3 inference over the ranks that deepspeed started.

    deepspeed eval/run_blink.py --zero3 --checkpoint ... --data ...

Every layer's weights are gathered as it runs, so all ranks run the same layers at the same time: they take batches in
turns, of similar cost, and a rank that is done with its own goes on with nothing until all are
(model/generate.py: together). DeepSpeed takes seconds to import, so that is done where it is needed.
"""

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from data.processor import Encoded
from data.sample import Sample, Text, UserError
from eval.answer import Answerer, Job
from eval.models import Model
from eval.predictions import Prediction
from eval.settings import Settings, SettingsError
from model.latent_vlm import LatentVLM

Content = TypeVar("Content")

NOTHING = Sample(key="", text=Text(question="?", answer="?", task="", source=""))  # what a rank without a batch runs


def join() -> int:
    """Into the group of ranks. This one's number; SettingsError without the launcher."""
    if "WORLD_SIZE" not in os.environ:
        raise SettingsError("--zero3: no ranks; start it with deepspeed, e.g. deepspeed eval/run_blink.py --zero3 ...")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(verbose=False)
    return dist.get_rank()


def found_by_first(find: Callable[[], Content]) -> Content:
    """What rank 0 finds, on every rank; where it is refused there, on all."""
    found: Content | UserError | None = None
    if dist.get_rank() == 0:
        try:
            found = find()
        except UserError as error:
            found = error
    found = _of_first(found)
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


class Ranks:
    """The ranks that answer plans together. The model is loaded when there is something to do, and kept for the next:
    DeepSpeed does not let go of one that it has prepared."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.answerer: _SharedAnswerer | None = None

    def run(self, plan: list[list[Job]], todo: list[int]) -> Iterator[list[Prediction]]:
        """On rank 0: predictions of the batches that are to do (by number), those of all ranks, as they come."""
        _of_first(todo)
        yield from self._turns([plan[number] for number in todo])

    def help(self, plan: list[list[Job]]) -> None:
        """On all other ranks, with the same plan."""
        todo: list[int] = _of_first([])
        for _ in self._turns([plan[number] for number in todo]):
            pass

    def _turns(self, batches: list[list[Job]]) -> Iterator[list[Prediction]]:
        if not batches:
            return
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.answerer = self.answerer or _SharedAnswerer(self.model, self.settings)
        like = batches[0][0]  # whoever has nothing to do is asked as all are
        nothing = Job("", NOTHING, ("A",), 0, like.settings, like.z)
        for first in range(0, len(batches), ranks):
            mine = batches[first + rank] if first + rank < len(batches) else [nothing]
            gathered: list[list[Prediction]] | None = [[] for _ in range(ranks)] if rank == 0 else None
            dist.gather_object(self.answerer.turn(mine, nothing), gathered, 0)
            yield from gathered or []


def _of_first(content: Content) -> Content:
    held = [content]
    dist.broadcast_object_list(held, 0)
    return held[0]


class _SharedAnswerer(Answerer):
    """An answerer that holds this rank's share of the model."""

    def __init__(self, model: Model, settings: Settings) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator
        from transformers.integrations import HfDeepSpeedConfig

        values = {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": settings.dtype == "bf16"},
            "zero_optimization": {"stage": 3},
        }
        hf = HfDeepSpeedConfig(values)  # alive while the weights load: each rank keeps its share of each as it is read
        super().__init__(model, settings, get_accelerator().current_device_name())
        del hf
        deepspeed.zero.register_external_parameter(self.model.target_loss, self.model.target_loss.weight)
        self.engine, *_ = deepspeed.initialize(model=_Ranks(self.model), config=values, dist_init_required=False)

    def turn(self, batch: list[Job], nothing: Job) -> list[Prediction]:
        """One batch, in step with all other ranks."""
        lacking = "its pictures do not fit into memory"  # what is tried later would be out of step
        encoded: list[tuple[Job, Encoded | str | None]] = [(job, item or lacking) for job, item in self.encode(batch)]
        if all(isinstance(item, str) for _, item in encoded):
            encoded += self.encode([nothing])
        found: list[Prediction] = self.engine(lambda: self.answer(encoded, _any_rank))
        return [prediction for prediction in found if prediction.id != nothing.id]

    def _run_in_halves(self, batch, together):
        return self._run(batch, together)  # a rank cannot go back alone


class _Ranks(torch.nn.Module):
    """The root that DeepSpeed watches: whatever is done with the model is done in this module's forward pass."""

    def __init__(self, model: LatentVLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, action: Callable[[], list[Prediction]]) -> list[Prediction]:
        return action()


def _any_rank(own: bool) -> bool:
    from deepspeed.accelerator import get_accelerator

    told = torch.tensor([int(own)], device=get_accelerator().current_device_name())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told.item())
