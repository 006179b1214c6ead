"""A cut through the graph between two rounds, so that the backward pass can be taken in two halves.

Both rounds use the same weights. In one backward pass autograd holds the gradients that the second round has for
them until the first round has added its own: all weights' gradients, whole, on every rank, which ZeRO-3 then cannot
take away (144 GB with 72 billion parameters in bf16). Taken in halves, each half's gradients are final at once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Cut:
    """Tensors of the first half, and the leaves that stand for them in the second."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, parts: Any) -> Any:
        """The same structure with a leaf in place of each tensor."""
        return tree_map(self._leaf, parts)

    def _leaf(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.requires_grad:
            return x
        leaf = x.detach().requires_grad_()
        self._pairs.append((x, leaf))
        return leaf

    def carried(self) -> Tensor:
        """Zero, whose gradient in the first half is what the leaves got from the second. Empties the cut."""
        pairs = [(x, leaf.grad) for x, leaf in self._pairs if leaf.grad is not None]
        self._pairs = []
        tensors, gradients = zip(*pairs, strict=True)
        zero: Tensor = _Carry.apply(gradients, *tensors)
        return zero


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradients, *tensors):
        ctx.gradients = gradients
        return tensors[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, scale):
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(g * scale.to(g.dtype) for g in gradients)
