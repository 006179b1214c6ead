"""Replies and option scores: the same in every batch, those of transformers' own model, and in step over ranks."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from data.processor import Encoded, Processor
from model.attention import SDPA, BackEnd, Round, packed_attention
from model.build import markers_of
from model.generate import Decoding, Reply, generate, score
from model.latent_vlm import LatentVLM
from model.layout import PREFIX, next_round
from model.thinking import Thinking, ThoughtError
from tests.attention import SHAPES, DenseKernel, Layer, dense, two_rounds
from tests.refusal import refusal

RECIPES = ("amvl", "deterministic", "pause", "sft")
MEAN, OFF, VOTE = Thinking(), Thinking("off"), Thinking("vote", draws=3)
MOST = 6  # tokens of a reply
VARLEN = BackEnd("varlen", "in float64, for tests", DenseKernel())


def batches(items: list[Encoded], size: int) -> list[list[Encoded]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def replies(
    model: LatentVLM, items: list[Encoded], processor: Processor, thinking: Thinking = MEAN, size: int = 30, **how
) -> list[list[Reply]]:
    decoding = Decoding(frozenset({processor.end}), MOST, **how)
    found = (generate(model, b, markers_of(processor), decoding, thinking) for b in batches(items, size))
    return [reply for batch in found for reply in batch]


def options_of(items: list[Encoded], processor: Processor) -> list[list[list[int]]]:
    """Options of one and of several tokens, in other numbers for each item; the last ends as a reply does."""
    texts = ("A", "B", "the third picture", "C", "nothing of all that")
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert {len(option) for option in ids} > {1}
    return [[*ids[: 2 + number % 3], [*ids[4], processor.end]] for number in range(len(items))]


def scores(
    model: LatentVLM, items: list[Encoded], processor: Processor, thinking: Thinking = MEAN, size: int = 30
) -> list[torch.Tensor]:
    pairs = zip(batches(items, size), batches(options_of(items, processor), size), strict=True)  # type: ignore[arg-type]
    return [x for batch, options in pairs for x in score(model, batch, markers_of(processor), options, thinking)]


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("back_end", [SDPA, VARLEN], ids=lambda b: b.name)
@given(SHAPES, st.integers(0, 2**31), st.data())
def test_a_fork_continues_the_branches_it_names(back_end: BackEnd, shapes, seed: int, data: st.DataObject) -> None:
    """Against dense attention: a third round whose branches continue any kept ones, or none, of some samples."""
    generator = torch.Generator().manual_seed(seed)
    round_, rows, seen = None, [], {}
    for layout in two_rounds(shapes, keep=True):
        rows.append([torch.randn(1, heads, layout.tokens, 8, generator=generator) for heads in (4, 2, 2)])
        round_ = Round.of(back_end, layout, round_)
        packed_attention(Layer(), *rows[-1], None, 0.3, round_=round_)
        for s in layout.segments:
            seen.setdefault((s.sample, s.branch), []).append((len(rows) - 1, slice(s.row, s.row + s.length)))
    choice = st.lists(st.sampled_from([PREFIX, 0, 1]), max_size=4)
    parents = [data.draw(choice) for _ in shapes[1:]] + [data.draw(choice.filter(bool))]
    lengths = [[data.draw(st.integers(0, 3)) for _ in p] for p in parents if p]
    lengths[-1][0] = 2
    fork = round_.fork(parents)
    layout = next_round(fork.layout, lengths, [[5] * len(n) for n in lengths])
    q, k, v = (torch.randn(1, heads, layout.tokens, 8, generator=generator) for heads in (4, 2, 2))
    out, _ = packed_attention(Layer(), q, k, v, None, 0.3, round_=Round.of(back_end, layout, fork))
    stay = [sample for sample, p in enumerate(parents) if p]

    def earlier(sample: int, parent: int, which: int) -> torch.Tensor:
        parts = seen[sample, PREFIX] + (seen.get((sample, parent), []) if parent != PREFIX else [])
        return torch.cat([rows[n][which][0].transpose(0, 1)[place] for n, place in parts])

    for s in layout.segments:
        place, parent = slice(s.row, s.row + s.length), parents[stay[s.sample]][s.branch]
        own = [
            torch.cat([earlier(stay[s.sample], parent, w), x[0].transpose(0, 1)[place]]) for w, x in ((1, k), (2, v))
        ]
        torch.testing.assert_close(
            out[0, place].double(), dense(q[0].transpose(0, 1)[place], *own), atol=5e-6, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("objective", "thinking", "how"),
    [
        *((name, MEAN, {}) for name in RECIPES),
        ("amvl", OFF, {}),
        ("amvl", VOTE, {}),
        ("amvl", Thinking("sample", 0.5), {"temperature": 0.8, "top_p": 0.9, "seed": 3}),
    ],
)
def test_replies_do_not_depend_on_the_batch(model_of, items, processor, objective, thinking, how) -> None:
    model = model_of(objective)
    alone = replies(model, items, processor, thinking, size=1, **how)
    assert replies(model, items, processor, thinking, size=30, **how) == alone
    assert replies(model, items[::-1], processor, thinking, size=7, **how) == alone[::-1]
    # The check means something: replies differ, and some end by themselves.
    assert len({tuple(r.ids) for r, *_ in alone}) > len(items) / 2
    finishes = {r.finish for of_item in alone for r in of_item}
    assert "length" in finishes and (how or "end" in finishes)


@pytest.mark.parametrize(
    ("objective", "thinking"), [*((name, MEAN) for name in RECIPES), ("amvl", OFF), ("amvl", VOTE)]
)
def test_scores_do_not_depend_on_the_batch(model_of, items, processor, objective, thinking) -> None:
    model = model_of(objective)
    alone = scores(model, items, processor, thinking, size=1)
    for size in (30, 7):
        together = scores(model, items, processor, thinking, size)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-6)  # of up to 100 nats an option, in fp32
    assert torch.cat(alone).std() > 0.1


def test_votes_are_draws(model_of, items, processor) -> None:
    """A draw is the same alone and among others, draws differ, and without spread all are the mean."""
    model = model_of("amvl")
    votes = replies(model, items, processor, VOTE)
    assert [[r] for r, *_ in votes] == replies(model, items, processor, Thinking("sample"))
    assert any(a != b for a, b, _ in votes)
    mean = replies(model, items, processor)
    assert replies(model, items, processor, Thinking("vote", 0.0, 2)) == [of_item * 2 for of_item in mean]


def test_scores_of_draws_are_those_of_their_mixture(model_of, items, processor, monkeypatch) -> None:
    model = model_of("amvl")
    mixed = scores(model, items, processor, VOTE)
    from model import thinking as module

    single = []
    noise_of = module.noise_of
    for draw in range(3):
        monkeypatch.setattr(module, "noise_of", lambda s, name, c, d=draw: noise_of(s, f"0/{d}", c))
        single.append(scores(model, items, processor, Thinking("sample")))
    for mixture, *parts in zip(mixed, *single, strict=True):
        wanted = torch.stack(parts).logsumexp(0) - math.log(3)
        torch.testing.assert_close(mixture, wanted, atol=2e-5, rtol=0)


def test_sampled_tokens_follow_the_probabilities(model_of, items, processor) -> None:
    """One token of one item, drawn with many seeds; a small nucleus holds the likeliest alone."""
    model, (item,) = model_of("amvl"), items[3:4]
    greedy = replies(model, [item], processor)[0][0].ids[0]

    def first(seed: int, **how) -> int:
        decoding = Decoding(frozenset(), 1, seed=seed, **how)
        return generate(model, [item], markers_of(processor), decoding, MEAN)[0][0].ids[0]

    drawn = [first(seed, temperature=1.0) for seed in range(300)]
    share = math.exp(score(model, [item], markers_of(processor), [[[greedy]]], MEAN)[0].item())
    assert abs(drawn.count(greedy) / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)
    assert len(set(drawn)) > 5
    assert {first(seed, temperature=1.0, top_p=1e-6) for seed in range(20)} == {greedy}
    assert {first(seed, temperature=1e-6) for seed in range(20)} == {greedy}


def test_a_reply_ends_where_it_is_stopped(model_of, items, processor) -> None:
    model = model_of("amvl")
    whole = replies(model, items, processor)
    stopped = replies(model, items, processor, stopped=lambda ids: len(ids) == 2)
    for (a,), (b,) in zip(whole, stopped, strict=True):
        assert b.ids == a.ids[:2]
        assert b.finish == ("stop" if len(a.ids) >= 2 else a.finish)
    assert {r.finish for (r,) in stopped} == {"stop", "end"}


def test_objectives_reply_differently(model_of, items, processor) -> None:
    """Over the same backbone, and z takes part."""
    found = {name: replies(model_of(name), items, processor) for name in ("amvl", "pause", "sft")}
    for one, other in itertools.combinations(found, 2):
        assert found[one] != found[other]
    assert replies(model_of("amvl"), items, processor, OFF) == found["sft"], "one backbone, no latents"


def test_a_rank_that_is_done_keeps_step(model_of, items, processor) -> None:
    """It runs on as long as another does, and neither replies nor scores change."""
    model, markers = model_of("amvl"), markers_of(processor)
    decoding = Decoding(frozenset({processor.end}), MOST)
    asked: list[bool] = []

    def others(own: bool) -> bool:
        asked.append(own)
        return len(asked) < 12

    assert generate(model, items[:5], markers, decoding, MEAN, others) == generate(
        model, items[:5], markers, decoding, MEAN
    )
    assert len(asked) == 12 and asked[0] and not any(asked[MOST:])
    letters = [[[40], [41]]] * 5
    alone = score(model, items[:5], markers, letters, MEAN)
    kept = score(model, items[:5], markers, letters, MEAN, together=lambda own: True)
    assert all(torch.equal(a, b) for a, b in zip(alone, kept, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "median",
        "mean:1",
        "sample",
        "sample:x",
        "sample:-1",
        "vote:0",
        "vote:x",
        "vote:2:101",
        "off:1",
        "optional:x",
    ],
)
def test_latents_that_cannot_be(text: str) -> None:
    assert refusal(lambda: Thinking.parse(text), ThoughtError).startswith(f"latents {text!r}: not mean, ")


def test_latents_by_name() -> None:
    found = [Thinking.parse(text) for text in ("mean", "off", "sample:0.2", "vote:8", "vote:8:0.5")]
    assert found == [MEAN, OFF, Thinking("sample", 0.2), Thinking("vote", 1.0, 8), Thinking("vote", 0.5, 8)]


@pytest.mark.parametrize("objective", ["deterministic", "pause", "sft"])
def test_a_model_without_a_spread_cannot_draw(model_of, items, processor, objective: str) -> None:
    text = refusal(lambda: replies(model_of(objective), items[:1], processor, VOTE), ThoughtError)
    assert text == "latents 'vote': this model has no trained spread to draw from; use mean or off"


def plain_model(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' own model with the export's backbone."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()


def image_places(plain: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    return (ids == plain.config.image_token_id).int()


@torch.no_grad()
def plain_logits(plain: Qwen2_5_VLForConditionalGeneration, item: Encoded, reply: list[int]) -> torch.Tensor:
    """[1 + len(reply), V] from the prompt's last token on, by one whole forward pass."""
    ids = torch.cat([item.prompt, torch.tensor(reply, dtype=torch.long)])
    pictures = {"pixel_values": item.pixels, "image_grid_thw": item.grids} if len(item.grids) else {}
    places = image_places(plain, ids)[None]
    logits = plain(input_ids=ids[None], mm_token_type_ids=places, use_cache=False, **pictures).logits
    return logits[0, len(item.prompt) - 1 :]


