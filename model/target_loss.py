"""Next-token loss at the target rows: logits in chunks of rows, fp32 inside, never kept for the backward pass.

Letters in shapes: M target tokens, C hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # rows whose logits exist at a time: 0.6 GB in fp32 with a vocabulary of 152,000


class TargetLoss(nn.Module):
    """Cross-entropy of each target, with the weight of a linear head that belongs to another module.

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

    def forward(self, states: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """states [M, C], targets [M] token ids -> -log softmax(logits / temperature)[targets] [M], nats, fp32."""
        nats: Tensor = _ChunkedNLL.apply(states, self.weight, targets, temperature)
        return nats


class TargetEntropy(TargetLoss):
    """With the same head: how undecided the distributions are that targets are drawn from. Without a gradient."""

    def forward(self, states: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """states [M, C] -> entropy [M], nats, fp32, whatever the targets are."""
        chunks = states.detach().split(CHUNK)
        logs = (_logits(rows, self.weight.detach(), temperature).log_softmax(-1) for rows in chunks)
        return torch.cat([-(log.exp() * log).sum(-1) for log in logs])


def _logits(rows: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[chunk, C] -> [chunk, V] fp32."""
    logits = F.linear(rows, weight).float()
    return logits if temperature == 1.0 else logits / temperature


class _ChunkedNLL(torch.autograd.Function):
    """-log softmax(states @ weight.T / temperature)[targets]; logits are made again in the backward pass."""

    @staticmethod
    def forward(ctx, states, weight, targets, temperature):
        ctx.save_for_backward(states, weight, targets)
        ctx.temperature = temperature
        chunks = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
        nats = [F.cross_entropy(_logits(rows, weight, temperature), ids, reduction="none") for rows, ids in chunks]
        return torch.cat(nats)

    @staticmethod
    def backward(ctx, gradient):
        states, weight, targets = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        parts = (x.split(CHUNK) for x in (states, targets, gradient / ctx.temperature, of_states))
        for rows, ids, scale, out in zip(*parts, strict=True):
            errors = _logits(rows, weight, ctx.temperature).softmax(-1)  # [chunk, V]
            errors[torch.arange(len(ids), device=ids.device), ids] -= 1
            errors = (errors * scale[:, None]).to(states.dtype)
            torch.mm(errors, weight, out=out)
            if of_weight is not None:
                of_weight.addmm_(errors.T, rows)
        return of_states, of_weight, None, None
