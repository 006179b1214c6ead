"""The `flash` and `varlen` back ends: fused kernels on the packed row itself, without padding.

A prefix attends to itself. A branch attends to its prefix and to itself in two calls that are merged, so that
a prefix's keys and values are read where they lie and copied for no branch, in the forward or the backward
pass. The price is a second pass over the branches' outputs, which are few. (Where a sample has no branch token at
all in a round, the keys of the prefixes that have are gathered once per layer: the kernels want no empty sequence.)

Letters in shapes: T tokens of the row, H query heads, G key and value heads, D head size; P, Q rows of prefixes
and branches; K kept rows of branches of earlier rounds.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.attention_probe import IMAGES, LATENTS, Probe, mass
from model.kernels import Kernel, Spans
from model.layout import Layout

KeyValue = tuple[Tensor, Tensor]


class Memory(NamedTuple):
    """Keys and values that a layer keeps for later rounds."""

    prefix: KeyValue  # [P, G, D]
    kept: KeyValue  # [K, G, D]


@dataclass(frozen=True)
class VarlenPlan:
    """One round over a row, as sequences of a kernel."""

    kernel: Kernel
    prefixes: Spans | None  # in the round that runs them
    to_prefix: Spans | None  # all branch rows of a sample to its prefix
    to_branch: Spans | None  # the new rows of a branch to its kept and new rows
    prefix_rows: Tensor | None  # the rows of prefixes that have branches, where some have none
    branch_rows: Tensor | None  # order of kept and new rows, where there are kept ones
    lengths: tuple[int, ...]  # of the prefixes
    kept: np.ndarray  # [K, 2] sample and branch of every row kept so far
    keep: bool

    @classmethod
    def of(cls, layout: Layout, earlier: "VarlenPlan | None", kernel: Kernel) -> "VarlenPlan":
        """The plan of a layout, after that of the round before."""
        lengths = earlier.lengths if earlier else tuple(s.length for s in layout.prefixes)
        kept, branches = earlier.kept if earlier else np.zeros((0, 2), np.int64), layout.branches
        own = np.array([(s.sample, s.branch) for s in branches], np.int64).reshape(-1, 2)
        new = own.repeat([s.length for s in branches], axis=0)
        with_branches = sorted({s.sample for s in branches})
        queries = [sum(s.length for s in branches if s.sample == sample) for sample in with_branches]
        prefix_rows = branch_rows = None
        if branches and len(with_branches) < len(lengths):
            starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
            prefix_rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in with_branches])
        keys = [s.length for s in branches]
        if len(kept) and branches:
            known, wanted = (_codes(x) for x in (np.concatenate([kept, new]), own))
            order = known.argsort(kind="stable")
            order = order[np.isin(known[order], wanted)]  # by branch, as the branches of a layout are
            keys = (np.searchsorted(known[order], wanted, "right") - np.searchsorted(known[order], wanted)).tolist()
            branch_rows = torch.from_numpy(order)
        return cls(
            kernel=kernel,
            prefixes=None if earlier else _spans(lengths, lengths, causal=True),
            to_prefix=_spans(queries, [lengths[i] for i in with_branches], causal=False) if branches else None,
            to_branch=_spans([s.length for s in branches], keys, causal=True) if branches else None,
            prefix_rows=prefix_rows,
            branch_rows=branch_rows,
            lengths=lengths,
            kept=np.concatenate([kept, new]) if layout.keep else kept,
            keep=layout.keep,
        )

    def to(self, device: torch.device) -> "VarlenPlan":
        names = ("prefixes", "to_prefix", "to_branch", "prefix_rows", "branch_rows")
        moved = {name: part.to(device) for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **moved)

    def fork(self, parents: list[list[int]], memory: dict[int, Memory]) -> tuple["VarlenPlan", dict[int, Memory]]:
        """The plan and what its layers remember, with other branches (Round.fork)."""
        stay = [sample for sample, of_sample in enumerate(parents) if of_sample]
        starts = np.cumsum([0, *self.lengths])
        codes = _codes(self.kept)
        order = codes.argsort(kind="stable")
        wanted = np.array([(sample, parent) for sample in stay for parent in parents[sample]], np.int64).reshape(-1, 2)
        first, last = (np.searchsorted(codes[order], _codes(wanted), side) for side in ("left", "right"))
        rows = [np.zeros(0, np.int64), *(order[a:b] for a, b in zip(first, last, strict=True))]
        named = np.array([(n, b) for n, sample in enumerate(stay) for b in range(len(parents[sample]))], np.int64)
        kept = named.reshape(-1, 2).repeat(last - first, axis=0)
        prefix = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in stay])
        whole = len(stay) == len(self.lengths)
        places = [
            torch.from_numpy(x).to(next(iter(memory.values())).prefix[0].device) for x in (prefix, np.concatenate(rows))
        ]
        plan = replace(self, lengths=tuple(self.lengths[i] for i in stay), kept=kept)
        return plan, {
            layer: Memory(_picked(seen.prefix, None if whole else places[0]), _picked(seen.kept, places[1]))
            for layer, seen in memory.items()
        }

    def attend(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory | None, scale: float) -> tuple[Tensor, Memory]:
        """One layer. q [T, H, D], k and v [T, G, D] -> [T, H, D] and what later rounds see."""
        out: list[Tensor] = []
        if memory is None:
            assert self.prefixes is not None
            sizes = [sum(self.lengths), q.shape[0] - sum(self.lengths)]
            (pq, q), (pk, k), (pv, v) = (x.split(sizes) for x in (q, k, v))
            out.append(_Attend.apply(pq, pk, pv, self.prefixes, scale, self.kernel))
            memory = Memory((pk, pv), (k[:0], v[:0]))
        known = _joined(memory.kept, (k, v)) if len(memory.kept[0]) else (k, v)
        if self.to_prefix is not None:
            far = _picked(memory.prefix, self.prefix_rows)
            near = _picked(known, self.branch_rows)
            out.append(_Merged.apply(q, *far, *near, self.to_prefix, self.to_branch, scale, self.kernel))
        return torch.cat(out), Memory(memory.prefix, known if self.keep else memory.kept)

    def probe(self, q: Tensor, k: Tensor, memory: Memory, scale: float, probe: Probe) -> Tensor:
        """What a probe finds in one layer of a round of branches, [Q, 2]. q [T, H, D], k [T, G, D]."""
        assert self.to_prefix is not None and self.to_branch is not None
        probe.check(q.shape[0], sum(self.lengths))
        queries, latents, images = (x.cpu() for x in (probe.queries, probe.latents, probe.images))
        found = q.new_zeros((len(queries), 2), dtype=torch.float32)
        if not len(queries):
            return found
        images = images if self.prefix_rows is None else images[self.prefix_rows.cpu()]
        far = _picked(memory.prefix, self.prefix_rows)
        near, _ = _picked(_joined(memory.kept, (k, k)), self.branch_rows)
        to_branch = self.to_branch._replace(causal=probe.causal)
        parts = ((far[0], far[1], self.to_prefix), (near, near, to_branch))  # any values do for the log-sum-exp
        far_lse, near_lse = (self.kernel.forward(q, keys, v, spans, scale)[1] for keys, v, spans in parts)
        lse = torch.logaddexp(far_lse, near_lse)  # [H, T]
        kinds = (
            (IMAGES, far[0], images, _slices(self.to_prefix), False),
            (LATENTS, k, latents, [(rows, rows) for rows, _ in _slices(self.to_branch)], probe.causal),
        )
        for kind, keys, flags, slices, causal in kinds:
            for rows, columns in slices:
                mine = ((queries >= rows.start) & (queries < rows.stop)).nonzero()[:, 0]
                if not len(mine):
                    continue
                own, chosen = queries[mine], columns.start + flags[columns].nonzero()[:, 0]
                seen, wanted = (chosen <= own[:, None]) | (not causal), torch.ones(len(chosen), 1, dtype=torch.bool)
                found[mine, kind] = mass(q[own], keys[chosen], seen, wanted, scale, lse[:, own])[:, 0]
        return found


def _slices(spans: Spans) -> list[tuple[slice, slice]]:
    """The rows of queries and of keys of each sequence."""
    queries, keys = ([slice(*pair) for pair in pairwise(x.tolist())] for x in (spans.queries, spans.keys))
    return list(zip(queries, keys, strict=True))


def _codes(branches: np.ndarray) -> np.ndarray:
    """[n, 2] samples and branches to one number each, in the same order."""
    codes: np.ndarray = branches[:, 0] * 2**32 + branches[:, 1]
    return codes


def _joined(a: KeyValue, b: KeyValue) -> KeyValue:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


def _picked(x: KeyValue, rows: Tensor | None) -> KeyValue:
    return x if rows is None else (x[0].index_select(0, rows), x[1].index_select(0, rows))


def _spans(queries: list[int] | tuple[int, ...], keys: list[int] | tuple[int, ...], causal: bool) -> Spans:
    first_query, first_key = (torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in (queries, keys))
    return Spans(first_query, first_key, max(queries), max(keys), causal)


def attend_chunks(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float, kernel: Kernel
) -> Tensor:
    """Full attention within each chunk of a row: q, k, v [T, H, D], bounds [chunks + 1] int32 -> [T, H, D]."""
    out: Tensor = _Attend.apply(q, k, v, Spans(bounds, bounds, longest, longest, False), scale, kernel)
    return out


class _Attend(torch.autograd.Function):
    """One call of a kernel."""

    @staticmethod
    def forward(ctx, q, k, v, spans, scale, kernel):
        out, lse = kernel.forward(q, k, v, spans, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = spans, scale, kernel
        return out

    @staticmethod
    def backward(ctx, gradient):
        spans, scale, kernel = ctx.rest
        return *kernel.backward(gradient, *ctx.saved_tensors, spans, scale), None, None, None


class _Merged(torch.autograd.Function):
    """Attention over two sets of keys at once: far ones (of the prefix) and near ones (of the branch)."""

    @staticmethod
    def forward(ctx, q, far_k, far_v, near_k, near_v, far, near, scale, kernel):
        far_out, far_lse = kernel.forward(q, far_k, far_v, far, scale)
        near_out, near_lse = kernel.forward(q, near_k, near_v, near, scale)
        lse = torch.logaddexp(far_lse, near_lse)  # [H, Q]
        far_share, near_share = ((part - lse).exp().T[:, :, None] for part in (far_lse, near_lse))  # [Q, H, 1]
        out = (far_out * far_share + near_out * near_share).to(q.dtype)
        ctx.save_for_backward(q, far_k, far_v, near_k, near_v, out, lse)
        ctx.rest = far, near, scale, kernel
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, far_k, far_v, near_k, near_v, out, lse = ctx.saved_tensors
        far, near, scale, kernel = ctx.rest
        q_far, *of_far = kernel.backward(gradient, q, far_k, far_v, out, lse, far, scale)
        q_near, *of_near = kernel.backward(gradient, q, near_k, near_v, out, lse, near, scale)
        return q_far + q_near, *of_far, *of_near, None, None, None, None