@torch.no_grad()
def plain_latent_logits(
    plain: Qwen2_5_VLForConditionalGeneration, latent: LatentVLM, item: Encoded, processor: Processor, reply: list[int]
) -> torch.Tensor:
    """The same with latents: a pass for the prior, then a whole pass over prompt, marks, latents and reply."""
    embed = plain.get_input_embeddings()
    prompt = embed(item.prompt)
    places = image_places(plain, item.prompt)
    positions = torch.arange(len(prompt)).expand(3, 1, -1)
    if len(item.grids):
        prompt[places.bool()] = torch.cat(plain.get_image_features(item.pixels, item.grids).pooler_output)
        positions, _ = plain.model.get_rope_index(item.prompt[None], places[None], item.grids)

    def states(behind: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the vectors that stand behind the prompt."""
        following = (positions.max() + 1 + torch.arange(len(behind))).expand(3, 1, -1)
        inputs = torch.cat([prompt, behind])[None]
        where = torch.cat([positions, following], dim=2)
        found = plain.model.language_model(inputs_embeds=inputs, position_ids=where, use_cache=False)
        return found.last_hidden_state[0, len(prompt) :]

    thought = latent.slots(latent.scale)
    if latent.recipe.latents != "pause":
        z = latent.prior(states(thought)[None]).mean
        thought = latent.injection(z, latent.scale)[0]
    start, end = embed(torch.tensor([processor.latent_start, processor.latent_end])).split(1)
    behind = torch.cat([start, thought, end, embed(torch.tensor(reply, dtype=torch.long))])
    return plain.lm_head(states(behind)[len(thought) + 1 :])


@pytest.mark.parametrize("objective", RECIPES)
def test_replies_and_scores_are_those_of_the_plain_model(export_of, model_of, items, processor, objective) -> None:
    """Against transformers' own attention, one sample at a time and nothing remembered."""
    plain, latent = plain_model(export_of(objective)), model_of(objective)

    def logits(item: Encoded, reply: list[int]) -> torch.Tensor:
        if objective == "sft":
            return plain_logits(plain, item, reply)
        return plain_latent_logits(plain, latent, item, processor, reply)

    found = replies(latent, items[:16], processor)
    for item, (reply,) in zip(items[:16], found, strict=True):
        best = logits(item, reply.ids).argmax(-1).tolist()
        assert best[: len(reply.ids)] == reply.ids
        assert reply.finish == "length" or best[len(reply.ids)] == processor.end
    assert {r.finish for (r,) in found} == {"end", "length"} and len({tuple(r.ids) for (r,) in found}) > 8
    for item, of_item, options in zip(
        items, scores(latent, items, processor), options_of(items, processor), strict=True
    ):
        for option, nats in zip(options, of_item.tolist(), strict=True):
            logp = logits(item, option[:-1]).log_softmax(-1)
            wanted = sum(logp[at, token].item() for at, token in enumerate(option))
            assert nats == pytest.approx(wanted, abs=1e-4)
