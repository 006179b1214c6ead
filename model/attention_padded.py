"""The `sdpa` back end: PyTorch's scaled_dot_product_attention on padded groups. Exact, and runs on any machine.

Samples of similar prefix length make a group; the branches of a sample share one call and its prefix is not
copied per branch.

Letters in shapes: T tokens of the row, H query heads, G key and value heads, D head size, N samples of a
group, P padded prefix, Q padded branch tokens of one sample, K padded keys.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention_probe import IMAGES, LATENTS, Probe, mass
from model.layout import PREFIX, Layout, Segment

NOTHING = -2  # the branch number of padding among keys
WIDEST = 0.75  # a group takes in prefixes down to this share of its longest

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Group:
    """Samples of similar prefix length, attended to in one call.

    Padded places of a round are numbered group by group: first the prefixes [N, P] (only in the round
    that runs them), then the branch tokens [N, Q] of all branches of a sample, one after the other.
    """

    samples: tuple[int, ...]
    start: int  # its first padded place
    prefix: int  # P in the round that runs the prefixes, else 0
    queries: int  # Q
    mask: Tensor  # [N, 1, Q, K] who sees whom; keys are the remembered ones, then this round's
    key_branches: np.ndarray  # [N, K] branch number of every key, PREFIX or NOTHING


@dataclass(frozen=True)
class PaddedPlan:
    """One round over a row, as padded groups."""

    groups: tuple[Group, ...]
    places: Tensor  # [padded places] the row that stands at each place (0 where none does)
    valid: Tensor  # [padded places, 1] 1.0 where a row stands, else 0.0
    rows: Tensor  # [T] the place of each row
    keep: bool
    padding: bool  # without any (samples of one shape), every row stands at its own place

    @classmethod
    def of(cls, layout: Layout, earlier: "PaddedPlan | None") -> "PaddedPlan":
        """The plan of a layout, after that of the round before."""
        lengths = [s.length for s in layout.prefixes] or [0] * layout.samples
        of_sample: list[list[Segment]] = [[] for _ in range(layout.samples)]
        for s in layout.branches:
            of_sample[s.sample].append(s)
        known = (
            [(g.samples, g.key_branches) for g in earlier.groups] if earlier else [(g, None) for g in _similar(lengths)]
        )
        first_row = np.concatenate([[0], np.cumsum(lengths)])
        places: list[np.ndarray] = []
        groups: list[Group] = []
        start = 0
        for members, remembered in known:
            width = max(lengths[i] for i in members)
            queries = max(sum(s.length for s in of_sample[i]) for i in members)
            prefix_places = np.full((len(members), width), -1)
            query_places = np.full((len(members), queries), -1)
            query_branches = np.full((len(members), queries), NOTHING)
            for n, i in enumerate(members):
                prefix_places[n, : lengths[i]] = first_row[i] + np.arange(lengths[i])
                at = 0
                for s in of_sample[i]:
                    query_places[n, at : at + s.length] = s.row + np.arange(s.length)
                    query_branches[n, at : at + s.length] = s.branch
                    at += s.length
            before = np.where(prefix_places >= 0, PREFIX, NOTHING) if remembered is None else remembered
            keys = np.concatenate([before, query_branches], axis=1)
            kept = keys if layout.keep else before
            groups.append(Group(members, start, width, queries, _mask(keys, query_branches), kept))
            places.extend((prefix_places.ravel(), query_places.ravel()))
            start += len(members) * (width + queries)
        flat = np.concatenate(places)
        rows = np.empty(layout.tokens, dtype=np.int64)
        rows[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return cls(
            groups=tuple(groups),
            places=torch.from_numpy(np.maximum(flat, 0)),
            valid=torch.from_numpy((flat >= 0).astype(np.float32))[:, None],
            rows=torch.from_numpy(rows),
            keep=layout.keep,
            padding=not np.array_equal(flat, np.arange(layout.tokens)),
        )

    def to(self, device: torch.device) -> "PaddedPlan":
        groups = tuple(replace(g, mask=g.mask.to(device)) for g in self.groups)
        moved = {name: getattr(self, name).to(device) for name in ("places", "valid", "rows")}
        return replace(self, groups=groups, **moved)

    def fork(
        self, parents: list[list[int]], memory: dict[int, list[KeyValue]]
    ) -> tuple["PaddedPlan", dict[int, list[KeyValue]]]:
        """The plan and what its layers remember, with other branches (Round.fork)."""
        numbers = {sample: number for number, sample in enumerate(i for i, p in enumerate(parents) if p)}
        groups, picks = [], []
        for at, group in enumerate(self.groups):
            members = [n for n, i in enumerate(group.samples) if parents[i]]
            if not members:
                continue
            columns, branches = _forked(group.key_branches[members], [parents[group.samples[n]] for n in members])
            flat = np.asarray(members)[:, None] * group.key_branches.shape[1] + columns  # [N, K] among all keys
            picks.append((at, torch.from_numpy(flat).to(self.places.device)))
            samples = tuple(numbers[group.samples[n]] for n in members)
            groups.append(replace(group, samples=samples, key_branches=branches))
        kept = {layer: [_picked(seen[at], rows) for at, rows in picks] for layer, seen in memory.items()}
        return replace(self, groups=tuple(groups)), kept

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, memory: list[KeyValue] | None, scale: float
    ) -> tuple[Tensor, list[KeyValue]]:
        """One layer. q [T, H, D], k and v [T, G, D] -> ([T, H, D], per group the keys and values [N, G, K, D])."""
        pq, pk, pv = (self._padded(x.flatten(1)) for x in (q, k, v))
        past = zip(self.groups, memory or [None] * len(self.groups), strict=True)  # type: ignore[list-item]
        results = [self._group(group, pq, pk, pv, seen, q.shape[2], scale) for group, seen in past]
        attended, remembered = zip(*results, strict=True)
        out = torch.cat(attended)
        if self.padding:
            out = _Unpad.apply(out, self.places, self.rows, self.valid)
        return out.unflatten(1, q.shape[1:]), list(remembered)

    def probe(self, q: Tensor, k: Tensor, memory: list[KeyValue], scale: float, probe: Probe) -> Tensor:
        """What a probe finds in one layer of a round of branches, [Q, 2]. q [T, H, D], k [T, G, D]."""
        lengths = {
            i: int((of_sample == PREFIX).sum())
            for group in self.groups
            for i, of_sample in zip(group.samples, group.key_branches, strict=True)
        }
        sizes = [lengths[i] for i in range(len(lengths))]
        probe.check(q.shape[0], sum(sizes))
        images, latents = probe.images.split(sizes), probe.latents.to(q.device)
        queries = probe.queries.cpu()
        places = self.rows[queries].cpu()
        found = q.new_zeros((len(queries), 2), dtype=torch.float32)
        for group, (known, _) in zip(self.groups, memory, strict=True):
            before, new = known.shape[2], group.queries
            for n, sample in enumerate(group.samples):
                start = group.start + n * new
                mine = ((places >= start) & (places < start + new)).nonzero()[:, 0]
                if not len(mine):
                    continue
                at = places[mine] - start  # which of the sample's branch tokens
                seen = group.mask[n, 0, at]  # [R, K]
                if not probe.causal:  # those by whom a token is seen are the later ones of its branch
                    seen[:, before:] |= group.mask[n, 0, :, before + at].T
                own = self.places[start : start + new]
                kinds = seen.new_zeros((before + new, 2))
                kinds[before:, LATENTS] = latents[own]  # padding stands for row 0, but nobody sees it
                kinds[: lengths[sample], IMAGES] = images[sample]  # prefixes are the first keys
                keys = torch.cat([known[n].transpose(0, 1), k[own]])
                found[mine] = mass(q[queries[mine]], keys, seen, kinds, scale)
        return found

    def _padded(self, rows: Tensor) -> Tensor:
        """Rows [T, F] at their places [places, F]."""
        return _Pad.apply(rows, self.places, self.rows) if self.padding else rows

    def _group(self, group: Group, q: Tensor, k: Tensor, v: Tensor, past: KeyValue | None, head: int, scale: float):
        """Attention of one group: padded places [places, heads * D] in and out, and its keys and values."""
        n, prefix, new = len(group.samples), group.prefix, group.queries

        def heads(x: Tensor, start: int, length: int) -> Tensor:  # [N, heads, length, D]
            return x[start : start + n * length].view(n, length, -1, head).transpose(1, 2)

        out, seen = [], past
        if prefix:
            seen = heads(k, group.start, prefix), heads(v, group.start, prefix)
            pq = heads(q, group.start, prefix)
            # Padding stands behind the prefix, so the causal order alone hides it.
            out.append(_attention(pq, *seen, scale, is_causal=True))
        assert seen is not None
        kept = seen
        if new:
            start = group.start + n * prefix
            keys, values = (torch.cat([a, heads(x, start, new)], 2) for a, x in zip(seen, (k, v), strict=True))
            bq = heads(q, start, new)
            out.append(_attention(bq, keys, values, scale, attn_mask=group.mask))
            if self.keep:
                kept = keys, values
        flat = [x.transpose(1, 2).reshape(n * x.shape[2], -1) for x in out]
        return torch.cat(flat) if flat else q[:0], kept


def attend_chunks(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """Full attention within each chunk of a row, chunks of one length in one call (windows mostly have one).

    q, k, v [T, H, D]; bounds [chunks + 1] the first row of each chunk, and T -> [T, H, D].
    """
    lengths = bounds.diff()
    sizes, counts = lengths.unique(return_counts=True)
    by_length = lengths.argsort(stable=True)
    within = [torch.arange(size, device=bounds.device) for size in sizes.tolist()]
    firsts = bounds[by_length].split(counts.tolist())
    order = torch.cat([(f[:, None] + w).flatten() for f, w in zip(firsts, within, strict=True)])  # [T]
    back = order.argsort()
    shape, out, start = q.shape[1:], [], 0
    rows = [_Pad.apply(x.flatten(1), order, back) for x in (q, k, v)]
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        end = start + size * count
        cq, ck, cv = (x[start:end].view(count, size, *shape).transpose(1, 2) for x in rows)  # [count, H, size, D]
        attended = _attention(cq, ck, cv, scale)
        out.append(attended.transpose(1, 2).reshape(end - start, -1))
        start = end
    return _Pad.apply(torch.cat(out), back, order).unflatten(1, shape)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, **mask: Any) -> Tensor:
    """q [N, H, Q, D], k and v [N, G, K, D] -> [N, H, Q, D]."""
    if q.is_meta:
        out: Tensor = _MemoryAlone.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, **mask)


class _MemoryAlone(torch.autograd.Function):
    """What a fused implementation keeps, for planning: for tensors without storage PyTorch takes the one that
    makes all scores."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _forked(keys: np.ndarray, parents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Which keys stay, [N, K] columns, and the branch number each has then, of keys with branch numbers [N, before]."""
    chosen, numbers = [], []
    for row, of_sample in zip(keys, parents, strict=True):
        # A branch that continues none (PREFIX) has no keys of its own yet.
        parts = [np.flatnonzero(row == PREFIX), *(np.flatnonzero((row == p) & (p != PREFIX)) for p in of_sample)]
        chosen.append(np.concatenate(parts))
        numbers.append(np.repeat([PREFIX, *range(len(of_sample))], [len(part) for part in parts]))
    width = max(map(len, chosen))
    columns, branches = np.zeros((len(keys), width), np.int64), np.full((len(keys), width), NOTHING)
    for n, (some, names) in enumerate(zip(chosen, numbers, strict=True)):
        columns[n, : len(some)], branches[n, : len(some)] = some, names
    return columns, branches


def _picked(seen: KeyValue, rows: Tensor) -> KeyValue:
    """Keys and values [N, G, K, D] at rows [N', K'] of all their N * K places -> [N', G, K', D]."""
    flat = (x.transpose(1, 2).flatten(0, 1).index_select(0, rows.flatten()) for x in seen)
    k, v = (x.unflatten(0, rows.shape).transpose(1, 2) for x in flat)
    return k, v


def _similar(lengths: list[int]) -> list[tuple[int, ...]]:
    """Samples in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[sample] >= WIDEST * lengths[groups[-1][0]]:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [tuple(sorted(group)) for group in groups]


def _mask(keys: np.ndarray, queries: np.ndarray) -> Tensor:
    """[N, 1, Q, K]: the whole prefix, and the same branch up to the query itself."""
    columns = np.arange(keys.shape[1])
    own_column = keys.shape[1] - queries.shape[1] + np.arange(queries.shape[1])
    same = keys[:, None, :] == queries[:, :, None]
    seen = (keys[:, None, :] == PREFIX) | (same & (columns[None, None, :] <= own_column[None, :, None]))
    return torch.from_numpy(seen & (keys[:, None, :] != NOTHING))[:, None]


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
