"""Which token of a packed row belongs to which prefix and branch, and who may see whom.

A row holds the tokens of many samples without padding. A token of a prefix sees the earlier tokens of
its prefix; a token of a branch sees its whole prefix and the earlier tokens of its branch, nothing else.
A round is one pass of the language model over such a row; later rounds hold branches only and see the
prefixes (and kept branches) of earlier rounds through the memory that attention keeps.

Letters in shapes: T tokens of the row, N samples of a group, P padded prefix, Q padded branch tokens of
one sample, K padded keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PREFIX = -1  # the branch number of prefix tokens
NOTHING = -2  # the branch number of padding among keys
WIDEST = 0.75  # a group takes in prefixes down to this share of its longest


class Segment(NamedTuple):
    """A run of neighbouring tokens of one row: one prefix, or the new tokens of one branch."""

    sample: int
    branch: int
    row: int  # its first row
    length: int


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
class Layout:
    """One round over one packed row of T tokens. Never changed, so checkpointed layers can be recomputed."""

    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    positions: Tensor  # [3, 1, T] temporal, height and width positions (M-RoPE)
    places: Tensor  # [padded places] the row that stands at each place (0 where none does)
    valid: Tensor  # [padded places, 1] 1.0 where a row stands, else 0.0
    rows: Tensor  # [T] the place of each row
    keep: bool  # whether later rounds see this round's branches (prefixes always stay)
    next_positions: tuple[int, ...]  # the position that follows each prefix

    @property
    def tokens(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str) -> "Layout":
        """The same layout with its tensors on a device."""
        groups = tuple(replace(g, mask=g.mask.to(device)) for g in self.groups)
        moved = {name: getattr(self, name).to(device) for name in ("positions", "places", "valid", "rows")}
        return replace(self, groups=groups, **moved)

    def branch_rows(self, branch: int) -> list[range]:
        """Rows of one branch number, for every sample (empty where it has no such branch)."""
        rows = {s.sample: range(s.row, s.row + s.length) for s in self.segments if s.branch == branch}
        return [rows.get(sample, range(0)) for sample in range(len(self.next_positions))]


def first_round(prefix_positions: list[Tensor], branches: list[list[int]], keep: bool = False) -> Layout:
    """The round that runs the prefixes and the branches whose inputs are known.

    prefix_positions: per sample [3, P_i]; branches: per sample the length of each of its branches.
    Rows: all prefixes, then the branches sample by sample.
    """
    lengths = [p.shape[1] for p in prefix_positions]
    following = tuple(int(p.max()) + 1 for p in prefix_positions)
    groups = tuple((members, None) for members in _similar(lengths))
    return _build(groups, lengths, branches, None, following, keep, prefix_positions)


def next_round(last: Layout, branches: list[list[int]], starts: list[list[int]], keep: bool = False) -> Layout:
    """A round of branches over the prefixes of earlier rounds.

    branches: per sample the number of new tokens of each branch (0: the branch stands still);
    starts: per sample and branch, how far behind the prefix its first new token stands.
    Branch b continues the kept branch b of the round before.
    """
    groups = tuple((g.samples, g.key_branches) for g in last.groups)
    lengths = [0] * len(branches)
    return _build(groups, lengths, branches, starts, last.next_positions, keep, None)


def _similar(lengths: list[int]) -> list[tuple[int, ...]]:
    """Samples in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[sample] >= WIDEST * lengths[groups[-1][0]]:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [tuple(sorted(group)) for group in groups]


def _build(
    groups: Sequence[tuple[tuple[int, ...], np.ndarray | None]],  # samples, and the branches of remembered keys
    lengths: list[int],  # of the prefixes this round runs
    branches: list[list[int]],
    starts: list[list[int]] | None,
    following: tuple[int, ...],
    keep: bool,
    prefix_positions: list[Tensor] | None,
) -> Layout:
    segments: list[Segment] = []
    positions: list[Tensor] = []
    row = 0
    if prefix_positions is not None:
        for sample, length in enumerate(lengths):
            segments.append(Segment(sample, PREFIX, row, length))
            row += length
        positions.extend(prefix_positions)
    of_sample: list[list[Segment]] = [[] for _ in branches]
    for sample, sizes in enumerate(branches):
        for branch, size in enumerate(sizes):
            if size:
                of_sample[sample].append(Segment(sample, branch, row, size))
                first = following[sample] + (starts[sample][branch] if starts else 0)
                positions.append(torch.arange(first, first + size).expand(3, -1))
                row += size
        segments.extend(of_sample[sample])
    if not row:
        raise ValueError("a round without any token: give at least one branch a length above 0")
    prefix_row = np.concatenate([[0], np.cumsum(lengths)])
    places: list[np.ndarray] = []
    built, start = [], 0
    for members, remembered in groups:
        width = max(lengths[i] for i in members)
        queries = max(sum(s.length for s in of_sample[i]) for i in members)
        prefix_places = np.full((len(members), width), -1)
        query_places = np.full((len(members), queries), -1)
        query_branches = np.full((len(members), queries), NOTHING)
        for n, i in enumerate(members):
            prefix_places[n, : lengths[i]] = prefix_row[i] + np.arange(lengths[i])
            at = 0
            for s in of_sample[i]:
                query_places[n, at : at + s.length] = s.row + np.arange(s.length)
                query_branches[n, at : at + s.length] = s.branch
                at += s.length
        earlier = np.where(prefix_places >= 0, PREFIX, NOTHING) if remembered is None else remembered
        keys = np.concatenate([earlier, query_branches], axis=1)
        built.append(Group(members, start, width, queries, _mask(keys, query_branches), keys if keep else earlier))
        places.extend((prefix_places.ravel(), query_places.ravel()))
        start += len(members) * (width + queries)
    flat = np.concatenate(places)
    where = np.empty(row, dtype=np.int64)
    where[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return Layout(
        segments=tuple(segments),
        groups=tuple(built),
        positions=torch.cat(positions, dim=1)[:, None],
        places=torch.from_numpy(np.maximum(flat, 0)),
        valid=torch.from_numpy((flat >= 0).astype(np.float32))[:, None],
        rows=torch.from_numpy(where),
        keep=keep,
        next_positions=following,
    )


def _mask(keys: np.ndarray, queries: np.ndarray) -> Tensor:
    """[N, 1, Q, K]: the whole prefix, and the same branch up to the query itself."""
    columns = np.arange(keys.shape[1])
    own_column = keys.shape[1] - queries.shape[1] + np.arange(queries.shape[1])
    same = keys[:, None, :] == queries[:, :, None]
    seen = (keys[:, None, :] == PREFIX) | (same & (columns[None, None, :] <= own_column[None, :, None]))
    return torch.from_numpy(seen & (keys[:, None, :] != NOTHING))[:, None]
