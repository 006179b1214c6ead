"""What is said of Gaussians made by hand. Gradients over ranks: tests/distributed/test_vitals.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.batch import collate
from model.latent import Gaussian
from model.latent_vlm import Latents, Weights
from model.objective import RECIPES
from tests.tiny import MARKERS, mixed_samples, tiny_model
from trainer.health import HealthConfig
from trainer.vitals import Statistics, Vitals, losses

WEIGHTS = Weights(beta=0.5, gamma=0.25, per_token=0.1, per_nat=0.2)


def gaussian(means: list[list[float]], sigmas: list[list[float]] | None = None) -> Gaussian:
    """Of one slot: a row per sample, a column per dimension; standard deviations 1 where none are named."""
    mean = torch.tensor(means)[:, None]
    return Gaussian(mean, torch.tensor(sigmas)[:, None].log() if sigmas else torch.zeros_like(mean))


def latents(prior: Gaussian, posterior: Gaussian | None = None, norm: float = 3.0) -> Latents:
    injected = torch.zeros(len(prior.mean), 4)
    injected[:, 1] = norm
    return Latents(prior, posterior, injected)


def metrics(*each: Latents) -> dict[str, float]:
    found = Statistics()
    for one in each:
        found.add(one)
    return found.metrics(embedding_norm=2.0)


def test_kls_and_distance_of_known_gaussians():
    """By dimension: the same; means one apart; sigma 2 against 1, so that the KLs differ."""
    p = gaussian([[0.0, 1.0, 0.0], [5.0, 0.0, 1.0]])
    q = gaussian([[0.0, 2.0, 0.0], [5.0, 1.0, 1.0]], [[1.0, 1.0, 2.0]] * 2)
    found = metrics(latents(p, q))
    forward, reverse = [0.0, 0.5, 1.5 - 0.693147], [0.0, 0.5, -0.375 + 0.693147]
    for name, each in (("forward_kl", forward), ("reverse_kl", reverse)):
        assert found[f"{name}/per_sample"] == pytest.approx(sum(each), abs=1e-5)
        assert found[f"{name}/per_dimension"] == pytest.approx(sum(each) / 3, abs=1e-5)
        assert found[f"active/{name}"] == 2
    assert found["distance_in_prior_sigmas"] == pytest.approx((1 / 3) ** 0.5)


def test_distance_is_in_sigmas_of_the_prior():
    p, q = gaussian([[0.0]], [[4.0]]), gaussian([[2.0]], [[0.1]])
    assert metrics(latents(p, q))["distance_in_prior_sigmas"] == pytest.approx(0.5)


def test_a_dimension_is_active_by_its_mean_over_samples():
    """0.02 nats in one of four samples are 0.005 in the mean; a mean far from 0 that never moves is not active."""
    p = gaussian([[0.0, 7.0, 0.0]] * 4)
    q = gaussian([[0.2, 7.0, 1.0], [0.0, 7.0, -1.0], [0.0, 7.0, 1.0], [0.0, 7.0, -1.0]])
    found = metrics(latents(p, q))
    assert (found["active/forward_kl"], found["active/reverse_kl"]) == (1, 1)
    assert (found["active/prior"], found["active/posterior"]) == (0, 1)


def test_spreads_and_what_is_injected():
    p = gaussian([[0.0, 0.0]], [[0.5, 1.0]])
    q = gaussian([[0.0, 0.0]], [[2.0, 0.1]])
    found = metrics(latents(p, q, norm=3.0), latents(p, q, norm=5.0))
    assert found["sigma_prior/mean"] == pytest.approx(0.75) and found["sigma_posterior/mean"] == pytest.approx(1.05)
    assert found["sigma_prior/min"] == pytest.approx(0.5) and found["sigma_prior/max"] == pytest.approx(1.0)
    assert found["sigma_posterior/min"] == pytest.approx(0.1) and found["sigma_posterior/max"] == pytest.approx(2.0)
    assert found["injected_norm"] == pytest.approx((3 + 5) / 2 / 2.0)


def test_micro_steps_are_one_sum():
    torch.manual_seed(0)
    p, q = (Gaussian(torch.randn(6, 2, 3), torch.randn(6, 2, 3) / 4) for _ in range(2))
    rows = torch.rand(12, 4)
    parts = [
        Latents(Gaussian(*(x[a:b] for x in p)), Gaussian(*(x[a:b] for x in q)), rows[2 * a : 2 * b])
        for a, b in ((0, 1), (1, 6))
    ]
    assert metrics(*parts) == pytest.approx(metrics(Latents(p, q, rows)))


def test_without_a_posterior_the_prior_is_spoken_of():
    found = metrics(latents(gaussian([[0.0], [1.0]])))
    assert set(found) == {"injected_norm", "active/prior", "sigma_prior/mean", "sigma_prior/min", "sigma_prior/max"}
    assert found["active/prior"] == 1


@pytest.mark.parametrize("objective", ["sft", "pause", "deterministic", "ntp", "amvl"])
def test_the_model_shows_its_latents_and_is_not_changed_by_it(objective: str):
    model = tiny_model(objective)
    batch = collate(mixed_samples(), model.recipe, model.config, model.backbone, MARKERS)
    seen: list[Latents] = []
    shown, alone = model(batch, WEIGHTS, seen.append)[1], model(batch, WEIGHTS)[1]
    assert torch.equal(shown, alone)
    assert len(seen) == (model.recipe.rounds == 2)
    if seen:
        assert (seen[0].posterior is not None) == (objective != "deterministic")
        assert not any(x.requires_grad for x in (*seen[0].prior, seen[0].injected))
        rows = len(mixed_samples()) * model.config.slots
        assert seen[0].injected.norm(dim=1).tolist() == pytest.approx([model.embedding_norm().item()] * rows, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ("sft", ["ntp"]),
        ("deterministic", ["ntp"]),
        ("elbo", ["ntp", "forward_kl"]),
        ("reverse", ["ntp", "reverse_kl"]),
        ("amvl", ["ntp", "forward_kl", "reverse_kl"]),
    ],
)
def test_losses_alone_add_up_to_the_whole(objective: str, names: list[str]):
    each = losses(RECIPES[objective], WEIGHTS)
    assert list(each) == names
    assert sum(w.per_token for w in each.values()) == WEIGHTS.per_token
    assert sum(w.beta for w in each.values()) == (WEIGHTS.beta if "forward_kl" in names else 0)
    assert sum(w.gamma for w in each.values()) == (WEIGHTS.gamma if "reverse_kl" in names else 0)
    assert {w.per_nat for w in each.values()} == {WEIGHTS.per_nat}


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (500, [])])
def test_looks_are_every_so_many_steps(every: int, due: list[int]):
    config: Any = SimpleNamespace(health=HealthConfig(vitals_every=every), objective=SimpleNamespace(recipe=None))
    vitals = Vitals(config, None)
    assert [step for step in range(1, 7) if vitals.due(step)] == due
