"""Memory of one rank before anything is allocated: the training step itself, run on tensors without storage.

The model stands on PyTorch's meta device and takes one micro-step, forward and backward, on a batch of the size in
question; every tensor that the code makes is counted while it lives. Nothing is assumed about what transformers keeps.
"""

import weakref
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from model.batch import Batch
from model.latent_vlm import LatentVLM, Weights

META = torch.device("meta")
FUSED = int(torch.nn.attention.SDPBackend.FLASH_ATTENTION.value)


class StandIn:
    """A fused kernel as far as memory goes: its output, the log-sum-exps, and fp32 sums of the queries' gradient."""

    def forward(self, q, k, v, spans, scale):
        return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)

    def backward(self, gradient, q, k, v, out, lse, spans, scale):
        torch.empty_like(q, dtype=torch.float32)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class Meter(TorchDispatchMode):
    """Bytes of the tensors without storage that are alive, now and at most.

    Numbers that code looks at (token ids, rows, sizes of images) are real and on the CPU; where they meet a tensor
    without storage, they become one.
    """

    def __init__(self, image_rows: int, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.image_rows, self.live, self.peak = image_rows, 0, 0
        self._known = {x.untyped_storage()._cdata for x in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._fused_sdp_choice.default:
            return FUSED  # by itself it would take the implementation that makes all scores
        if any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(self._without_storage, (args, kwargs))
            if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
                args = (args[0], self._rows(args[1]), *args[2:])
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_meta:
                self._count(x.untyped_storage())
        return out

    @staticmethod
    def _without_storage(x: Any) -> Any:
        return x.to(META) if isinstance(x, Tensor) and x.dim() and not x.is_meta else x

    def _rows(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """A mask of images has no values here, but as many as there are image tokens."""
        rows: list[Tensor | None] = []
        for x in indices:
            if x is not None and x.dtype == torch.bool:
                rows += [torch.empty(self.image_rows, dtype=torch.long, device=META) for _ in range(x.dim())]
            else:
                rows.append(x)
        return rows

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size


def activation_bytes(model: LatentVLM, batch: Batch) -> int:
    """The most bytes that one micro-step of a model on the meta device holds beside weights and their gradients."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            # ZeRO-3 takes a gradient away as soon as it is whole (into the bucket that model_states counts).
            parameter.register_post_accumulate_grad_hook(_drop)
    with Meter(len(batch.image_rows), chain(model.parameters(), model.buffers())) as meter:
        losses, _ = model(batch, Weights(1.0, 1.0, 1.0, 1.0))
        for loss in losses:
            loss.backward()
    return meter.peak


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
