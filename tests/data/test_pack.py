"""Packs: within the budget, filled in stream order, no sample lost or cut, resumed exactly."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shards
from data.pack import Packs
from data.processor import Encoded, Processor
from data.sample import DataError, Sample, Text
from data.stream import DataConfig, Stream
from model.batch import cost
from model.objective import RECIPES

SAMPLES = 20
Lengths = list[int]  # prompt tokens of every sample of the set


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of samples whose keys are numbers, in 4 shards."""
    folder = tmp_path_factory.mktemp("numbered") / "set"
    text = Text(question="?", answer="!", task="t", source="s")
    shards.write((Sample(key=str(n), text=text) for n in range(SAMPLES)), folder, per_shard=5)
    return folder


def packs_of(folder: Path, lengths: Lengths, budget: int, recipe: str = "amvl", lanes: int = 3) -> Packs:
    """Packs over a stream whose samples have prompts of given lengths and answers of two tokens."""

    def encode(sample: Sample) -> Encoded:
        prompt = torch.arange(lengths[int(sample.key)])
        return Encoded(sample, prompt, torch.tensor([7, 8]), torch.zeros(0, 1), torch.zeros(0, 3))

    stream = Stream(DataConfig(train=folder, lanes=lanes, block=4), 0, 1, seed=5)
    return Packs(stream, encode, lambda item: cost(item, RECIPES[recipe], 2), budget)


def names(pack: list[Encoded]) -> list[tuple[str, int]]:
    return [(item.sample.key, item.sample.epoch) for item in pack]


lengths_of_all = st.lists(st.integers(1, 60), min_size=SAMPLES, max_size=SAMPLES)
budgets = st.integers(71, 300)
recipes = st.sampled_from(["amvl", "deterministic", "pause", "sft"])


@given(lengths=lengths_of_all, budget=budgets, recipe=recipes)
@settings(max_examples=60, deadline=None)
def test_packs_are_full_whole_and_in_order(numbered: Path, lengths: Lengths, budget: int, recipe: str) -> None:
    packs = packs_of(numbered, lengths, budget, recipe)
    found = list(itertools.islice(packs, 12))
    extra = {"amvl": 2 + 4 + 5, "deterministic": 2 + 5, "pause": 5, "sft": 1}[recipe]  # tokens beside the prompt
    costs = [[lengths[int(item.sample.key)] + extra for item in pack] for pack in found]
    for pack, following in itertools.pairwise(costs):
        assert 0 < sum(pack) <= budget
        assert sum(pack) + following[0] > budget  # the next sample did not fit
    drawn = [item for pack in found for item in pack]
    stream = packs_of(numbered, lengths, budget).stream
    assert names(drawn) == [(s.key, s.epoch) for s in itertools.islice(stream, len(drawn))]
    assert all(item.prompt.tolist() == list(range(lengths[int(item.sample.key)])) for item in drawn)


@given(
    lengths=lengths_of_all,
    budget=budgets,
    stops=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_resumed_packs_go_on_as_if_never_stopped(
    numbered: Path, lengths: Lengths, budget: int, stops: list[tuple[int, bool]]
) -> None:
    """Stopped with a sample that waits for room, and with a pack read ahead: both are in the next pack."""
    uninterrupted = packs_of(numbered, lengths, budget)
    wanted = [names(pack) for pack in itertools.islice(uninterrupted, sum(count for count, _ in stops) + 4)]
    found, state = [], None
    for count, ahead in [*stops, (4, False)]:
        packs = packs_of(numbered, lengths, budget)
        if state is not None:
            packs.restore(json.loads(state))
            assert json.dumps(packs.state()) == state
        found += [names(pack) for pack in itertools.islice(packs, count)]
        state = json.dumps(packs.state())
        if ahead:
            packs.prime()
            assert json.dumps(packs.state()) == state
    assert found == wanted
    assert json.dumps(uninterrupted.state()) == state


def test_reading_ahead_changes_no_pack(numbered: Path) -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(SAMPLES)]
    plain, packs = packs_of(numbered, lengths, 100), packs_of(numbered, lengths, 100)
    wanted = [(names(pack), plain.state()) for pack in itertools.islice(plain, 8)]
    found = []
    for number in range(8):
        for _ in range(number % 3):  # not at all, once, twice
            packs.prime()
        found.append((names(next(packs)), packs.state()))
    assert found == wanted


def test_reading_ahead_shows_bad_data(numbered: Path) -> None:
    packs = packs_of(numbered, [100] * SAMPLES, 50)
    with pytest.raises(DataError, match="111 tokens, more than the budget of 50"):
        packs.prime()


def test_going_back_forgets_what_was_read_ahead(numbered: Path) -> None:
    packs = packs_of(numbered, [30] * SAMPLES, 100)
    next(packs)
    state = packs.state()
    first = [names(next(packs)) for _ in range(5)]
    packs.prime()
    packs.restore(state)
    assert [names(next(packs)) for _ in range(5)] == first


@pytest.mark.parametrize("over", [0, 1])
def test_a_sample_may_fill_the_budget_but_not_more(numbered: Path, over: int) -> None:
    lengths = [10] * SAMPLES
    lengths[13] = 89 + over  # 11 tokens beside the prompt
    packs = packs_of(numbered, lengths, 100)
    if not over:
        found = [names(pack) for pack in itertools.islice(packs, 8)]
        assert [("13", 0)] in found
        return
    with pytest.raises(DataError) as caught:
        list(itertools.islice(packs, 8))
    text = str(caught.value)
    assert text.startswith(f"{numbered}/000002.tar: 13: 101 tokens, more than the budget of 100;") and "\n" not in text
    assert "raise train.tokens" in text


def test_packs_before_one_that_is_too_large_are_handed_out(numbered: Path) -> None:
    """All but the pack that it would end."""
    lengths = [10] * SAMPLES
    lengths[13] = 1000
    found = []
    with pytest.raises(DataError):
        for pack in packs_of(numbered, lengths, 25):  # one sample each
            found.append(names(pack))
    order = [s.key for s in itertools.islice(packs_of(numbered, lengths, 25).stream, SAMPLES)]
    assert [key for ((key, _),) in found] == order[: order.index("13") - 1]


@pytest.fixture
def real_packs(tiny_shards: Path, processor: Processor) -> Callable[[int], Packs]:
    """A function from a budget to packs of the small shards as training makes them."""
    return lambda budget: Packs(
        Stream(DataConfig(train=tiny_shards), 0, 1, 0),
        processor.encode,
        lambda item: cost(item, RECIPES["amvl"], 3),
        budget,
    )


def test_real_samples_are_packed(real_packs: Callable[[int], Packs], tiny_shards: Path) -> None:
    found: list[Encoded] = []
    packs = real_packs(600)
    while len(found) < 104:
        pack = next(packs)
        assert sum(cost(item, RECIPES["amvl"], 3) for item in pack) <= 600
        found += pack
    keys = {sample.key for sample in shards.read_set(tiny_shards)}
    assert {item.sample.key for item in found[:104]} == keys
    assert {len(item.grids) for item in found} == {0, 1, 2, 3}


def test_real_sample_that_is_too_large(real_packs: Callable[[int], Packs]) -> None:
    with pytest.raises(DataError) as caught:
        list(itertools.islice(real_packs(90), 104))
    text = str(caught.value)
    name, key, _ = text.split(": ", 2)
    assert "\n" not in text and name.endswith(".tar") and key.split("-")[0] in ("correspondence", "jigsaw", "pattern")
    assert "more than the budget of 90" in text and "lower model.max_pixels" in text
