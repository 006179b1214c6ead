"""Other latents behind one prompt, against the evaluator's scores; and what is believed of z, against training."""

import pytest
import torch
from torch import Tensor

from data.processor import Encoded
from model.attention_probe import IMAGES, LATENTS
from model.batch import collate
from model.build import FAMILIES
from model.generate import score
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.replaced import Latents, believe, look, replaced
from model.thinking import Thinking, ThoughtError, prior_gaussians
from tests.refusal import refusal
from tests.tiny import MARKERS, mixed_samples, tiny_model

K, D = 4, 16
ONE, TWO, THREE = [3], [5, 6], [7, 8, 9]
OPTIONS = [[ONE, TWO], [TWO, THREE, ONE], [ONE, [4]], [THREE, TWO], [[11], ONE, THREE, TWO]]  # of mixed_samples()
families = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str = "qwen2_5_vl", **how) -> LatentVLM:
    """Its latents weigh enough that other ones move every score."""
    model = tiny_model(family=family, **how).eval()
    torch.nn.init.normal_(model.injection.project.weight)
    return model


def draws(seed: int, k: int = K) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(k, D, generator=generator) for _ in range(5)]


def of_each(model: LatentVLM, arms: list[list[Latents]], probed: int | None = None) -> tuple[list[Tensor], Tensor]:
    """`arms`: per sample."""
    return replaced(model, mixed_samples(), MARKERS, OPTIONS, arms, probed)


def agree(found: list[Tensor], number: int, wanted: list[Tensor]) -> None:
    for of_sample, x in zip(found, wanted, strict=True):
        torch.testing.assert_close(of_sample[number], x, atol=2e-5, rtol=1e-5)


def with_slots(model: LatentVLM, j: int) -> LatentVLM:
    """The same model with its first j slots alone."""
    found = LatentVLM(model.backbone, LatentConfig(slots=j, width=D, head_width=32), model.recipe).eval()
    own = model.state_dict()
    found.load_state_dict(
        {name: own[name][: x.shape[0]] if x.dim() else own[name] for name, x in found.state_dict().items()}
    )
    return found


# ---- Scores ----


@families
def test_scores_are_those_of_the_evaluator(family: str) -> None:
    """Mean, given z, marks alone and neither, all behind one prefix."""
    model, samples = model_of(family), mixed_samples()
    means, z = list(prior_gaussians(model, samples, MARKERS).mean), draws(1)
    found, _ = of_each(model, [[m, None, x, m[:0]] for m, x in zip(means, z, strict=True)])
    assert [x.shape for x in found] == [(4, len(of_sample)) for of_sample in OPTIONS]
    assert {x.dtype for x in found} == {torch.float64}
    agree(found, 0, score(model, samples, MARKERS, OPTIONS, Thinking()))
    agree(found, 1, score(model, samples, MARKERS, OPTIONS, Thinking("off")))
    agree(found, 2, score(model, samples, MARKERS, OPTIONS, Thinking("given"), given=z))
    agree(found, 3, score(model, samples, MARKERS, OPTIONS, Thinking("markers")))
    for of_sample in found:
        assert all((a - b).abs().max() > 1e-3 for n, a in enumerate(of_sample) for b in of_sample[:n])


@families
def test_the_first_slots_are_those_of_a_model_with_so_many(family: str) -> None:
    model, samples, z = model_of(family), mixed_samples(), draws(2)
    found, _ = of_each(model, [[x[:1], x[:3], x] for x in z])
    for number, j in enumerate((1, 3)):
        shorter = with_slots(model, j)
        wanted = score(shorter, samples, MARKERS, OPTIONS, Thinking("given"), given=[x[:j] for x in z])
        agree(found, number, wanted)
    assert all((x[1] - x[2]).abs().max() > 1e-3 for x in found)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_batches_change_nothing(bottleneck: bool) -> None:
    """Samples with other numbers of latents and options, one at a time and together, in any order."""
    model, samples = model_of(bottleneck=bottleneck), mixed_samples()
    a, b = draws(3), draws(4)
    arms: list[list[Latents]] = [[a[0], b[0]], [a[1]], [None, a[2], None, b[2][:1]], [b[3][:0], a[3]], [a[4], None]]
    together, masses = of_each(model, arms)
    assert not len(masses)
    for n, sample in enumerate(samples):
        (alone,), _ = replaced(model, [sample], MARKERS, [OPTIONS[n]], [arms[n]])
        torch.testing.assert_close(together[n], alone, atol=2e-5, rtol=1e-5)
    backwards, _ = replaced(model, samples[::-1], MARKERS, OPTIONS[::-1], arms[::-1])
    torch.testing.assert_close(backwards[::-1], together, atol=2e-5, rtol=1e-5)


def test_behind_a_bottleneck_the_answer_sees_no_picture() -> None:
    model, samples, z = model_of(bottleneck=True), mixed_samples(), draws(5)
    means = list(prior_gaussians(model, samples, MARKERS).mean)
    found, masses = of_each(model, [[m, x, None] for m, x in zip(means, z, strict=True)], 0)
    agree(found, 0, score(model, samples, MARKERS, OPTIONS, Thinking()))
    agree(found, 1, score(model, samples, MARKERS, OPTIONS, Thinking("given"), given=z))
    agree(found, 2, score(model, samples, MARKERS, OPTIONS, Thinking("off")))
    assert not masses[:, :, IMAGES].any() and (masses[:, :, LATENTS] > 0).all()
    beliefs = believe(model, samples, MARKERS, [[] for _ in samples])
    torch.testing.assert_close([b.prior.mean for b in beliefs], means, atol=1e-5, rtol=1e-5)  # of the pictures too
    assert (look(model, samples, MARKERS)[0] > 0).all()


