"""Both kinds of plan against a dense float64 reference, with a float64 kernel in place of the fused ones (which want
a GPU: tests/gpu), and the choice of the back end."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model import attention_padded, attention_varlen
from model.attention import SDPA, AttentionError, BackEnd, Round, choose, packed_attention
from model.attention_padded import PaddedPlan
from model.layout import first_round
from tests.attention import SHAPES, DenseKernel, Layer, dense_with_lse, errors, positions, two_rounds

VARLEN = BackEnd("varlen", "in float64, for tests", DenseKernel())
BACK_ENDS = pytest.mark.parametrize("back_end", [SDPA, VARLEN], ids=lambda b: b.name)
HEADS = st.sampled_from([(4, 2, 8), (6, 1, 16), (3, 3, 10), (8, 2, 64), (4, 1, 80), (2, 2, 128)])


@BACK_ENDS
@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans(), HEADS, st.integers(0, 2**31))
def test_packed_attention_is_that_of_each_branch_alone(back_end, shapes, keep, heads, seed):
    forward, backward = errors(back_end, shapes, keep, heads, seed, "cpu", torch.float32)
    assert forward < 5e-6
    assert backward < 2e-5


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans())
def test_every_token_has_one_padded_place(shapes, keep):
    plan = None
    for layout in two_rounds(shapes, keep):
        plan = PaddedPlan.of(layout, plan)
        assert len(set(plan.rows.tolist())) == layout.tokens
        assert plan.places[plan.rows].tolist() == list(range(layout.tokens))
        assert int(plan.valid.sum()) == layout.tokens


@BACK_ENDS
def test_other_samples_are_never_seen(back_end):
    """Large values at other samples must not leak into a short one."""
    layout = first_round([positions(3), positions(4)], [[2], [1]])
    q, k, v = (torch.randn(1, h, layout.tokens, 8) for h in (4, 2, 2))
    before = packed_attention(Layer(), q, k, v, None, 0.3, round_=Round.of(back_end, layout))[0]
    other = [row for s in layout.segments if s.sample == 1 for row in range(s.row, s.row + s.length)]
    mine = [row for row in range(layout.tokens) if row not in other]
    k, v = k.clone(), v.clone()
    k[:, :, other], v[:, :, other] = 1e4, 1e4
    after = packed_attention(Layer(), q, k, v, None, 0.3, round_=Round.of(back_end, layout))[0]
    assert torch.equal(before[0, mine], after[0, mine])
    assert not torch.equal(before[0, other], after[0, other])
    assert F.cosine_similarity(before[0, other].flatten(), after[0, other].flatten(), dim=0) < 0.9


def test_prefixes_are_not_copied():
    """What a layer keeps of a prefix, and hands to the kernel for the branches, is the row's own memory."""
    seen = []

    class Watching(DenseKernel):
        def forward(self, q, k, v, spans, scale):
            seen.append(k.data_ptr())
            return super().forward(q, k, v, spans, scale)

    layout = first_round([positions(5), positions(7)], [[2, 3], [1, 2]])
    rows = [torch.randn(1, layout.tokens, h, 8).transpose(1, 2) for h in (4, 2, 2)]
    packed_attention(Layer(), *rows, None, 0.3, round_=Round.of(BackEnd("varlen", "", Watching()), layout))
    assert seen[0] == seen[1] == rows[1].data_ptr()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([1, 4, 4, 4, 9, 16]), min_size=1, max_size=7), st.integers(0, 2**31))
def test_chunks_attend_to_themselves(lengths, seed):
    torch.manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    rows = [torch.randn(sum(lengths), 2, 16, requires_grad=True) for _ in range(3)]
    leaves = [x.detach().double().requires_grad_() for x in rows]
    pieces = zip(*(x.split(lengths) for x in leaves), strict=True)
    reference = torch.cat([dense_with_lse(*piece, causal=False, scale=0.3)[0] for piece in pieces])
    reference.square().sum().backward()
    for attend in (
        lambda: attention_padded.attend_chunks(*rows, bounds, 0.3),
        lambda: attention_varlen.attend_chunks(*rows, bounds.int(), max(lengths), 0.3, DenseKernel()),
    ):
        for x in rows:
            x.grad = None
        out = attend()
        torch.testing.assert_close(out.double(), reference, atol=5e-6, rtol=1e-5)
        out.square().sum().backward()
        for x, leaf in zip(rows, leaves, strict=True):
            torch.testing.assert_close(x.grad.double(), leaf.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["flash", "varlen"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_fused_back_end_without_a_gpu(name):
    with pytest.raises(AttentionError, match=f"attention '{name}': no CUDA GPU; set it to auto or sdpa"):
        choose(name, {"language model": 128}, bf16=True)
    chosen = choose("auto", {"language model": 128}, bf16=True)
    assert chosen.name == "sdpa"
    assert "no flash: no CUDA GPU; no varlen: no CUDA GPU" in str(chosen)


@pytest.mark.parametrize("size", [20, 264])
def test_a_head_size_no_fused_back_end_takes(size):
    with pytest.raises(AttentionError, match=f"the vision tower's head size {size} is not a multiple of 8 up to 256"):
        choose("varlen", {"vision tower": size}, bf16=True)
    assert choose("sdpa", {"vision tower": size}, bf16=True).name == "sdpa"
