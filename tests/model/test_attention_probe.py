"""The probe of attention: both kinds of plan against full matrices in float64, and two packed rounds of whole models
against transformers' own eager attention over each completion alone."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference import plain_copy
from data.processor import Encoded
from model import attention_probe
from model.attention import SDPA, BackEnd, Round, packed_attention
from model.attention_probe import IMAGES, LATENTS, Probe
from model.batch import collate
from model.build import FAMILIES
from model.latent_vlm import LatentVLM
from model.layout import PREFIX, Layout, first_round, next_round
from tests.attention import SCALE, DenseKernel, Layer, positions
from tests.tiny import IMAGE, MARKERS, encoded, tiny_model

VARLEN = BackEnd("varlen", "in float64, for tests", DenseKernel())
BACK_ENDS = pytest.mark.parametrize("back_end", [SDPA, VARLEN], ids=lambda b: b.name)
HEADS = st.sampled_from([(4, 2, 8), (6, 1, 16), (3, 3, 10), (8, 2, 64)])


def _sample(branches: int) -> st.SearchStrategy:
    """A prefix's length, the branches' lengths in round 1, and in round 2."""
    lengths = st.lists(st.integers(0, 5), min_size=branches, max_size=branches)
    return st.tuples(st.integers(1, 12), lengths, lengths)


SHAPES = st.lists(st.integers(1, 4).flatmap(_sample), min_size=1, max_size=5).filter(
    lambda shapes: any(sum(later) for _, _, later in shapes)
)
# Two samples with two branches and one, and one without any branch in round 2.
SOME = [(6, [2, 1], [5, 4]), (5, [1], [0]), (9, [3], [6])]


def tensors(layout: Layout, heads: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
    numbers = (heads[0], heads[1], heads[1])
    return [torch.randn(1, n, layout.tokens, heads[2], generator=generator) * 1.5 for n in numbers]


def random_probe(layout: Layout, prefix_tokens: int, generator: torch.Generator, causal: bool = True) -> Probe:
    """Some of the round's rows in any order, some of its rows latents, some prefix tokens of images."""
    count = int(torch.randint(layout.tokens + 1, (), generator=generator))
    return Probe(
        layers=frozenset({0}),
        queries=torch.randperm(layout.tokens, generator=generator)[:count],
        latents=torch.rand(layout.tokens, generator=generator) < 0.4,
        images=torch.rand(prefix_tokens, generator=generator) < 0.4,
        causal=causal,
    )


def probed(back_end: BackEnd, layouts: list[Layout], rows: list[list[Tensor]], probe: Probe) -> Tensor:
    """What the probe finds in the last of these rounds."""
    round_ = None
    for layout, (q, k, v) in zip(layouts, rows, strict=True):
        round_ = Round.of(back_end, layout, round_, probe=probe if layout is layouts[-1] else None)
        packed_attention(Layer(), q, k, v, None, SCALE, round_=round_)
    return probe.found[0]


def full_matrix(layouts: tuple[Layout, Layout], rows: list[list[Tensor]], keep: bool, probe: Probe) -> Tensor:
    """The same from one matrix of all rows of round 2 by all rows of both rounds, in float64."""
    owners = [[(s.sample, s.branch) for s in layout.segments for _ in range(s.length)] for layout in layouts]
    before, prefix_tokens = layouts[0].tokens, sum(s.length for s in layouts[0].prefixes)
    keys = owners[0] + owners[1]
    seen = torch.zeros(len(owners[1]), len(keys), dtype=torch.bool)
    for row, (sample, branch) in enumerate(owners[1]):
        for column, owner in enumerate(keys):
            if column < before:
                seen[row, column] = owner == (sample, PREFIX) or (keep and owner == (sample, branch))
            else:
                seen[row, column] = owner == (sample, branch) and (not probe.causal or column - before <= row)
    q, k = rows[1][0][0].double(), torch.cat([rows[0][1][0], rows[1][1][0]], dim=1).double()
    scores = q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2) * SCALE  # [H, rows, keys]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).mean(0)[probe.queries]
    latents = weights[:, before:] @ probe.latents.double()
    return torch.stack([latents, weights[:, :prefix_tokens] @ probe.images.double()], dim=1)


