"""Packs: full, within the budget, no sample lost, cut or kept waiting for long, resumed exactly."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import quickstart, shards
from data.bad import BadConfig, Quarantine
from data.loader import Loader
from data.pack import Packs
from data.pipeline import packs_of as build
from data.prepare import Prepare
from data.processor import Encoded, Processor
from data.sample import Sample, Text
from data.shards import WriteOptions
from data.stream import DataConfig, Stream
from model.batch import cost
from model.objective import RECIPES
from tests.refusal import refusal

SAMPLES = 20
TEXT = Text(question="?", answer="!", task="t", source="s")
Oversize = Literal["shrink", "drop"]


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of samples whose keys are numbers, in 4 shards."""
    folder = tmp_path_factory.mktemp("numbered") / "set"
    shards.write((Sample(key=str(n), text=TEXT) for n in range(SAMPLES)), folder, WriteOptions(per_shard=5))
    return folder


def packs_of(
    folder: Path,
    lengths: list[int],
    budget: int,
    window: int = 5,
    oversize: Oversize = "shrink",
    recipe: str = "amvl",
    too_large: int = 1000,
    rank: int = 0,
    ranks: int = 1,
) -> Packs:
    """Packs over samples with prompts of given lengths, of which a third is text, and answers of two tokens."""

    def encode(sample: Sample, fewer: int) -> Encoded:
        length = lengths[int(sample.key)]
        prompt = torch.arange(max(length - fewer, -(-length // 3)))
        return Encoded(sample, prompt, torch.tensor([7, 8]), torch.zeros(0, 1), torch.zeros(0, 3))

    def price(item: Encoded) -> int:
        return cost(item, RECIPES[recipe], 2)

    loader = Loader(Stream(config_of(folder), rank, ranks, seed=5), Prepare(encode, price, budget, oversize), workers=0)
    return Packs(loader, budget, window, Quarantine(BadConfig(too_large=too_large), None))


def config_of(folder: Path) -> DataConfig:
    return DataConfig(train=folder, lanes=3, piece=2, shuffle=4)


def names(pack: list[Encoded]) -> list[tuple[str, int]]:
    return [(item.sample.key, item.sample.epoch) for item in pack]


def order(packs: Packs, count: int) -> dict[tuple[str, int], int]:
    """The running number of the first samples that packs over the same stream draw."""
    stream = Stream(config_of(Path(packs.loader.stream.sets[0].folder)), 0, 1, seed=5)
    refs = itertools.islice(stream, count)
    return {(str(5 * ref.piece.shard + ref.sample), ref.epoch): number for number, ref in enumerate(refs)}


def drawn_by(packs: Packs) -> int:
    return sum(packs.loader.position.lanes.values())


def waiting_in(state: dict) -> list[tuple[int, int, int]]:
    return [tuple(name) for name in state["stream"]["again"]]


lengths_of_all = st.lists(st.integers(1, 60), min_size=SAMPLES, max_size=SAMPLES)
budgets = st.integers(71, 300)
recipes = st.sampled_from(["amvl", "deterministic", "pause", "sft"])
EXTRA = {"amvl": 2 + 4 + 5, "deterministic": 2 + 5, "pause": 5, "sft": 1}  # tokens beside the prompt


@given(lengths=lengths_of_all, budget=budgets, recipe=recipes, window=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_packs_are_whole_and_as_full_as_can_be(
    numbered: Path, lengths: list[int], budget: int, recipe: str, window: int
) -> None:
    """The oldest waiting sample, with the best of what waits; then as long as anything that waits fits."""
    packs = packs_of(numbered, lengths, budget, window, recipe=recipe)
    found = list(itertools.islice(packs, 12))
    assert (packs.shrunk, packs.quarantine.dropped) == (0, 0)
    assert all(item.prompt.tolist() == list(range(lengths[int(item.sample.key)])) for pack in found for item in pack)
    numbers = order(packs, 2000)
    costs = {number: lengths[int(key)] + EXTRA[recipe] for (key, _), number in numbers.items()}
    left = list(numbers.values())
    for pack in found:
        members = [numbers[name] for name in names(pack)]
        assert len(set(members)) == len(members) and set(members) <= set(left)
        assert members[0] == left[0]
        choices = [c for n in range(window + 1) for c in itertools.combinations(left[1 : window + 1], n)]
        sums = [sum(costs[number] for number in [left[0], *choice]) for choice in choices]
        filled = sum(costs[number] for number in members)
        assert max(total for total in sums if total <= budget) <= filled <= budget
        left = [number for number in left if number not in members]
        assert filled + min(costs[number] for number in left[:window]) > budget


@given(
    lengths=lengths_of_all,
    budget=st.integers(12, 120),
    window=st.integers(1, 9),
    oversize=st.sampled_from(["shrink", "drop"]),
)
@settings(max_examples=80, deadline=None)
def test_every_sample_is_handed_out_waits_or_is_counted(
    numbered: Path, lengths: list[int], budget: int, window: int, oversize: Oversize
) -> None:
    """Also those above the budget. None waits for more packs than the window has places."""
    lengths[0] = 1  # which fits
    packs = packs_of(numbered, lengths, budget, window, oversize)
    found, waited = [], Counter[int]()
    for pack in itertools.islice(packs, 30):
        found += pack
        waited.update(waiting_in(packs.state()))
    assert max(waited.values()) <= window
    waiting = waiting_in(packs.state())
    numbers = order(packs, drawn_by(packs))
    names_of = [ref.name for ref in itertools.islice(Stream(config_of(numbered), 0, 1, seed=5), len(numbers))]
    packed = {numbers[item.sample.key, item.sample.epoch]: item for item in found}
    assert len(packed) == len(found) and len(waiting) == window
    shrunk = dropped = 0
    for (key, _), number in numbers.items():
        over = lengths[int(key)] + EXTRA["amvl"] - budget
        lost = over > (lengths[int(key)] * 2 // 3 if oversize == "shrink" else 0)
        dropped += lost
        shrunk += over > 0 and number in packed
        assert (number in packed) + (names_of[number] in waiting) == (not lost)
        assert number not in packed or len(packed[number].prompt) == lengths[int(key)] - max(0, over)
    assert (packs.shrunk, packs.quarantine.dropped) == (shrunk, dropped)


@given(
    lengths=lengths_of_all,
    budget=st.integers(12, 200),
    window=st.integers(1, 9),
    oversize=st.sampled_from(["shrink", "drop"]),
    stops=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_resumed_packs_go_on_as_if_never_stopped(
    numbered: Path, lengths: list[int], budget: int, window: int, oversize: Oversize, stops: list[tuple[int, bool]]
) -> None:
    """Stopped with samples waiting, shrunk and dropped, and with a pack read ahead, over several epochs."""
    lengths[0] = 1  # which fits

    def fresh() -> Packs:
        return packs_of(numbered, lengths, budget, window, oversize)

    def seen(packs: Packs, count: int) -> list[tuple]:
        return [(names(p), [len(item.prompt) for item in p]) for p in itertools.islice(packs, count)]

    uninterrupted = fresh()
    wanted = seen(uninterrupted, sum(count for count, _ in stops) + 6)
    found, state = [], None
    for count, ahead in [*stops, (6, False)]:
        packs = fresh()
        if state is not None:
            packs.restore([json.loads(state)], 0, 1)
            assert json.dumps(packs.state()) == state
        found += seen(packs, count)
        state = json.dumps(packs.state())
        if ahead:
            packs.prime()
            assert json.dumps(packs.state()) == state
    assert found == wanted
    assert json.dumps(uninterrupted.state()) == state
    assert packs.quarantine.state() == uninterrupted.quarantine.state()


def test_a_state_is_small_and_only_what_waits_is_encoded_again(numbered: Path) -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(SAMPLES)]
    packs = packs_of(numbered, lengths, 100)
    for _ in itertools.islice(packs, 9):
        state = packs.state()
    assert set(state) == {"stream", "counts"} and len(waiting_in(state)) == 5 and len(json.dumps(state)) < 400
    again = packs_of(numbered, lengths, 100)
    work = again.loader.work
    encode, encoded = work.encode, []
    work.encode = lambda sample, fewer: encoded.append((sample.key, sample.epoch)) or encode(sample, fewer)
    again.restore([state], 0, 1)
    refs = list(itertools.islice(Stream(config_of(numbered), 0, 1, seed=5), drawn_by(packs)))
    keys = {ref.name: (str(5 * ref.piece.shard + ref.sample), ref.epoch) for ref in refs}
    again._draw()
    assert encoded == [keys[name] for name in waiting_in(state)]


@given(
    lengths=lengths_of_all,
    worlds=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=4),
    window=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_packs_dealt_out_to_other_ranks_lose_nothing(
    numbered: Path, lengths: list[int], worlds: list[tuple[int, int]], window: int
) -> None:
    """Over any numbers of ranks, which have packed more or less: no sample twice, none missing, counts kept."""
    used: list[tuple[str, int]] = []
    states: list[dict] = []
    for ranks, count in [*worlds, (1, 0)]:
        ranked = [packs_of(numbered, lengths, 100, window, rank=rank, ranks=ranks) for rank in range(ranks)]
        for rank, packs in enumerate(ranked):
            if states:
                packs.restore(states, rank, ranks)
            used += [name for pack in itertools.islice(packs, count + rank) for name in names(pack)]
        states = json.loads(json.dumps([packs.state() for packs in ranked]))
    (last,) = ranked
    assert last.quarantine.drawn == drawn_by(last) == len(used) + len(last.loader.position.again)
    while last.loader.position.again or min(turn for turn in last.loader.position.lanes.values()) < 3 * 7:
        used += names(next(last))
    first = Counter(name for name in used if name[1] == 0)
    assert first == {(str(n), 0): 1 for n in range(SAMPLES)}


def test_reading_ahead_changes_no_pack(numbered: Path) -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(SAMPLES)]
    plain, packs = packs_of(numbered, lengths, 50), packs_of(numbered, lengths, 50)
    wanted = [(names(pack), plain.state()) for pack in itertools.islice(plain, 8)]
    found = []
    for number in range(8):
        for _ in range(number % 3):  # not at all, once, twice
            packs.prime()
        found.append((names(next(packs)), packs.state()))
    assert found == wanted and packs.shrunk > 0


def test_going_back_forgets_what_was_read_ahead(numbered: Path) -> None:
    packs = packs_of(numbered, [30] * SAMPLES, 100)
    next(packs)
    state = packs.state()
    first = [names(next(packs)) for _ in range(5)]
    packs.prime()
    packs.restore([state], 0, 1)
    assert [names(next(packs)) for _ in range(5)] == first


@pytest.mark.parametrize(
    ("length", "oversize", "fate"),
    [
        (89, "drop", "whole"),
        (90, "drop", "dropped"),
        (90, "shrink", "shrunk"),
        (267, "shrink", "shrunk"),
        (268, "shrink", "dropped"),
    ],
)
def test_a_sample_may_fill_the_budget_but_not_more(numbered: Path, length: int, oversize: Oversize, fate: str) -> None:
    """11 tokens stand beside the prompt, a third of the prompt is text."""
    packs = packs_of(numbered, [10] * 13 + [length] + [10] * 6, 100, oversize=oversize)
    found = [item for pack in itertools.islice(packs, 6) for item in pack if item.sample.key == "13"]
    assert {len(item.prompt) for item in found} == ({89} if fate != "dropped" else set())
    assert (packs.shrunk > 0, packs.quarantine.dropped > 0) == (fate == "shrunk", fate == "dropped")


@pytest.mark.parametrize("oversize", ["shrink", "drop"])
def test_a_budget_below_every_sample_is_refused(numbered: Path, oversize: Oversize) -> None:
    packs = packs_of(numbered, [300] * SAMPLES, 50, oversize=oversize, too_large=57)
    text = refusal(packs.prime)
    key = list(order(packs, 57))[-1][0]
    cost = 111 if oversize == "shrink" else 311
    assert text.startswith("none of the last 57 samples fits (data.bad.too_large 57); ")
    assert f"{numbered}/00000{int(key) // 5}.tar: {key}: {cost} tokens, more than the budget of 50; " in text
    assert text.endswith("raise train.tokens or lower model.max_pixels")
    assert packs.quarantine.dropped == 57


def test_single_samples_that_fit_keep_a_run_going(numbered: Path) -> None:
    """One of twenty: a pass holds it, so nothing is in vain."""
    packs = packs_of(numbered, [1000] * 19 + [10], 40, window=1)
    assert names([next(packs)[0] for _ in range(4)]) == [("19", epoch) for epoch in range(4)]


def image_text(rng: random.Random) -> int:
    """Tokens of a sample with a log-normal text and up to five images."""
    images = rng.choices(range(6), [10, 60, 12, 8, 6, 4])[0]
    return min(8192, int(rng.lognormvariate(5.3, 1.0)) + 20 + sum(rng.randint(64, 1280) for _ in range(images)))


def one_large_image(rng: random.Random) -> int:
    """Tokens of a sample with a short text and an image of one of a few sizes."""
    return min(4096, int(rng.lognormvariate(5.0, 0.8)) + 20 + rng.choice([750, 960, 1196, 1220, 1280]))


@pytest.mark.parametrize(
    ("length", "budget"), [(image_text, 8192), (image_text, 16384), (one_large_image, 4096), (one_large_image, 8192)]
)
def test_packs_of_drawn_lengths_are_full(tmp_path: Path, length: Callable[[random.Random], int], budget: int) -> None:
    rng = random.Random(0)
    lengths = [length(rng) for _ in range(1000)]
    shards.write((Sample(key=str(n), text=TEXT) for n in range(len(lengths))), tmp_path, WriteOptions(per_shard=100))
    packs = packs_of(tmp_path, lengths, budget, window=64, recipe="sft")
    check_full([[cost(item, RECIPES["sft"], 2) for item in pack] for pack in itertools.islice(packs, 300)], budget)


@pytest.mark.parametrize("recipe", ["amvl", "sft"])
def test_packs_of_the_quickstart_are_full(tmp_path: Path, processor: Processor, recipe: str) -> None:
    """easy-vqa and puzzles as the quickstart mixes and packs them."""
    samples = quickstart.mixed("train", {"easy_vqa": 250, "puzzles": 250})
    shards.write(samples, tmp_path, WriteOptions(per_shard=100))
    price = partial(cost, recipe=RECIPES[recipe], slots=4)
    packs = build(DataConfig(train=tmp_path, workers=0), processor.encode, price, 2000, seed=0)
    check_full([[cost(item, RECIPES[recipe], 4) for item in pack] for pack in itertools.islice(packs, 20)], 2000)
    assert (packs.shrunk, packs.quarantine.dropped) == (0, 0)


def check_full(packs: list[list[int]], budget: int) -> None:
    fills = [sum(pack) / budget for pack in packs]
    mean = sum(fills) / len(fills)
    samples = sum(map(len, packs)) / len(packs)
    print(f"filled to {mean:.4f} on average, to {min(fills):.4f} at least, with {samples:.1f} samples on average")
    assert mean >= 0.95 and max(fills) <= 1


@pytest.fixture
def real_packs(tiny_shards: Path, processor: Processor) -> Callable[[int], Packs]:
    """A function from a budget to packs of the small shards as training makes them."""
    config = DataConfig(train=tiny_shards, workers=0, window=16)
    price = partial(cost, recipe=RECIPES["amvl"], slots=3)
    return lambda budget: build(config, processor.encode, price, budget, seed=0)


def test_real_samples_are_packed(real_packs: Callable[[int], Packs], tiny_shards: Path) -> None:
    found: list[Encoded] = []
    packs = real_packs(600)
    while min(turn for *_, turn in waiting_in(packs.state()) or [(0, 0, 0)]) < 2:  # lanes are of one and two samples
        pack = next(packs)
        assert sum(cost(item, RECIPES["amvl"], 3) for item in pack) <= 600
        found += pack
    first = Counter(item.sample.key for item in found if item.sample.epoch == 0)
    assert first == dict.fromkeys((sample.key for sample in shards.read_set(tiny_shards)), 1)
    assert {len(item.grids) for item in found} == {0, 1, 2, 3} and (packs.shrunk, packs.quarantine.dropped) == (0, 0)


def bits(pack: list[Encoded]) -> Iterator[tuple]:
    """All that a pack holds."""
    for item in pack:
        parts = (item.prompt, item.answer, item.pixels, item.grids)
        yield item.sample, *[(part.shape, part.numpy().tobytes()) for part in parts]


@pytest.mark.parametrize("budget", [75, 110, 600])
def test_real_samples_are_packed_the_same_after_a_stop(real_packs: Callable[[int], Packs], budget: int) -> None:
    """At budgets where many, some and no pictures are shrunk; stopped after each number of packs, read ahead or not."""
    plain = real_packs(budget)
    wanted = [list(bits(pack)) for pack in itertools.islice(plain, 18)]
    packs, found = real_packs(budget), []
    for count in (1, 2, 0, 7, 8):
        found += [list(bits(pack)) for pack in itertools.islice(packs, count)]
        state = json.dumps(packs.state())
        packs.prime()
        assert json.dumps(packs.state()) == state
        packs = real_packs(budget)
        packs.restore([json.loads(state)], 0, 1)
    assert found == wanted
    assert packs.state() == plain.state() and (plain.shrunk > 0) == (budget < 600)


def test_real_samples_that_are_too_large(real_packs: Callable[[int], Packs]) -> None:
    text = refusal(real_packs(20).prime)
    start, _, rest = text.partition("; ")
    name, key, _ = rest.split(": ", 2)
    assert name.endswith(".tar") and key.split("-")[0] in (*quickstart.KINDS, "sums")
    assert start == "none of the last 1000 samples fits (data.bad.too_large 1000)"
    assert "more than the budget of 20; raise train.tokens" in text
