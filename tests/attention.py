"""Attention over random rounds against a dense reference in float64, for any back end, forward and backward."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from model.attention import BackEnd, Round, packed_attention
from model.kernels import Spans
from model.layout import PREFIX, Layout, first_round, next_round

SCALE = 0.3
BRANCHES = st.lists(st.integers(0, 4), min_size=2, max_size=2)
# Per sample: the prefix's length, the branches' lengths in round 1, and in round 2.
SHAPES = st.lists(st.tuples(st.integers(1, 12), BRANCHES, BRANCHES), min_size=1, max_size=5).filter(
    lambda shapes: any(sum(later) for _, _, later in shapes)
)


class Layer(torch.nn.Module):
    layer_idx = 0


def positions(length: int) -> Tensor:
    return torch.arange(length).expand(3, -1)


def two_rounds(shapes, keep: bool) -> tuple[Layout, Layout]:
    """Round 1 with the first branch lengths, round 2 with the second."""
    first = first_round([positions(p) for p, _, _ in shapes], [a for _, a, _ in shapes], keep=keep)
    starts = [list(a) if keep else [0, 0] for _, a, _ in shapes]
    return first, next_round(first, [b for _, _, b in shapes], starts, keep=keep)


def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention of the last queries in float64, head by head. All [tokens, heads, size]."""
    out, _ = dense_with_lse(q, k, v, causal, SCALE)
    return out


def dense_with_lse(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)))
    scores = q @ k.transpose(1, 2) * scale
    if causal:
        hidden = torch.ones(q.shape[1], k.shape[1], device=q.device).triu(k.shape[1] - q.shape[1] + 1).bool()
        scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)  # [H, queries]
    return ((scores - lse[..., None]).exp() @ v).transpose(0, 1), lse


class DenseKernel:
    """What a fused kernel promises, in float64: the gradient is taken of exp(scores - lse) with the lse given."""

    @staticmethod
    def _sequences(spans: Spans):
        bounds = (spans.queries.tolist(), spans.keys.tolist())
        for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
            assert a < b, "a kernel must not get a sequence without a query"
            assert c < d, "a kernel must not get a sequence without a key"
            assert b - a <= spans.longest_query
            assert d - c <= spans.longest_key
            yield slice(a, b), slice(c, d)

    def forward(self, q, k, v, spans, scale):
        parts = [dense_with_lse(q[a], k[b], v[b], spans.causal, scale) for a, b in self._sequences(spans)]
        return torch.cat([out for out, _ in parts]).to(q.dtype), torch.cat([lse for _, lse in parts], 1).float()

    def backward(self, gradient, q, k, v, out, lse, spans, scale):
        repeat = q.shape[1] // k.shape[1]
        grads = [torch.zeros_like(x, dtype=torch.float64) for x in (q, k, v)]
        for a, b in self._sequences(spans):
            qs, g, o = (x[a].double().transpose(0, 1) for x in (q, gradient, out))  # [H, queries, D]
            ks, vs = (x[b].double().repeat_interleave(repeat, 1).transpose(0, 1) for x in (k, v))
            weights = (qs @ ks.transpose(1, 2) * scale - lse[:, a].double()[..., None]).exp()
            if spans.causal:
                weights = weights.tril(weights.shape[2] - weights.shape[1])
            scores = weights * (g @ vs.transpose(1, 2) - (g * o).sum(-1, keepdim=True)) * scale
            parts = (scores @ ks, scores.transpose(1, 2) @ qs, weights.transpose(1, 2) @ g)
            for grad, part, rows in zip(grads, parts, (a, b, b), strict=True):
                grad[rows] += part.transpose(0, 1).unflatten(1, (grad.shape[1], -1)).sum(2)
        return tuple(g.to(q.dtype) for g in grads)


def errors(
    back_end: BackEnd, shapes, keep: bool, heads: tuple[int, int, int], seed: int, device: str, dtype: torch.dtype
) -> tuple[float, float]:
    """Largest difference of outputs and of gradients to the dense reference, over their largest values.

    heads: query heads, key heads, head size.
    """
    generator = torch.Generator().manual_seed(seed)
    layouts = [layout.to(device) for layout in two_rounds(shapes, keep)]
    numbers = (heads[0], heads[1], heads[1])
    rows = [
        [
            torch.randn(1, n, layout.tokens, heads[2], generator=generator).to(device, dtype).requires_grad_()
            for n in numbers
        ]
        for layout in layouts
    ]
    round_, outputs = None, []
    for layout, (q, k, v) in zip(layouts, rows, strict=True):
        round_ = Round.of(back_end, layout, round_)
        outputs.append(packed_attention(Layer(), q, k, v, None, SCALE, round_=round_)[0][0])
    weights = [torch.randn(out.shape, generator=generator).to(device, dtype) for out in outputs]
    sum((out.double() * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
    leaves = [[x.detach().double().requires_grad_() for x in triple] for triple in rows]

    def pick(number: int, sample: int, branch: int, which: int) -> Tensor:
        segments = [s for s in layouts[number].segments if (s.sample, s.branch) == (sample, branch)]
        x = leaves[number][which][0].transpose(0, 1)
        return torch.cat([x[s.row : s.row + s.length] for s in segments] or [x[:0]])

    loss, off, size = torch.zeros((), dtype=torch.float64, device=device), 0.0, 0.0
    for number, layout in enumerate(layouts):
        for s in layout.segments:
            seen = [(0, PREFIX)] if s.branch == PREFIX else [(0, PREFIX), (number, s.branch)]
            if number == 1 and keep and s.branch != PREFIX:
                seen.insert(1, (0, s.branch))
            k, v = (torch.cat([pick(n, s.sample, b, which) for n, b in seen]) for which in (1, 2))
            reference = dense(pick(number, s.sample, s.branch, 0), k, v)
            place = slice(s.row, s.row + s.length)
            off = max(off, (outputs[number][place] - reference).abs().max().item())
            size = max(size, reference.abs().max().item())
            loss = loss + (reference * weights[number][place]).sum()
    loss.backward()
    pairs = [
        (a.grad, b.grad) for ours, theirs in zip(rows, leaves, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    pairs = [(a, b) for a, b in pairs if b is not None]
    gradient_off = max((a - b).abs().max().item() for a, b in pairs)
    return off / size, gradient_off / max(b.abs().max().item() for _, b in pairs)
