"""Which token of a packed row belongs to which prefix and branch, and who may see whom.

A row holds the tokens of many samples without padding. A token of a prefix sees the earlier tokens of
its prefix; a token of a branch sees its whole prefix and the earlier tokens of its branch, nothing else.
A round is one pass of the language model over such a row; later rounds hold branches only and see the
prefixes (and kept branches) of earlier rounds through the memory that attention keeps.

Letters in shapes: T tokens of the row.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

PREFIX = -1  # the branch number of prefix tokens


class Segment(NamedTuple):
    """A run of neighbouring tokens of one row: one prefix, or the new tokens of one branch."""

    sample: int
    branch: int
    row: int  # its first row
    length: int


@dataclass(frozen=True)
class Layout:
    """One round over one packed row of T tokens: all prefixes (if it runs them), then branches sample by sample."""

    segments: tuple[Segment, ...]
    positions: Tensor  # [3, 1, T] temporal, height and width positions (M-RoPE)
    keep: bool  # whether later rounds see this round's branches (prefixes always stay)
    next_positions: tuple[int, ...]  # the position that follows each prefix

    @property
    def tokens(self) -> int:
        return self.positions.shape[2]

    @property
    def samples(self) -> int:
        return len(self.next_positions)

    @property
    def prefixes(self) -> list[Segment]:
        """The prefixes that this round runs: one per sample, or none."""
        return [s for s in self.segments if s.branch == PREFIX]

    @property
    def branches(self) -> list[Segment]:
        return [s for s in self.segments if s.branch != PREFIX]

    def to(self, device: torch.device | str) -> "Layout":
        """The same layout with its positions on a device."""
        return replace(self, positions=self.positions.to(device, non_blocking=True))

    def kept(self, samples: list[list[int]]) -> "Layout":
        """What later rounds need of it, without the samples whose list is empty."""
        following = tuple(n for n, parents in zip(self.next_positions, samples, strict=True) if parents)
        return Layout((), self.positions[:, :, :0], self.keep, following)

    def prefix_ends(self) -> list[int]:
        """The last row of every prefix that this round runs."""
        return [s.row + s.length - 1 for s in self.prefixes]

    def last_rows(self) -> list[int]:
        """The last row of every branch, or of the prefix of a sample that has none; sample by sample."""
        rows: dict[tuple[int, int], int] = {}
        with_branches = {s.sample for s in self.branches}
        for s in self.segments:
            if s.branch != PREFIX or s.sample not in with_branches:
                rows[s.sample, s.branch] = s.row + s.length - 1
        return [rows[branch] for branch in sorted(rows)]

    def branch_rows(self, branch: int) -> list[range]:
        """Rows of one branch number, for every sample (empty where it has no such branch)."""
        rows = {s.sample: range(s.row, s.row + s.length) for s in self.segments if s.branch == branch}
        return [rows.get(sample, range(0)) for sample in range(self.samples)]


def first_round(prefix_positions: list[Tensor], branches: list[list[int]], keep: bool = False) -> Layout:
    """The round that runs the prefixes and the branches whose inputs are known.

    prefix_positions: per sample [3, P_i]; branches: per sample the length of each of its branches.
    """
    following = tuple(int(p.max()) + 1 for p in prefix_positions)
    return _build(prefix_positions, branches, [[0] * len(b) for b in branches], following, keep)


def next_round(last: Layout, branches: list[list[int]], starts: list[list[int]], keep: bool = False) -> Layout:
    """A round of branches over the prefixes of earlier rounds.

    branches: per sample the number of new tokens of each branch (0: the branch stands still);
    starts: per sample and branch, how far behind the prefix its first new token stands.
    Branch b continues the kept branch b of the rounds before.
    """
    return _build([], branches, starts, last.next_positions, keep)


def _build(
    prefix_positions: list[Tensor],
    branches: list[list[int]],
    starts: list[list[int]],
    following: tuple[int, ...],
    keep: bool,
) -> Layout:
    segments: list[Segment] = []
    row = 0
    for sample, prefix in enumerate(prefix_positions):
        segments.append(Segment(sample, PREFIX, row, prefix.shape[1]))
        row += prefix.shape[1]
    positions = list(prefix_positions)
    for sample, sizes in enumerate(branches):
        for branch, size in enumerate(sizes):
            if size:
                segments.append(Segment(sample, branch, row, size))
                first = following[sample] + starts[sample][branch]
                positions.append(torch.arange(first, first + size).expand(3, -1))
                row += size
    if not row:
        raise ValueError("a round without any token: give at least one branch a length above 0")
    return Layout(tuple(segments), torch.cat(positions, dim=1)[:, None], keep, following)
