"""The fused back ends against a dense float64 reference, over layouts that cross the kernels' blocks (64 or 128 rows).

They may be off by twice what PyTorch's own attention is in the same precision, plus a little: that may compute in
fp32 inside, where the fused kernels round the scores' weights, and the output of a branch is made of two.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import attention_padded, attention_varlen
from model.attention import KERNELS, SDPA, AttentionError, choose
from model.kernels import Kernel
from tests.attention import SCALE, SHAPES, dense_with_lse, errors, two_rounds
from tests.gpu.places import back_end, everywhere, everywhere_with

DTYPES = (torch.bfloat16, torch.float16)  # nothing trains in fp16; its errors are eight times smaller, so faults show
EXAMPLES = 50 if torch.cuda.is_available() else 8
# Query heads, key heads, head size: that of Qwen2.5-VL 7B first, then other ratios and sizes, the limits among them.
HEADS = [(28, 4, 128), (4, 4, 64), (4, 2, 80), (16, 2, 128), (8, 1, 64), (4, 2, 8), (2, 1, 256)]
TINY = (2, 1, 8)

# Per sample: the prefix's length, the branches' lengths in round 1, and in round 2.
LAYOUTS = {
    "one long sample": [(700, [80, 33], [80, 17])],
    "several, one of them without branches": [
        (1, [1, 2], [3, 0]),
        (700, [80, 12], [40, 9]),
        (129, [0, 0], [0, 0]),
        (64, [64, 0], [0, 65]),
        (333, [5, 80], [80, 1]),
    ],
    "branches in one round each": [(200, [70, 3], [0, 0]), (128, [0, 0], [66, 2])],
    # As in generation. With one query per sequence the kernels take query heads for rows.
    "single tokens": [(130, [1, 0], [1, 0]), (64, [1, 0], [1, 0]), (257, [1, 0], [1, 0])],
    "many short samples": [(20 + 7 * n % 90, [n % 9, 4], [n % 5, 6]) for n in range(12)],
}
LENGTHS = st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 300, 700]) | st.integers(1, 200)
BRANCHES = st.lists(st.sampled_from([0, 0, 1, 2, 63, 64, 65, 80]) | st.integers(0, 40), min_size=2, max_size=2)
WIDE = st.lists(st.tuples(LENGTHS, BRANCHES, BRANCHES), min_size=1, max_size=5).filter(
    lambda shapes: any(sum(later) for _, _, later in shapes)
)

CHUNKS = {
    "windows": [64] * 20 + [16, 32, 8, 4] * 2,  # of 8 x 8 patches, and those at an image's edges
    "images": [1024, 4, 260, 576],
}


def no_worse(fused: tuple[float, ...], padded: tuple[float, ...], dtype: torch.dtype, where: str) -> None:
    """Errors of a fused back end against those of sdpa: outputs, then gradients."""
    for what, ours, theirs in zip(("outputs", "gradients"), fused, padded, strict=True):
        allowed = 2 * (theirs + torch.finfo(dtype).eps)
        assert ours <= allowed, f"{what} in {dtype}, {where}: off by {ours:.1e}, allowed {allowed:.1e}"


def check_layout(name: str, shapes: list, keep: bool, heads: tuple[int, int, int], seed: int) -> None:
    fused, device = back_end(name)
    for dtype in DTYPES:
        ours, theirs = (errors(b, shapes, keep, heads, seed, device, dtype) for b in (fused, SDPA))
        no_worse(ours, theirs, dtype, f"{heads} heads, keep={keep}, seed {seed}, {shapes}")


@everywhere
@settings(deadline=None, max_examples=EXAMPLES)
@given(SHAPES, st.booleans(), st.sampled_from(HEADS), st.integers(0, 2**31))
def test_short_random_layouts(name, shapes, keep, heads, seed):
    check_layout(name, shapes, keep, heads, seed)


@everywhere_with("heads", TINY, HEADS)
@settings(deadline=None, max_examples=EXAMPLES)
@given(WIDE, st.booleans(), st.integers(0, 2**31))
def test_long_random_layouts(name, heads, shapes, keep, seed):
    check_layout(name, shapes, keep, heads, seed)


@everywhere_with("heads", TINY, HEADS)
def test_layouts_that_cross_blocks(name, heads):
    for shapes, keep in itertools.product(LAYOUTS.values(), (False, True)):
        check_layout(name, shapes, keep, heads, seed=5)


def chunk_errors(
    kernel: Kernel | None, lengths: list[int], heads: tuple[int, int], seed: int, device: str, dtype: torch.dtype
) -> tuple[float, float]:
    """As tests.attention.errors, of the vision tower's attention. heads: their number and size; no kernel: sdpa."""
    generator = torch.Generator().manual_seed(seed)
    number, size = heads
    leaves = [
        torch.randn(number, sum(lengths), size, generator=generator).to(device, dtype).requires_grad_()
        for _ in range(3)
    ]
    rows = [x.transpose(0, 1) for x in leaves]  # strided, as transformers hands them over
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0)
    if kernel is None:
        out = attention_padded.attend_chunks(*rows, bounds, SCALE)
    else:
        out = attention_varlen.attend_chunks(*rows, bounds.to(torch.int32), max(lengths), SCALE, kernel)
    weights = torch.randn(out.shape, generator=generator).to(device, dtype)
    (out.double() * weights).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    pieces = zip(*(x.transpose(0, 1).split(lengths) for x in exact), strict=True)
    reference = torch.cat([dense_with_lse(*piece, causal=False, scale=SCALE)[0] for piece in pieces])
    (reference * weights).sum().backward()
    off = max((x.grad - e.grad).abs().max().item() for x, e in zip(leaves, exact, strict=True))
    largest = max(e.grad.abs().max().item() for e in exact)
    return ((out - reference).abs().max() / reference.abs().max()).item(), off / largest