@BACK_ENDS
@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans(), st.booleans(), HEADS, st.integers(0, 2**31))
def test_a_probe_finds_what_the_full_matrix_has(back_end, shapes, keep, causal, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = _rounds(shapes, keep)
    rows = [tensors(layout, heads, generator) for layout in (first, second)]
    probe = random_probe(second, sum(p for p, _, _ in shapes), generator, causal)
    found = probed(back_end, [first, second], rows, probe)
    assert found.dtype == torch.float32
    assert found.shape == (len(probe.queries), 2)
    torch.testing.assert_close(found.double(), full_matrix((first, second), rows, keep, probe), atol=1e-5, rtol=0)


def _rounds(shapes, keep: bool) -> tuple[Layout, Layout]:
    """Round 1 with the first branch lengths, round 2 with the second; any number of branches."""
    first = first_round([positions(p) for p, _, _ in shapes], [a for _, a, _ in shapes], keep=keep)
    starts = [list(a) if keep else [0] * len(a) for _, a, _ in shapes]
    return first, next_round(first, [b for _, _, b in shapes], starts, keep=keep)


@BACK_ENDS
def test_after_a_fork_the_images_are_those_of_the_samples_that_stay(back_end):
    """A dropped sample in front, and branches that continue none: as if the sample had never been."""
    generator = torch.Generator().manual_seed(5)
    first, _ = _rounds([(4, [3, 2], [0, 1]), (7, [3, 2], [5, 4])], keep=True)
    rows = tensors(first, (4, 2, 8), generator)
    before = Round.of(back_end, first)
    packed_attention(Layer(), *rows, None, SCALE, round_=before)
    fork = before.fork([[], [PREFIX, PREFIX]])
    later = next_round(fork.layout, [[5, 4]], [[0, 0]])
    new = tensors(later, (4, 2, 8), generator)
    probe = replace(random_probe(later, 7, generator), queries=torch.arange(9))
    packed_attention(Layer(), *new, None, SCALE, round_=Round.of(back_end, later, fork, probe=probe))

    alone = first_round([positions(7)], [[]])
    kept = [x[:, :, 4:11] for x in rows]
    expected = full_matrix((alone, next_round(alone, [[5, 4]], [[0, 0]])), [kept, new], False, probe)
    torch.testing.assert_close(probe.found[0].double(), expected, atol=1e-5, rtol=0)


# ---- Parts of the contract ----


@pytest.fixture(params=[SDPA, VARLEN], ids=lambda b: b.name)
def measure(request):
    """What a probe of SOME finds, with its fields changed."""

    def found(**changed: object) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        layouts = list(_rounds(SOME, keep=True))
        rows = [tensors(layout, (4, 2, 8), generator) for layout in layouts]
        probe = Probe(
            layers=frozenset({0}),
            queries=torch.arange(15),
            latents=torch.zeros(15, dtype=torch.bool).index_fill(0, torch.tensor([1, 2, 9, 12, 13]), True),
            images=torch.arange(20) % 3 == 0,
        )
        return probed(request.param, layouts, rows, replace(probe, **{"found": {}} | changed))

    return found


def test_no_mass_without_latents_or_images(measure):
    full = measure()
    assert (full[:, IMAGES] > 0).all()
    assert (measure(latents=torch.zeros(15, dtype=torch.bool))[:, LATENTS] == 0).all()
    without = measure(images=torch.zeros(20, dtype=torch.bool))
    assert (without[:, IMAGES] == 0).all()
    torch.testing.assert_close(without[:, LATENTS], full[:, LATENTS])
    mine = full[:, LATENTS] > 0  # rows 0 to 4, 5 to 8 and 9 to 14 are the branches; the second has no latents
    assert mine.tolist() == [False] + [True] * 4 + [False] * 4 + [True] * 6


def test_future_tokens_count_only_without_the_causal_order(measure):
    causal, released = measure(), measure(causal=False)
    ends = torch.tensor([4, 8, 14])  # the last rows of branches have no future
    torch.testing.assert_close(causal[ends], released[ends])
    others = torch.tensor([row for row in range(15) if row not in ends])
    assert (causal[others, IMAGES] > released[others, IMAGES] + 1e-6).all(), "the future takes of the images' share"
    assert released[0, LATENTS] > 0


def test_no_queries(measure):
    assert measure(queries=torch.zeros(0, dtype=torch.long)).shape == (0, 2)


def test_queries_in_any_order(measure):
    order = torch.tensor([14, 3, 9, 0, 3])
    torch.testing.assert_close(measure(queries=order), measure()[order])


@pytest.mark.parametrize("limit", [1, 100, 300])
def test_few_scores_at_a_time(measure, monkeypatch, limit: int):
    whole, sizes, real = measure(), [], attention_probe.scores

    def watching(q: Tensor, k: Tensor, scale: float) -> Tensor:
        made = real(q, k, scale)
        sizes.append((made.numel(), made.shape[1]))
        return made

    monkeypatch.setattr(attention_probe, "SCORES", limit)
    monkeypatch.setattr(attention_probe, "scores", watching)
    torch.testing.assert_close(measure(), whole, atol=1e-6, rtol=1e-5)
    assert len(sizes) > 3
    assert all(size <= limit or rows == 1 for size, rows in sizes)


def test_only_the_layers_asked_for_and_without_a_graph():
    first, second = _rounds(SOME, keep=False)
    before = Round.of(SDPA, first)
    generator = torch.Generator().manual_seed(0)
    rows = [[x.requires_grad_() for x in tensors(layout, (4, 2, 8), generator)] for layout in (first, second)]
    packed_attention(Layer(), *rows[0], None, SCALE, round_=before)
    for layers in (frozenset({0, 2}), frozenset({1})):
        probe = replace(random_probe(second, 20, generator), layers=layers)
        packed_attention(Layer(), *rows[1], None, SCALE, round_=Round.of(SDPA, second, before, probe=probe))
        assert set(probe.found) == layers & {0}
        assert not any(found.requires_grad for found in probe.found.values())


@BACK_ENDS
def test_a_round_that_runs_prefixes_is_refused(back_end):
    first, _ = _rounds(SOME, keep=False)
    probe = random_probe(first, 20, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="a probe in a round that runs prefixes"):
        Round.of(back_end, first, probe=probe)


@pytest.mark.parametrize(
    "wrong", [{"images": torch.zeros(19).bool()}, {"latents": torch.zeros(16).bool()}, {"images": torch.zeros(20)}]
)
def test_flags_that_do_not_fit(measure, wrong):
    with pytest.raises(ValueError, match=f"probe: {next(iter(wrong))} is torch"):
        measure(**wrong)


# ---- Whole models ----

COMPLETIONS = 3


def prompts() -> list[Encoded]:
    """0 to 3 images, of several sizes; the prompts' own answers are not used."""
    return [
        encoded("none", [], 7, 1),
        encoded("one", [(8, 8)], 5, 1),
        encoded("two", [(4, 6), (8, 4)], 20, 1),
        encoded("three", [(4, 4), (4, 8), (6, 4)], 11, 1),
    ]


@pytest.mark.parametrize("back_end", [SDPA, VARLEN], ids=lambda b: b.name)
@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_packed_completions_against_eager_attention(family: str, back_end: BackEnd, monkeypatch):
    """Mass per layer on latents and images, causal and as if the future were seen, of all rows of all completions."""
    model = tiny_model(family=family).eval()
    plain = plain_copy(model)
    plain.backbone.model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    model.backbone.attention = back_end
    samples, k, generator = prompts(), model.config.slots, torch.Generator().manual_seed(4)
    lengths = [[int(n) for n in torch.randint(1, 9, (COMPLETIONS,), generator=generator)] for _ in samples]
    answers = [[torch.randint(0, 480, (n,), generator=generator) for n in of_sample] for of_sample in lengths]
    latents = torch.randn(len(samples), COMPLETIONS, k, model.config.width, generator=generator)

    batch = collate(samples, model.recipe, model.config, model.backbone, MARKERS, answers=False)
    _, first = model.prompt_round(batch)
    layout = next_round(batch.first, [[k + 2 + n for n in of] for of in lengths], [[0] * COMPLETIONS for _ in samples])
    start, end, blank = torch.tensor([MARKERS.start]), torch.tensor([MARKERS.end]), torch.zeros(k, dtype=torch.long)
    ids = torch.cat([torch.cat([start, blank, end, y]) for of_sample in answers for y in of_sample])
    z_rows = torch.tensor([s.row + 1 + slot for s in layout.branches for slot in range(k)])
    inputs = model.decode_inputs(ids, z_rows, latents.flatten(0, 1))
    flags = torch.zeros(layout.tokens, dtype=torch.bool).index_fill(0, z_rows, True)
    images = torch.cat([s.prompt for s in samples]) == IMAGE
    probes = [Probe(frozenset({0, 2}), torch.arange(layout.tokens), flags, images, causal) for causal in (True, False)]
    for probe in probes:
        model.backbone.states(inputs, model.round(layout, first, probe=probe))
        assert set(probe.found) == {0, 2}

    for s in layout.branches:
        sample, answer = samples[s.sample], answers[s.sample][s.branch]
        z = plain.injection(latents[s.sample, s.branch][None], plain.scale)[0]
        weights = eager_weights(plain, sample, z, answer, monkeypatch)
        begin = len(sample.prompt)
        for layer in (0, 2):
            for probe, of_all in zip(probes, weights[layer], strict=True):
                own = of_all[begin:]
                latent, image = (
                    own[:, begin + 1 : begin + 1 + k].sum(1),
                    own[:, :begin][:, sample.prompt == IMAGE].sum(1),
                )
                found = probe.found[layer][s.row : s.row + s.length]
                torch.testing.assert_close(found, torch.stack([latent, image], 1), atol=1e-5, rtol=0)
                assert latent[-1] > 0.01
                assert (image[-1] > 0.01) == bool(len(sample.grids))


def eager_weights(
    plain: LatentVLM, sample: Encoded, z: Tensor, answer: Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor]]:
    """Attention [S, S], mean over heads, of transformers' own pass over [prompt, start, z, end, answer], per layer.

    Next to each: the weights of the same queries and keys without the causal mask; the pass itself has it.
    """
    hf = plain.backbone.model.model
    module = sys.modules[type(hf).__module__]
    eager, found = module.eager_attention_forward, []

    def watching(layer, query, key, value, attention_mask, **rest):
        out, weights = eager(layer, query, key, value, attention_mask, **rest)
        _, released = eager(layer, query, key, value, None, **rest)
        found.append((weights[0].mean(0), released[0].mean(0)))
        return out, weights

    blank = torch.zeros(len(z), dtype=torch.long)
    ids = torch.cat([sample.prompt, torch.tensor([MARKERS.start]), blank, torch.tensor([MARKERS.end]), answer])[None]
    embeddings = plain.backbone.embedding(ids)
    embeddings[0, len(sample.prompt) + 1 : len(sample.prompt) + 1 + len(z)] = z
    images = {"pixel_values": sample.pixels, "image_grid_thw": sample.grids} if len(sample.grids) else {}
    places, _ = hf.get_rope_index(
        ids, (ids == IMAGE).int(), image_grid_thw=images.get("image_grid_thw"), attention_mask=torch.ones_like(ids)
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", watching)
        hf(inputs_embeds=embeddings, position_ids=places, use_cache=False, **images)
    assert len(found) == plain.backbone.config.text_config.num_hidden_layers
    return found
