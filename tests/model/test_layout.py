"""Rounds: every token in one segment, branches go on where their prefix ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.layout import PREFIX, first_round, next_round
from tests.attention import SHAPES, positions, two_rounds


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans())
def test_segments_cover_the_row(shapes, keep):
    for layout in two_rounds(shapes, keep):
        covered = [row for s in layout.segments for row in range(s.row, s.row + s.length)]
        assert covered == list(range(layout.tokens))
        assert layout.positions.shape == (3, 1, layout.tokens)
        assert layout.prefixes + layout.branches == list(layout.segments)


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_branches_continue_the_positions_of_their_prefix(shapes):
    first, second = two_rounds(shapes, keep=True)
    for layout, earlier in ((first, None), (second, [a for _, a, _ in shapes])):
        for s in layout.segments:
            if s.branch != PREFIX:
                start = shapes[s.sample][0] + (earlier[s.sample][s.branch] if earlier else 0)
                got = layout.positions[:, 0, s.row : s.row + s.length]
                assert torch.equal(got, torch.arange(start, start + s.length).expand(3, -1))


def test_a_round_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a round without any token"):
        next_round(first_round([positions(3)], [[1]]), [[0]], [[0]])
