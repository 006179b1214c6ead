"""Every token belongs to one place, and a packed row attends as its samples do alone."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import Round, packed_attention
from model.layout import PREFIX, Layout, first_round, next_round

HEADS, GROUPS, SIZE = 4, 2, 8
BRANCHES = st.lists(st.integers(0, 4), min_size=2, max_size=2)
SHAPES = st.lists(st.tuples(st.integers(1, 12), BRANCHES, BRANCHES), min_size=1, max_size=5).filter(
    lambda shapes: any(sum(later) for _, _, later in shapes)
)


class Layer(torch.nn.Module):
    layer_idx = 0


def positions(length: int) -> torch.Tensor:
    return torch.arange(length).expand(3, -1)


def two_rounds(shapes, keep: bool) -> tuple[Layout, Layout]:
    """Round 1 with the first branch lengths, round 2 with the second."""
    first = first_round([positions(p) for p, _, _ in shapes], [a for _, a, _ in shapes], keep=keep)
    starts = [list(a) if keep else [0, 0] for _, a, _ in shapes]
    return first, next_round(first, [b for _, _, b in shapes], starts, keep=keep)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans())
def test_every_token_has_one_place(shapes, keep):
    for layout in two_rounds(shapes, keep):
        covered = [row for s in layout.segments for row in range(s.row, s.row + s.length)]
        assert sorted(covered) == list(range(layout.tokens))
        assert len(set(layout.rows.tolist())) == layout.tokens
        assert layout.places[layout.rows].tolist() == list(range(layout.tokens))
        assert int(layout.valid.sum()) == layout.tokens
        assert layout.positions.shape == (3, 1, layout.tokens)


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


def dense(q, k, v, scale):
    """Causal attention of the last queries, in float64, head by head. All [tokens, heads, size]."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)))
    scores = q @ k.transpose(1, 2) * scale
    hidden = torch.ones(q.shape[1], k.shape[1]).triu(k.shape[1] - q.shape[1] + 1).bool()
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.booleans(), st.integers(0, 2**31))
def test_packed_attention_is_that_of_each_branch_alone(shapes, keep, seed):
    torch.manual_seed(seed)
    layouts = two_rounds(shapes, keep)
    rows = [
        [torch.randn(1, h, layout.tokens, SIZE, requires_grad=True) for h in (HEADS, GROUPS, GROUPS)]
        for layout in layouts
    ]
    round_, outputs = None, []
    for layout, (q, k, v) in zip(layouts, rows, strict=True):
        round_ = Round(layout, round_)
        outputs.append(packed_attention(Layer(), q, k, v, None, 0.3, round_=round_)[0][0])
    weights = [torch.randn_like(out) for out in outputs]
    sum((out * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
    got = [x.grad for triple in rows for x in triple]
    expected_loss = torch.zeros((), dtype=torch.float64)
    leaves = [[x.detach().clone().requires_grad_() for x in triple] for triple in rows]

    def pick(round_number: int, sample: int, branch: int, which: int) -> torch.Tensor:
        segments = [s for s in layouts[round_number].segments if (s.sample, s.branch) == (sample, branch)]
        x = leaves[round_number][which][0].transpose(0, 1)
        return torch.cat([x[s.row : s.row + s.length] for s in segments] or [x[:0]])

    for number, layout in enumerate(layouts):
        for s in layout.segments:
            seen = [(0, PREFIX)] if s.branch == PREFIX else [(0, PREFIX), (number, s.branch)]
            if number == 1 and keep:
                seen.insert(1, (0, s.branch))
            k, v = (torch.cat([pick(n, s.sample, b, which) for n, b in seen]) for which in (1, 2))
            reference = dense(pick(number, s.sample, s.branch, 0), k, v, 0.3)
            out = outputs[number][s.row : s.row + s.length]
            torch.testing.assert_close(out.double(), reference, atol=2e-6, rtol=1e-5)
            expected_loss = expected_loss + (reference * weights[number][s.row : s.row + s.length]).sum()
    expected_loss.backward()
    for mine, leaf in zip(got, [x for triple in leaves for x in triple], strict=True):
        torch.testing.assert_close(
            mine, leaf.grad if leaf.grad is not None else torch.zeros_like(leaf), atol=1e-5, rtol=1e-4
        )


def test_padding_is_never_seen():
    """Large values at other samples must not leak into a short one."""
    layout = first_round([positions(3), positions(4)], [[2], [1]])
    q, k, v = (torch.randn(1, h, layout.tokens, SIZE) for h in (HEADS, GROUPS, GROUPS))
    before = packed_attention(Layer(), q, k, v, None, 0.3, round_=Round(layout))[0]
    other = [row for s in layout.segments if s.sample == 1 for row in range(s.row, s.row + s.length)]
    mine = [row for row in range(layout.tokens) if row not in other]
    k, v = k.clone(), v.clone()
    k[:, :, other], v[:, :, other] = 1e4, 1e4
    after = packed_attention(Layer(), q, k, v, None, 0.3, round_=Round(layout))[0]
    assert torch.equal(before[0, mine], after[0, mine])
    assert not torch.equal(before[0, other], after[0, other])
    assert F.cosine_similarity(before[0, other].flatten(), after[0, other].flatten(), dim=0) < 0.9
