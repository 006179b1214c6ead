"""Next-token loss at the target rows: logits in chunks of rows, fp32 inside, never kept for the backward pass.

Letters in shapes: M target tokens, C hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # rows whose logits exist at a time: 0.6 GB in fp32 with a vocabulary of 152,000


class TargetLoss(nn.Module):
    """Cross-entropy summed over targets, with the weight of a linear head that belongs to another module.

    Under ZeRO-3 the head's weight must be registered with this module (deepspeed.zero.register_external_parameter):
    it is gathered once for all chunks, so that ranks with other numbers of targets still gather alike.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that it does not count as a part of this module

    @property
    def weight(self) -> nn.Parameter:
        """The head's weight [V, C]."""
        return self._head[0].weight  # type: ignore[return-value]

    def forward(self, states: Tensor, targets: Tensor, each: bool = False) -> Tensor:
        """states [M, C], targets [M] token ids -> nats, fp32; `each`: [M], without a gradient."""
        if each:
            return _nll(states.detach(), self.weight.detach(), targets)
        loss: Tensor = _ChunkedNLL.apply(states, self.weight, targets)
        return loss


def _nll(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(states @ weight.T)[targets] of every row [M]."""
    chunks = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(F.linear(rows, weight).float(), ids, reduction="none") for rows, ids in chunks])


class _ChunkedNLL(torch.autograd.Function):
    """-log softmax(states @ weight.T)[targets], summed; logits are made again in the backward pass."""

    @staticmethod
    def forward(ctx, states, weight, targets):
        ctx.save_for_backward(states, weight, targets)
        return _nll(states, weight, targets).sum()

    @staticmethod
    def backward(ctx, gradient):
        states, weight, targets = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows, ids, out in zip(states.split(CHUNK), targets.split(CHUNK), of_states.split(CHUNK), strict=True):
            errors = F.linear(rows, weight).float().softmax(-1)  # [chunk, V]
            errors[torch.arange(len(ids), device=ids.device), ids] -= 1
            errors = (errors * gradient).to(states.dtype)
            torch.mm(errors, weight, out=out)
            if of_weight is not None:
                of_weight.addmm_(errors.T, rows)
        return of_states, of_weight, None
