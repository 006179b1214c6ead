"""The bottleneck: what an answer knows of the pictures it knows from z, in training and after."""

from dataclasses import replace

import pytest
import torch

from data.processor import Encoded
from model.batch import collate, cost, without_pictures
from model.generate import Decoding, generate, score
from model.latent_vlm import LatentVLM, Weights
from model.objective import RECIPES, ObjectiveConfig
from model.thinking import Thinking, prior_gaussians
from tests.tiny import IMAGE, MARKERS, mixed_samples, tiny_model
from trainer.throughput import Flops

OPTIONS = [[[3, 4], [5, 6, 7], [8]]] * 5
NTP = Weights(0, 0, 1, 0)


def other_pictures(samples: list[Encoded]) -> list[Encoded]:
    return [replace(s, pixels=torch.randn_like(s.pixels)) for s in samples]


def gradient_of_pixels(model: LatentVLM, part: int) -> float:
    """Largest gradient that the last round (part 0), or all of it (1), sends to the pictures."""
    batch = collate(mixed_samples(), model.recipe, model.config, model.backbone, MARKERS)
    pixels = batch.pixels.clone().requires_grad_()
    losses = model(replace(batch, pixels=pixels), NTP)[0]
    for _ in range(part + 1):
        next(losses).backward()
    return 0.0 if pixels.grad is None else float(pixels.grad.abs().max())


def test_the_loss_reaches_pictures_through_z_alone():
    """The decode round has no gradient for them; what it sends to z has."""
    model = tiny_model(bottleneck=True)
    assert gradient_of_pixels(model, 0) == 0.0
    assert gradient_of_pixels(model, 1) > 0
    torch.nn.init.zeros_(model.posterior.outer.weight)  # z is N(0, I) whatever was seen
    assert gradient_of_pixels(model, 1) == 0.0
    open_model = tiny_model()
    torch.nn.init.zeros_(open_model.posterior.outer.weight)
    assert gradient_of_pixels(open_model, 1) > 0


@pytest.mark.parametrize("latents", ["mean", "sample:1", "vote:2", "off", "markers"])
def test_answers_know_pictures_by_z_alone(latents: str):
    model, samples, thinking = tiny_model(bottleneck=True).eval(), mixed_samples(), Thinking.parse(latents)
    found = score(model, samples, MARKERS, OPTIONS, thinking)
    swapped = score(model, other_pictures(samples), MARKERS, OPTIONS, thinking)
    for sample, a, b in zip(samples, found, swapped, strict=True):
        same = latents in ("off", "markers") or not len(sample.grids)
        assert torch.equal(a, b) == same


def test_a_given_z_hides_the_pictures():
    """And is worth what it is to a model without a bottleneck behind the prompt without pictures."""
    model, samples = tiny_model(bottleneck=True).eval(), mixed_samples()
    z = list(torch.randn(5, 4, 16))
    found = score(model, samples, MARKERS, OPTIONS, Thinking("given"), given=z)
    swapped = score(model, other_pictures(samples), MARKERS, OPTIONS, Thinking("given"), given=z)
    texts = [without_pictures(s, model.backbone) for s in samples]
    reference = score(tiny_model().eval(), texts, MARKERS, OPTIONS, Thinking("given"), given=z)
    for a, b, c in zip(found, swapped, reference, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_thinking_takes_the_mean_of_the_prior_that_sees_pictures():
    model, samples = tiny_model(bottleneck=True).eval(), mixed_samples()
    means = prior_gaussians(model, samples, MARKERS).mean
    torch.testing.assert_close(means, prior_gaussians(tiny_model().eval(), samples, MARKERS).mean)
    decoding = Decoding(frozenset([2]), 5)
    thought = generate(model, samples, MARKERS, decoding, Thinking())
    given = generate(model, samples, MARKERS, decoding, Thinking("given"), given=list(means))
    assert [[r.ids for r in of_sample] for of_sample in thought] == [[r.ids for r in of_sample] for of_sample in given]


def test_the_last_round_has_no_place_for_pictures():
    model, samples = tiny_model(bottleneck=True), mixed_samples()
    batch = collate(samples, model.recipe, model.config, model.backbone, MARKERS)
    assert IMAGE in batch.ids and IMAGE not in batch.ids2
    assert batch.tokens == sum(cost(s, model.recipe, model.config.slots) for s in samples)
    assert batch.second is not None
    text = [s.length for s in batch.second.prefixes]
    assert text == [len(s.prompt) - s.image_tokens for s in samples]


def test_flops_count_the_prompt_that_is_run_again():
    model, samples = tiny_model(bottleneck=True), mixed_samples()
    flops = Flops(model)
    with_, without = (
        flops(collate(samples, recipe, model.config, model.backbone, MARKERS))
        for recipe in (model.recipe, RECIPES["amvl"])
    )
    again = [len(s.prompt) - s.image_tokens for s in samples]
    decoded = [len(s.answer) - 1 + model.config.slots + 2 for s in samples]
    pairs = sum(t * (t + 1) // 2 + t * d for t, d in zip(again, decoded, strict=True))
    pairs -= sum(len(s.prompt) * d for s, d in zip(samples, decoded, strict=True))
    assert with_ - without == flops.per_token * sum(again) + flops.per_pair * pairs


@pytest.mark.parametrize("name", list(RECIPES))
def test_an_objective_without_z_has_nothing_to_carry_pictures(name: str):
    if RECIPES[name].rounds == 2:
        assert ObjectiveConfig(name=name, bottleneck=True).recipe == replace(RECIPES[name], bottleneck=True)
    else:
        with pytest.raises(ValueError, match=f"bottleneck: {name} has no z that could carry the pictures"):
            ObjectiveConfig(name=name, bottleneck=True)
