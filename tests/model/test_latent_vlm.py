"""The gradient contract, and packed rounds against three separate, unpacked passes of transformers' own code."""

from dataclasses import replace

import pytest
import torch

from benchmarks.reference import plain_copy, separate_loss
from data.processor import Encoded
from model.batch import collate
from model.build import FAMILIES
from model.latent_vlm import PARTS, LatentVLM, Weights
from model.objective import RECIPES
from tests.tiny import MARKERS, encoded, mixed_samples, tiny_model

WEIGHTS = Weights(beta=0.7, gamma=0.4, per_token=0.05, per_nat=0.03)
PRIOR, POSTERIOR = ("slots.", "prior."), ("posterior_slots.", "posterior.")


def gradients(model: LatentVLM, weights: Weights = WEIGHTS) -> dict[str, torch.Tensor]:
    model.zero_grad()
    take_step(model, mixed_samples(), weights)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def take_step(model: LatentVLM, samples: list[Encoded], weights: Weights = WEIGHTS) -> torch.Tensor:
    """Adds the gradients of a micro-step. Returns its loss."""
    losses, _ = model(collate(samples, model.recipe, model.config, model.backbone, MARKERS, seed=3), weights)
    total = torch.zeros(())
    for loss in losses:
        loss.backward()
        total += loss.detach()
    return total


def largest(grads: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> float:
    found = [g.abs().max().item() for n, g in grads.items() if n.startswith(prefixes)]
    assert found, f"no gradient of {prefixes}"
    return max(found)


@pytest.mark.parametrize("checkpoint_layers", [0, 2, 3])
@pytest.mark.parametrize("objective", list(RECIPES))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_packed_rounds_equal_three_separate_passes(objective: str, checkpoint_layers: int, family: str):
    check_packed(objective, checkpoint_layers, family)


@pytest.mark.parametrize("objective", [name for name, recipe in RECIPES.items() if recipe.rounds == 2])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_packed_rounds_equal_three_separate_passes_in_a_bottleneck(objective: str, family: str):
    check_packed(objective, 2, family, bottleneck=True)


def check_packed(objective: str, checkpoint_layers: int, family: str, bottleneck: bool = False) -> None:
    model = tiny_model(objective, checkpoint_layers, family=family, bottleneck=bottleneck)
    packed = gradients(model)
    plain = plain_copy(tiny_model(objective, family=family, bottleneck=bottleneck))
    loss = sum(separate_loss(plain, [s], MARKERS, 3, WEIGHTS) for s in mixed_samples())
    loss.backward()
    torch.testing.assert_close(take_step(model, mixed_samples()), loss.detach(), rtol=1e-5, atol=0)
    differences = {}
    for name, parameter in plain.named_parameters():
        if parameter.grad is None or parameter.grad.norm() == 0:
            assert name not in packed or packed[name].abs().max() < 1e-7, name
            continue
        differences[name] = ((packed[name] - parameter.grad).norm() / parameter.grad.norm()).item()
    name = max(differences, key=lambda n: differences[n])
    print(f"worst relative gradient difference {differences[name]:.1e}, of {name}")  # shown by pytest -rP
    assert differences[name] <= 1e-5
    assert len(differences) > 60


@pytest.mark.parametrize("bottleneck", [False, True])
def test_gradient_contract(bottleneck: bool):
    """The forward KL trains the prior alone, next-token loss and reverse KL the posterior alone."""
    model = tiny_model(bottleneck=bottleneck)
    ntp = gradients(model, Weights(0, 0, 1, 0))
    forward = gradients(model, Weights(1, 0, 0, 1))
    reverse = gradients(model, Weights(0, 1, 0, 1))
    assert largest(ntp, PRIOR) == 0
    assert largest(forward, POSTERIOR) == 0
    assert largest(reverse, PRIOR) == 0
    for term, prefixes in ((ntp, POSTERIOR), (forward, PRIOR), (reverse, POSTERIOR), (ntp, ("injection.",))):
        assert largest(term, prefixes) > 1e-6


def test_gradient_contract_without_stop_gradients():
    elbo = gradients(tiny_model("elbo"), Weights(1, 0, 0, 1))
    assert largest(elbo, PRIOR) > 1e-6
    assert largest(elbo, POSTERIOR) > 1e-6


@pytest.mark.parametrize("lengths", [(4, 6), (9, 2)])
def test_prior_does_not_see_the_answer(lengths: tuple[int, int]):
    """Bit for bit. Other lengths make another row, whose matrix products may round otherwise in the last bit."""
    model = tiny_model()
    prior = []
    for seed, sizes in ((0, (4, 6)), (1, lengths)):
        samples = [encoded("a", [(4, 4)], 9, 4), encoded("b", [], 12, 6)]
        generator = torch.Generator().manual_seed(seed)
        samples = [
            replace(s, answer=torch.randint(0, 480, (n,), generator=generator))
            for s, n in zip(samples, sizes, strict=True)
        ]
        batch = collate(samples, model.recipe, model.config, model.backbone, MARKERS)
        states, _ = model.prompt_round(batch)
        prior.append(model.prior_of(batch, states))
        posterior = model.posterior_of(batch, states)
        assert not torch.equal(posterior.mean, prior[-1].mean)
    for a, b in zip(*prior, strict=True):
        if lengths == (4, 6):
            assert torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_kls_are_zero_at_the_start():
    model = tiny_model(settled=False)
    batch = collate(mixed_samples(), model.recipe, model.config, model.backbone, MARKERS)
    parts = dict(zip(PARTS, model(batch, WEIGHTS)[1].tolist(), strict=True))
    assert parts["forward"] == parts["reverse"] == 0.0
    assert parts["sigma_p"] / parts["samples"] == pytest.approx(1.0)
    assert parts["tokens"] == sum(len(s.answer) for s in mixed_samples())


@pytest.mark.parametrize("objective", ["sft", "pause", "deterministic", "amvl"])
def test_batch_of_n_is_n_batches_of_one(objective: str):
    model = tiny_model(objective)
    together = gradients(model)
    model.zero_grad()
    for sample in mixed_samples():
        take_step(model, [sample])
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = together[name].norm().clamp(min=1e-12)
            assert (parameter.grad - together[name]).norm() <= 1e-5 * scale, name


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_batch_without_images_reaches_the_vision_tower(family: str):
    """ZeRO-3 hangs when one rank skips a module that another runs."""
    model = tiny_model(family=family)
    take_step(model, [encoded("a", [], 9, 4)])
    found = [p.grad for p in model.backbone.vision.parameters()]
    assert all(g is not None and (g == 0).all() for g in found)
