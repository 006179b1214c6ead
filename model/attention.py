"""The one door to attention over packed rows: registered with transformers under the name `packed`.

A back end is a function of one layer's rows and what the layer remembers. The one for any machine is
`sdpa` (PyTorch's scaled_dot_product_attention on padded groups, exact, no padding elsewhere).

Letters in shapes: T tokens of the row, H query heads, G key and value heads, D head size; N, P, Q, K as
in layout.py.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model.layout import Group, Layout

NAME = "packed"


@dataclass(frozen=True)
class Round:
    """One pass of the language model: its layout, the round before, and what this one leaves behind."""

    layout: Layout
    earlier: "Round | None" = None
    # Per layer and group the keys and values [N, G, K, D], with their gradient. Written once, by the
    # layer's first run: a checkpointed layer runs again in the backward pass and must find the same.
    memory: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


def describe() -> str:
    """Which back end runs, and why, for the start of a run."""
    return "attention: sdpa (PyTorch's own, on padded groups; the only back end so far, exact on any machine)"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, G, T, D]
    value: Tensor,  # [1, G, T, D]
    attention_mask: None,
    scaling: float,
    *,
    round_: Round,
    **_: object,
) -> tuple[Tensor, None]:
    """One layer's attention in one round. Returns [1, T, H, D]."""
    layout, layer = round_.layout, cast(int, module.layer_idx)
    q, k, v = (_Pad.apply(x.transpose(1, 2)[0].flatten(1), layout.places, layout.rows) for x in (query, key, value))
    past = round_.earlier.memory[layer] if round_.earlier else [None] * len(layout.groups)
    attended, remembered = zip(
        *(
            _sdpa(group, q, k, v, seen, query.shape[-1], scaling, layout.keep)
            for group, seen in zip(layout.groups, past, strict=True)
        ),
        strict=True,
    )
    round_.memory.setdefault(layer, list(remembered))
    rows = _Unpad.apply(torch.cat(attended), layout.places, layout.rows, layout.valid)
    return rows.unflatten(-1, query.shape[1::2])[None], None


def _sdpa(group: Group, q, k, v, past, head: int, scaling: float, keep: bool):
    """Attention of one group: padded places [places, heads * D] in and out, and its keys and values."""
    n, prefix, new = len(group.samples), group.prefix, group.queries

    def heads(x: Tensor, start: int, length: int) -> Tensor:  # [N, heads, length, D]
        return x[start : start + n * length].view(n, length, -1, head).transpose(1, 2)

    out = []
    seen = past
    if prefix:
        seen = heads(k, group.start, prefix), heads(v, group.start, prefix)
        pq = heads(q, group.start, prefix)
        # Padding stands behind the prefix, so the causal order alone hides it.
        out.append(F.scaled_dot_product_attention(pq, *seen, is_causal=True, scale=scaling, enable_gqa=True))
    kept = seen
    if new:
        start = group.start + n * prefix
        keys, values = (torch.cat([a, heads(x, start, new)], 2) for a, x in zip(seen, (k, v), strict=True))
        bq = heads(q, start, new)
        out.append(
            F.scaled_dot_product_attention(bq, keys, values, attn_mask=group.mask, scale=scaling, enable_gqa=True)
        )
        if keep:
            kept = keys, values
    flat = [x.transpose(1, 2).reshape(n * x.shape[2], -1) for x in out]
    return torch.cat(flat) if flat else q[:0], kept


class _Pad(torch.autograd.Function):
    """Rows [T, F] to padded places. Every row stands at one place, so the gradient is a gather as well:
    nothing is added in an order that could change."""

    @staticmethod
    def forward(ctx, rows, places, row_places):
        ctx.save_for_backward(row_places)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """Padded places [places, F] to rows [T, F]; padding gets no gradient."""

    @staticmethod
    def forward(ctx, padded, places, row_places, valid):
        ctx.save_for_backward(places, valid)
        return padded.index_select(0, row_places)

    @staticmethod
    def backward(ctx, gradient):
        places, valid = ctx.saved_tensors
        return gradient.index_select(0, places).mul_(valid.to(gradient.dtype)), None, None, None


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
