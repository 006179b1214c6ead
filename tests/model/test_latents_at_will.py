"""Latents that are asked for, left out or given: against transformers' own model, one sequence at a time."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from data.processor import Encoded, Processor
from model.batch import noise_of
from model.build import load_export, markers_of
from model.generate import Decoding, Reply, generate, score
from model.latent_vlm import LatentVLM
from model.thinking import Thinking, ThoughtError, draw_name, prior_gaussians
from tests.model.test_generate import image_places, plain_model
from tests.refusal import refusal

MOST, TEMPERATURE = 6, 0.8


@pytest.fixture(scope="module")
def eager_to_think(export_of: Callable[[str], Path], processor: Processor) -> LatentVLM:
    """A model that writes the start mark often."""
    model = load_export(export_of("amvl")).eval()
    model.backbone.model.lm_head.weight.data[processor.latent_start].mul_(4)
    return model


def replies(model: LatentVLM, items: list[Encoded], processor: Processor, thinking: Thinking, given=None, **how):
    decoding = Decoding(frozenset({processor.end}), MOST, **how)
    return generate(model, items, markers_of(processor), decoding, thinking, given=given)


@torch.no_grad()
def log_probabilities(
    plain: Qwen2_5_VLForConditionalGeneration, model: LatentVLM, item: Encoded, pieces: list[torch.Tensor]
) -> torch.Tensor:
    """[1 + rows, V] from the prompt's last token on; `pieces` are token ids [n] or vectors [n, C]."""
    embed = model.backbone.embedding
    prompt, places = embed(item.prompt).clone(), image_places(plain, item.prompt)
    positions = torch.arange(len(prompt)).expand(3, 1, -1)
    if len(item.grids):
        prompt[places.bool()] = torch.cat(plain.get_image_features(item.pixels, item.grids).pooler_output)
        positions, _ = plain.model.get_rope_index(item.prompt[None], places[None], item.grids)
    behind = torch.cat([embed(x) if x.dim() == 1 else x for x in pieces]) if pieces else prompt[:0]
    following = (positions.max() + 1 + torch.arange(len(behind))).expand(3, 1, -1)
    where = torch.cat([positions, following], dim=2)
    inputs = torch.cat([prompt, behind])[None]
    states = plain.model.language_model(inputs_embeds=inputs, position_ids=where, use_cache=False).last_hidden_state
    logits = model.backbone.logits(states[0, len(prompt) - 1 :])
    return (logits / TEMPERATURE).log_softmax(-1)


def tokens(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long)


def said(reply: Reply) -> list[int]:
    return reply.ids + ([reply.end] if reply.end is not None else [])


@pytest.mark.parametrize("kind", ["optional", "vote", "off"])
def test_log_probabilities_are_those_of_whole_sequences(eager_to_think, export_of, items, processor, kind: str) -> None:
    """Of every drawn token, wherever the latents stand; and each draw has its own z."""
    model, plain, marks = eager_to_think, plain_model(export_of("amvl")), markers_of(processor)
    found = replies(model, items, processor, Thinking(kind, 1.0, 3), temperature=TEMPERATURE, top_p=0.99, seed=7)
    asked = [r.latent_at for of_item in found for r in of_item]
    if kind == "optional":
        assert {None, 1, 2} <= set(asked), "the check means something"
    else:
        assert set(asked) == {0 if kind == "vote" else None}
    for item, of_item in list(zip(items, found, strict=True))[:12]:
        batch_prior = prior_of(model, item, marks)
        for draw, reply in enumerate(of_item):
            z = batch_prior.sample(noise_of(item.sample, draw_name(7, draw), model.config)[None])
            latents = [model.injection(z, model.scale)[0].detach(), tokens(marks.end)]
            ids, at = said(reply), reply.latent_at
            before = [tokens(marks.start), *latents] if at == 0 else []
            inputs = [tokens(*ids[:at]), *latents, tokens(*ids[at:-1])] if at else [*before, tokens(*ids[:-1])]
            logs = log_probabilities(plain, model, item, inputs)
            skip = (model.config.slots + (1 if at else 2)) if at is not None else 0
            rows = [n + (skip if at is not None and n >= at else 0) for n in range(len(ids))]
            if at == len(ids):  # the latents came last, so that nothing was drawn behind them
                rows = list(range(len(ids)))
            wanted = logs[rows, ids].tolist()
            assert reply.logps == pytest.approx(wanted, abs=2e-4)


def prior_of(model: LatentVLM, item: Encoded, marks):
    from model.batch import collate

    with torch.no_grad():
        batch = collate([item], model.recipe, model.config, model.backbone, marks, answers=False)
        return model.prior_of(batch, model.prompt_round(batch)[0])


