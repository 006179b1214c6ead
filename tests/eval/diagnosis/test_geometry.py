"""The shape of clouds made by hand."""

from math import exp, sqrt

import pytest
import torch
from torch import Tensor

from eval.diagnosis.findings import Geometry
from eval.diagnosis.geometry import effective_rank, geometry_of
from model.latent import Gaussian


def of(means: Tensor, log_sigma: float = 0.0, log_sigma_q: Tensor | None = None) -> Geometry:
    return geometry_of(Gaussian(means, torch.full_like(means, log_sigma)), log_sigma_q)


@pytest.mark.parametrize("r", [1, 2, 5])
def test_effective_rank_counts_equal_directions(r: int) -> None:
    """Points at both ends of each: they are centred already."""
    directions = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0][:r]
    points = torch.cat([3 * directions, -3 * directions]) + 7
    assert effective_rank(points) == pytest.approx(r, abs=1e-5)


def test_effective_rank_of_unequal_directions() -> None:
    """Singular values 3 and 1: the entropy of 3/4 and 1/4."""
    points = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    assert effective_rank(points) == pytest.approx((3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4), rel=1e-6)


def test_effective_rank_of_one_point() -> None:
    assert effective_rank(torch.ones(6, 4)) == 1
    assert effective_rank(torch.zeros(6, 4)) == 1


def test_items_that_are_all_alike() -> None:
    """A collapsed cloud: no spread, though slots differ."""
    found = of(torch.tensor([[3.0, 0], [0, 4]]).repeat(5, 1, 1))
    assert found.effective_rank == 1 and found.spread == 0 and found.slot_spread == [0, 0]
    assert found.across == pytest.approx(1) and found.within == pytest.approx(0)
    assert found.most_rank == 4


def test_items_at_right_angles_with_slots_alike() -> None:
    means = torch.eye(4)[:, None].repeat(1, 3, 1) * 2
    found = of(means)
    assert found.within == pytest.approx(1) and found.across == pytest.approx(0)
    assert found.effective_rank == pytest.approx(3, abs=1e-5), "four corners stand in three directions"
    assert found.most_rank == 3
    # Of length 2, each 2 sqrt(3/4) from the mean; per dimension of 4.
    assert found.spread == pytest.approx(sqrt(3 / 4))
    assert found.slot_spread == pytest.approx([sqrt(3) / 2] * 3)


def test_slots_that_differ_in_spread_and_sign() -> None:
    """The first slot is the same everywhere; the second is its opposite, longer or shorter."""
    means = torch.stack([torch.tensor([[1.0, 0], [-1 - s, 0]]) for s in (-0.5, 0.5)])
    found = of(means)
    assert found.within == pytest.approx(-1) and found.across == pytest.approx(1)
    assert found.slot_spread == pytest.approx([0, sqrt(0.25 / 2)])
    assert found.spread == pytest.approx(sqrt(0.25 / 4) / sqrt((1 + 1 + 0.25 + 2.25) / 8))
    assert found.most_rank == 1


def test_one_slot_has_no_cosine_within() -> None:
    assert of(torch.randn(4, 1, 3)).within is None


def test_sigmas_are_means_by_slot() -> None:
    log_sigma_q = torch.tensor([[[-1.0, -1], [-2, -2]], [[0, 0], [-2, -2]]])
    found = of(torch.randn(2, 2, 2), 0.5, log_sigma_q)
    assert found.sigma_prior == pytest.approx([exp(0.5)] * 2)
    assert found.sigma_posterior == pytest.approx([(exp(-1) + 1) / 2, exp(-2)])
    assert of(torch.randn(2, 2, 2)).sigma_posterior is None