def test_no_gradient_is_kept() -> None:
    model, samples = model_of(), mixed_samples()
    assert any(p.requires_grad for p in model.parameters())
    found, masses = of_each(model, [[x] for x in draws(1)], 0)
    ((prior, posterior), *_) = believe(model, samples, MARKERS, [[s.answer] for s in samples])
    tensors = [*found, masses, *prior, *posterior, look(model, samples, MARKERS)]
    assert not any(x.requires_grad for x in tensors)


# ---- Attention ----


@families
def test_attention_of_the_latents_that_are_named(family: str) -> None:
    """Whatever others stand beside them, with marks or without, before or behind."""
    model, z, other = model_of(family), draws(6), draws(7)
    _, alone = of_each(model, [[x] for x in z], 0)
    layers = model.backbone.config.text_config.num_hidden_layers
    assert alone.shape == (5, layers, 2)
    _, behind = of_each(model, [[None, y, y[:1], x] for x, y in zip(z, other, strict=True)], 3)
    torch.testing.assert_close(behind, alone, atol=1e-5, rtol=1e-5)
    _, unlike = of_each(model, [[None, y, y[:1], x] for x, y in zip(z, other, strict=True)], 1)
    assert (unlike - alone).abs().max() > 1e-4
    pictured = torch.tensor([len(s.grids) > 0 for s in mixed_samples()])
    assert (alone[:, :, LATENTS] > 0).all() and (alone[pictured][:, :, IMAGES] > 0).all()
    assert not alone[~pictured][:, :, IMAGES].any() and (alone.sum(2) < 1).all()
    _, marks = of_each(model, [[x, x[:0]] for x in z], 1)
    assert not marks[:, :, LATENTS].any()


def test_slots_look_at_the_pictures() -> None:
    model, samples = model_of(), mixed_samples()
    found = look(model, samples, MARKERS)
    assert found.shape == (5, 3)
    for n, sample in enumerate(samples):
        torch.testing.assert_close(look(model, [sample], MARKERS), found[n : n + 1], atol=1e-5, rtol=1e-5)
        assert bool((found[n] > 0).all()) == bool(found[n].any()) == (len(sample.grids) > 0)
    assert (found < 1).all()


# ---- Beliefs ----


@families
def test_beliefs_are_those_of_training(family: str) -> None:
    """Prior, and the posterior of the own answer among others that are asked about."""
    model, samples = model_of(family), mixed_samples()
    batch = collate(samples, model.recipe, model.config, model.backbone, MARKERS)
    with torch.no_grad():
        states, _ = model.prompt_round(batch)
        prior, posterior = model.prior_of(batch, states), model.posterior_of(batch, states)
    wrong = torch.tensor([17, 18, 19, 2])
    about = [[wrong] * (n % 3) + [s.answer] for n, s in enumerate(samples)]
    found = believe(model, samples, MARKERS, about)
    alone = prior_gaussians(model, samples, MARKERS)
    for n, beliefs in enumerate(found):
        torch.testing.assert_close(beliefs.prior.mean, prior.mean[n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(beliefs.prior.mean, alone.mean[n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(beliefs.prior.log_sigma, prior.log_sigma[n], atol=1e-5, rtol=1e-5)
        assert beliefs.posteriors.mean.shape == (len(about[n]), K, D)
        torch.testing.assert_close(beliefs.posteriors.mean[-1], posterior.mean[n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(beliefs.posteriors.log_sigma[-1], posterior.log_sigma[n], atol=1e-5, rtol=1e-5)
        for other in beliefs.posteriors.mean[:-1]:
            assert (other - beliefs.posteriors.mean[-1]).abs().max() > 1e-3
            torch.testing.assert_close(other, beliefs.posteriors.mean[0], atol=1e-5, rtol=1e-5)


def test_some_samples_may_be_asked_about_no_answer() -> None:
    model, samples = model_of(), mixed_samples()
    about: list[list[Tensor]] = [[], [samples[1].answer], [], [], [samples[4].answer, samples[0].answer]]
    found = believe(model, samples, MARKERS, about)
    assert [len(b.posteriors.mean) for b in found] == [0, 1, 0, 0, 2]
    whole = believe(model, samples, MARKERS, [[s.answer] for s in samples])
    torch.testing.assert_close(found[4].posteriors.mean[0], whole[4].posteriors.mean[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1].posteriors.mean, whole[1].posteriors.mean, atol=1e-5, rtol=1e-5)
    none = believe(model, samples, MARKERS, [[] for _ in samples])
    assert all(b.posteriors.mean.shape == (0, K, D) for b in none)
    torch.testing.assert_close(none[2].prior.mean, whole[2].prior.mean, atol=1e-5, rtol=1e-5)


def test_a_prior_without_a_posterior_is_believed_alone() -> None:
    model, samples = model_of(objective="deterministic"), mixed_samples()
    found = believe(model, samples, MARKERS, [[] for _ in samples])
    wanted = prior_gaussians(model, samples, MARKERS).mean
    torch.testing.assert_close(torch.stack([b.prior.mean for b in found]), wanted, atol=1e-5, rtol=1e-5)
    assert all(b.posteriors.mean.shape == (0, K, D) for b in found)


@pytest.mark.parametrize("objective", ["pause", "sft"])
def test_a_model_without_z_believes_nothing(objective: str) -> None:
    model, samples = tiny_model(objective).eval(), mixed_samples()[:1]

    def ask(of: list[Encoded]) -> tuple[str, str]:
        nothing = refusal(lambda: believe(model, of, MARKERS, [[]]), ThoughtError)
        return nothing, refusal(lambda: look(model, of, MARKERS), ThoughtError)

    assert ask(samples) == ("latents 'given': this model has no latents; use off",) * 2
