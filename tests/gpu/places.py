"""What the tests of the fused back ends run on: each back end on a GPU, and a float64 kernel on the CPU."""

import itertools
from collections.abc import Iterable
from typing import Any, cast

import pytest

from model.attention import KERNELS, BackEnd, Choice, choose
from tests.attention import DenseKernel

FLOAT64 = "float64"


def back_end(name: str) -> tuple[BackEnd, str]:
    """The back end of a name and its device; skips the test where it cannot run, and says why."""
    if name == FLOAT64:
        return BackEnd("varlen", "in float64, for tests", DenseKernel()), "cpu"
    reason = None if name == "varlen" else KERNELS[name].missing()
    if reason:  # flash-attn is not part of every installation; PyTorch's own kernel has to run
        pytest.skip(reason)
    return choose(cast(Choice, name), {}, bf16=True), "cuda"


everywhere = pytest.mark.parametrize(
    "name", [FLOAT64, *(pytest.param(name, marks=pytest.mark.gpu) for name in KERNELS)]
)


def everywhere_with(what: str, cpu: Any, gpu: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by `name`, as above, and by something else: one value on the CPU, each of many on a GPU."""
    many = itertools.product(KERNELS, gpu)
    return pytest.mark.parametrize(
        ("name", what), [(FLOAT64, cpu), *(pytest.param(name, value, marks=pytest.mark.gpu) for name, value in many)]
    )
