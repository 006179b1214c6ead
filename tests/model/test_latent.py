"""The Gaussians: closed-form KLs, their zero start, bounds, and the size of what enters the model."""

import copy

import pytest
import torch

from model.latent import LOG_SIGMA, Gaussian, GaussianHead, Injection, LatentConfig, Slots, kl

CONFIG = LatentConfig(slots=3, width=5, head_width=16)


def test_kl_against_monte_carlo():
    torch.manual_seed(0)
    a, b = (Gaussian(torch.randn(1, 3, 4).double(), 0.5 * torch.randn(1, 3, 4).double()) for _ in range(2))
    p, q = (torch.distributions.Normal(g.mean, g.log_sigma.exp()) for g in (a, b))
    draws = p.sample((400_000,))
    difference = p.log_prob(draws) - q.log_prob(draws)
    error = difference.std(0) / difference.shape[0] ** 0.5
    assert ((kl(a, b) - difference.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(kl(a, b), torch.distributions.kl_divergence(p, q))


def test_kl_of_a_gaussian_to_itself_is_exactly_zero():
    g = Gaussian(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert (kl(g, g) == 0).all()


def test_kl_gradients_are_those_of_the_derivation():
    """To the second argument: mean (m2 - m1)/s2^2, log sigma 1 - (s1^2 + D^2)/s2^2."""
    a, b = (Gaussian(torch.randn(1, 2, 3), 0.3 * torch.randn(1, 2, 3)) for _ in range(2))
    b.mean.requires_grad_(), b.log_sigma.requires_grad_()
    kl(a, b).sum().backward()
    distance, variance = a.mean - b.mean, (2 * b.log_sigma).exp()
    torch.testing.assert_close(b.mean.grad, -distance / variance)
    torch.testing.assert_close(b.log_sigma.grad, 1 - ((2 * a.log_sigma).exp() + distance**2) / variance)


@pytest.mark.parametrize("sigma", [1.0, 0.05, 3.0])
def test_heads_start_at_one_gaussian_and_stay_in_bounds(sigma: float):
    head = GaussianHead(8, CONFIG.model_copy(update={"sigma": sigma}))
    head.reset()
    start = head(torch.randn(2, 3, 8))
    assert (start.mean == 0).all()
    torch.testing.assert_close(start.log_sigma.exp(), torch.full((2, 3, 5), sigma))
    torch.nn.init.normal_(head.outer.weight, std=100)
    low, high = head(torch.randn(50, 3, 8)).log_sigma.aminmax()
    assert LOG_SIGMA[0] <= low < -3.9
    assert 1.9 < high <= LOG_SIGMA[1]


def test_heads_compute_in_fp32_when_kept_in_bf16():
    torch.manual_seed(0)
    head = GaussianHead(8, CONFIG)
    head.reset()
    torch.nn.init.normal_(head.outer.weight)
    head.bfloat16()
    states = torch.randn(2, 3, 8).bfloat16()
    exact = copy.deepcopy(head).float()
    exact.norm.bfloat16()
    mean, log_sigma = head(states)
    assert mean.dtype == log_sigma.dtype == torch.float32
    torch.testing.assert_close(mean, exact(states).mean, rtol=1e-6, atol=1e-6)


def test_inputs_have_the_embedding_size():
    scale = torch.tensor(0.3)
    injection, slots = Injection(8, CONFIG), Slots(3, 8)
    injection.reset(), slots.reset()
    z = torch.randn(2, 3, 5)
    for vectors in (injection(z, scale), injection(100 * z, scale), injection(0 * z, scale), slots(scale)):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.full(vectors.shape[:-1], 0.3 * 8**0.5))
    assert not torch.allclose(injection(z, scale)[0], injection(z, scale)[1])


def test_sample_is_mean_plus_sigma_noise():
    g = Gaussian(torch.ones(1, 1, 2), torch.full((1, 1, 2), 2.0).log())
    assert torch.allclose(g.sample(torch.tensor([[[1.0, -1.0]]])), torch.tensor([[[3.0, -1.0]]]))