def test_asked_latents_do_not_depend_on_the_batch(eager_to_think, items, processor) -> None:
    thinking = Thinking("optional", 1.0, 2)
    whole = replies(eager_to_think, items, processor, thinking, temperature=TEMPERATURE)
    alone = [replies(eager_to_think, [i], processor, thinking, temperature=TEMPERATURE)[0] for i in items]
    assert whole == alone
    for a, b in zip(whole, alone, strict=True):
        assert [r.logps for r in a] == [pytest.approx(r.logps, abs=1e-4) for r in b]


def test_a_rank_that_is_done_asks_for_nothing(eager_to_think, items, processor) -> None:
    """While it keeps step it draws tokens that are no part of any reply, start marks among them."""
    decoding = Decoding(frozenset({processor.end}), MOST, TEMPERATURE)
    for number, item in enumerate(items[:12]):
        rounds: list[bool] = []

        def others(own: bool, rounds: list[bool] = rounds) -> bool:
            rounds.append(own)
            return len(rounds) < 40

        arguments = (eager_to_think, [item], markers_of(processor), decoding, Thinking("optional"))
        assert generate(*arguments, others) == generate(*arguments), number
        assert len(rounds) == 40


def test_a_second_start_mark_is_a_word_like_others(eager_to_think, items, processor) -> None:
    found = replies(eager_to_think, items, processor, Thinking("optional"), temperature=TEMPERATURE)
    twice = [r for (r,) in found if r.ids.count(processor.latent_start) > 1]
    assert twice
    assert all(r.latent_at == r.ids.index(processor.latent_start) + 1 for r in twice)


def test_given_latents_are_used(eager_to_think, items, processor) -> None:
    """The prior's own mean changes nothing, another item's does; also for options."""
    model, marks, some = eager_to_think, markers_of(processor), items[:10]
    means = list(prior_gaussians(model, some, marks).mean)
    own = replies(model, some, processor, Thinking())
    assert replies(model, some, processor, Thinking("given"), given=means) == own
    assert replies(model, some, processor, Thinking("given"), given=means[1:] + means[:1]) != own
    options = [[[40], [41]]] * len(some)
    given = score(model, some, marks, options, Thinking("given"), given=means)
    torch.testing.assert_close(given, score(model, some, marks, options, Thinking()), atol=1e-5, rtol=0)
    apart = score(model, some, marks, options, Thinking("given"), given=[-10 * z for z in means])
    assert max((a - b).abs().max().item() for a, b in zip(given, apart, strict=True)) > 1e-3


def test_marks_alone_are_not_the_bare_model(eager_to_think, export_of, items, processor) -> None:
    model, plain, marks = eager_to_think, plain_model(export_of("amvl")), markers_of(processor)
    item = items[3]
    (nats,) = score(model, [item], marks, [[[40], [41]]], Thinking("markers"))
    logs = log_probabilities(plain, model, item, [tokens(marks.start, marks.end)])[-1] * TEMPERATURE
    wanted = logs.log_softmax(-1)[[40, 41]]
    torch.testing.assert_close(nats.float(), wanted, atol=1e-4, rtol=0)
    (bare,) = score(model, [item], marks, [[[40], [41]]], Thinking("off"))
    assert (nats - bare).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("objective", "kind", "mend"),
    [
        ("sft", "optional", "this model has no latents; use off"),
        ("pause", "given", "this model has no latents; use off"),
        ("sft", "markers", "this model was trained without marks; use off"),
        ("deterministic", "optional:0.5", "this model has no trained spread to draw from; use mean or off"),
    ],
)
def test_kinds_a_model_cannot_do(model_of, items, processor, objective: str, kind: str, mend: str) -> None:
    thinking = Thinking.parse(kind)
    text = refusal(lambda: replies(model_of(objective), items[:1], processor, thinking), ThoughtError)
    assert text == f"latents {thinking.kind!r}: {mend}"


def test_options_are_not_asked_for_latents(model_of, items, processor) -> None:
    model = model_of("amvl")
    text = refusal(lambda: score(model, items[:1], markers_of(processor), [[[1]]], Thinking("optional")), ThoughtError)
    assert text == "latents 'optional': options are measured, not written; use mean or off"


@pytest.mark.parametrize("objective", ["sft", "pause"])
def test_branches_without_latents_are_drawn_apart(model_of, items, processor, objective: str) -> None:
    kind = "off" if objective == "sft" else "mean"
    found = replies(model_of(objective), items[:6], processor, Thinking(kind, draws=4), temperature=3.0)
    assert all(len({tuple(r.ids) for r in of_item}) > 1 for of_item in found)
    assert all(math.isfinite(x) for of_item in found for r in of_item for x in r.logps)