def check_chunks(name: str, lengths: list[int], heads: tuple[int, int], seed: int) -> None:
    fused, device = back_end(name)
    for dtype in DTYPES:
        ours, theirs = (chunk_errors(k, lengths, heads, seed, device, dtype) for k in (fused.kernel, None))
        no_worse(ours, theirs, dtype, f"{heads} heads, seed {seed}, {lengths}")


VISION_HEADS = [(16, 80), (16, 72), (16, 64), (2, 16)]  # Qwen2.5-VL, Qwen3-VL, Qwen3-VL 4B and smaller, the tests'


@everywhere_with("heads", (1, 8), VISION_HEADS)
def test_chunks_of_pictures(name, heads):
    for lengths in CHUNKS.values():
        check_chunks(name, lengths, heads, seed=7)


@everywhere_with("heads", (2, 16), VISION_HEADS)
@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.sampled_from([1, 4, 16, 63, 64, 65, 128, 200]), min_size=1, max_size=9), st.integers(0, 2**31))
def test_random_chunks(name, heads, lengths, seed):
    check_chunks(name, lengths, heads, seed)


@pytest.mark.gpu
def test_the_choice_on_a_gpu():
    heads = {"language model": 128, "vision tower": 80}
    assert choose("auto", heads, bf16=True).name == ("varlen" if KERNELS["flash"].missing() else "flash")
    assert choose("auto", heads, bf16=False).name == "sdpa"
    with pytest.raises(AttentionError, match=r"attention 'varlen': it wants bf16, train\.precision is fp32"):
        choose("varlen", heads, bf16=False)


def test_the_layouts_hold_what_they_say():
    first, second = two_rounds(LAYOUTS["several, one of them without branches"], keep=True)
    assert {s.sample for s in first.branches} == {s.sample for s in second.branches} == {0, 1, 3, 4}
    for layout in two_rounds(LAYOUTS["single tokens"], keep=True):
        assert [s.length for s in layout.branches] == [1, 1, 1]
