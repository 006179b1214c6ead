"""The passes over a model: the same in all batches, attention known beforehand, and what moves with the input."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import shards
from data.processor import Processor
from eval.diagnosis.arms import KEPT, MARKERS, OWN, REMOVED, SOURCES, from_altered
from eval.diagnosis.cases import ALTERATIONS, Case, altered, cases
from eval.diagnosis.collect import Collected, Collector
from eval.diagnosis.measure import attention_of, gap_of, inputs_of
from model.build import load_export, markers_of
from model.generate import score
from model.latent_vlm import LatentVLM
from model.thinking import Thinking, prior_gaussians
from tests.eval.diagnosis.built import SLOTS, built, collect, collector, items


@pytest.fixture(scope="module")
def model(export_of: Callable[[str], Path]) -> LatentVLM:
    """A random one whose latents and answers depend on question and pictures."""
    return load_export(export_of("amvl")).eval()


@pytest.fixture(scope="module")
def chosen(tiny_shards: Path, processor: Processor) -> list[Case]:
    """Items with no, one and more pictures, some of the same sizes."""
    found, _ = cases(list(shards.read_set(tiny_shards))[:34], processor, 0)
    some = found[:11] + [case for case in found[11:] if not len(case.item.grids)]
    assert {len(case.item.grids) for case in some} >= {0, 1, 2} and len(some) == 13
    return some


@pytest.fixture(scope="module")
def collected(model, chosen, processor) -> Collected:
    return Collector(model, processor, markers_of(processor), 16384, 0).collect(chosen)


def close(a: Collected, b: Collected) -> None:
    """By key and arm."""
    assert a.scores.keys() == b.scores.keys() and a.moved.keys() == b.moved.keys()
    for key in a.scores:
        assert a.scores[key].keys() == b.scores[key].keys()
        for name, x in a.scores[key].items():
            torch.testing.assert_close(x, b.scores[key][name], atol=1e-5, rtol=1e-6, msg=name)
        for one, other in zip(a.beliefs[key], b.beliefs[key], strict=True):
            torch.testing.assert_close(one.mean, other.mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.log_sigma, other.log_sigma, atol=1e-5, rtol=1e-5)
    for found, others in ((a.moved, b.moved), (a.altered, b.altered), (a.given, b.given)):
        for name in found:
            torch.testing.assert_close(found[name], {k: others[name][k] for k in found[name]}, atol=1e-5, rtol=1e-5)
            assert found[name].keys() == others[name].keys()


def test_batches_change_nothing(model, chosen, processor, collected) -> None:
    """One item at a time, against all at once."""
    alone = Collector(model, processor, markers_of(processor), 1, 0).collect(chosen)
    close(alone, collected)
    torch.testing.assert_close(alone.answer_attention, collected.answer_attention, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.latent_attention, collected.latent_attention, atol=1e-5, rtol=1e-5)


def test_nor_does_the_order_of_the_items(model, chosen, processor, collected) -> None:
    backwards = Collector(model, processor, markers_of(processor), 700, 0).collect(chosen[::-1])
    close(backwards, collected)
    torch.testing.assert_close(backwards.answer_attention.flip(0), collected.answer_attention, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 40, 100, 10**6])
def test_a_batch_keeps_within_its_tokens(tokens: int) -> None:
    """But for a single item that is larger, and none is lost."""
    sizes = [30, 5, 5, 60, 120, 1, 1, 1, 39]
    batches = list(collector(built(), tokens)._batches("some", sizes, lambda size: size))
    assert [size for batch in batches for size in batch] == sizes
    assert all(sum(batch) <= tokens or len(batch) == 1 for batch in batches)
    assert all(sum(batch) + later[0] > tokens for batch, later in pairwise(batches)), "as few as can be"


def test_scores_are_those_of_the_evaluator(model, chosen, processor, collected) -> None:
    """Behind the own prompt by arm, and behind an altered one with the latents that it gives."""
    markers, prompts = markers_of(processor), [case.item for case in chosen]
    options = [case.options for case in chosen]
    ways = {KEPT: Thinking(), REMOVED: Thinking("off"), MARKERS: Thinking("markers")}
    for arm, how in ways.items():
        wanted = score(model, prompts, markers, options, how)
        for case, of_case in zip(chosen, wanted, strict=True):
            torch.testing.assert_close(collected.scores[case.key][arm], of_case, atol=1e-4, rtol=1e-5)
    for name in ALTERATIONS:
        others = altered(name, chosen, processor, 0)
        some = [case for case in chosen if case.key in others]
        items = [others[case.key] for case in some]
        for case, of_case in zip(
            some, score(model, items, markers, [c.options for c in some], Thinking()), strict=True
        ):
            torch.testing.assert_close(collected.altered[name][case.key], of_case, atol=1e-4, rtol=1e-5)
        alone = score(
            model,
            [case.item for case in some],
            markers,
            [case.options for case in some],
            Thinking("given"),
            given=[collected.moved[name][case.key] for case in some],
        )
        for case, of_case in zip(some, alone, strict=True):
            found = collected.scores[case.key][from_altered(name)]
            torch.testing.assert_close(found, of_case, atol=1e-4, rtol=1e-5)


def test_the_gap_alone(model, chosen, processor, collected) -> None:
    """Has what the gap needs and no more, and comes to the same."""
    alone = Collector(model, processor, markers_of(processor), 4096, 0).collect_gap(chosen)
    assert set(alone.scores[chosen[0].key]) == {*SOURCES.values()}
    assert not len(alone.answer_attention) and not len(alone.latent_attention)
    for a, b in ((gap_of(alone).mean, gap_of(collected).mean), (gap_of(alone).drawn, gap_of(collected).drawn)):
        assert a and b and a.value == pytest.approx(b.value, abs=1e-5)


def test_no_posterior_is_asked_for_where_there_is_none() -> None:
    found = collect(built(objective="deterministic", prior="prompt"), items("ABCD"))
    for case in found.cases:
        assert found.beliefs[case.key].posteriors.mean.shape == (0, SLOTS, 4)
        assert OWN not in found.scores[case.key]


# ---- Attention, where every row pays as much to all that it sees ----


def test_attention_to_latents_and_pictures() -> None:
    """The end mark sees P prompt tokens, the start mark, k latents and itself; slot j the prompt and j + 1 slots."""
    some = items("ABCDA", picture=(4, 6))
    found = attention_of(collect(built(prior="prompt"), some))
    lengths = [len(case.item.prompt) for case in some]
    assert len(set(lengths)) == 4 and all(case.item.image_tokens == 6 for case in some)

    def mean(values: list[float]) -> float:
        return pytest.approx(sum(values) / len(values), abs=1e-5)  # type: ignore[return-value]

    assert found.answer_to_latents == [mean([SLOTS / (p + SLOTS + 2) for p in lengths])]
    assert found.answer_to_images == [mean([6 / (p + SLOTS + 2) for p in lengths])]
    assert found.latents_to_images == [mean([6 / (p + j + 1) for p in lengths for j in range(SLOTS)])]


def test_attention_to_pictures_is_of_the_items_that_have_some() -> None:
    """That to latents is of all."""
    model = built(prior="prompt")
    pictured, bare = items("AB", picture=(4, 4)), items("ABCD")[2:]
    both, alone, none = (attention_of(collect(model, some)) for some in (bare + pictured, pictured, bare))
    assert both.answer_to_images == pytest.approx(alone.answer_to_images)
    assert both.latents_to_images == pytest.approx(alone.latents_to_images)
    middle = (alone.answer_to_latents[0] + none.answer_to_latents[0]) / 2
    assert both.answer_to_latents == [pytest.approx(middle, abs=1e-6)]
    assert none.answer_to_images == none.latents_to_images == [0]


@pytest.mark.parametrize("tokens", [1, 100, 10**6])
def test_attention_is_measured_of_the_first_items_alone(monkeypatch, tokens: int) -> None:
    monkeypatch.setattr("eval.diagnosis.collect.ATTENDED", 3)
    found = collect(built(), items("ABCDA", picture=(4, 4)), tokens=tokens)
    assert found.answer_attention.shape == (3, 1, 2) and found.latent_attention.shape == (3, 1)
    lengths = [len(case.item.prompt) for case in found.cases[:3]]
    wanted = torch.tensor([SLOTS / (p + SLOTS + 2) for p in lengths])
    torch.testing.assert_close(found.answer_attention[:, 0, 0], wanted)
    assert attention_of(found).answer_to_latents == [pytest.approx(float(wanted.mean()))]


# ---- What moves with the input ----


def test_latents_move_with_the_prompt(collected, chosen) -> None:
    found = inputs_of(collected)
    assert list(found) == list(ALTERATIONS)
    pictured = sum(len(case.item.grids) > 0 for case in chosen)
    assert found["blank_image"].n == found["patches"].n == pictured < len(chosen)
    for name, of_it in found.items():
        assert of_it.n == len(collected.moved[name]) and of_it.moved > 0.01, name
    assert any(of_it.flips.value > 0 for of_it in found.values())


def test_latents_of_a_prior_that_sees_nothing_do_not_move(model, chosen, processor) -> None:
    blind = copy.deepcopy(model)
    torch.nn.init.zeros_(blind.prior.outer.weight)
    found = inputs_of(Collector(blind, processor, markers_of(processor), 16384, 0).collect(chosen))
    assert list(found) == list(ALTERATIONS)
    for of_it in found.values():
        assert of_it.moved == 0 and of_it.latents_alone.value == 0
    assert any(of_it.flips.value > 0 for of_it in found.values()), "answers see the altered prompt all the same"


def test_latents_that_nobody_reads_flip_nothing(model, chosen, processor, collected) -> None:
    """They move as much as before."""
    deaf = copy.deepcopy(model)
    torch.nn.init.zeros_(deaf.injection.project.weight)
    found = inputs_of(Collector(deaf, processor, markers_of(processor), 16384, 0).collect(chosen))
    for name, before in inputs_of(collected).items():
        assert found[name].moved == pytest.approx(before.moved, rel=1e-5)
        assert found[name].latents_alone.value == 0
    assert any(of_it.latents_alone.value > 0 for of_it in inputs_of(collected).values()), "the check means something"


def test_an_altered_prompt_gives_its_own_latents(model, chosen, processor, collected) -> None:
    """`moved` is the prior's mean of that prompt, and of no other."""
    for name in ALTERATIONS:
        for key, item in altered(name, chosen, processor, 0).items():
            wanted: Tensor = prior_gaussians(model, [item], markers_of(processor)).mean[0]
            torch.testing.assert_close(collected.moved[name][key], wanted, atol=1e-5, rtol=1e-5)
