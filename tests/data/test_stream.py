"""The stream: every sample once per epoch, stopped and resumed exactly, split between ranks without overlap."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shards
from data.sample import DataError, Sample, Text
from data.stream import DataConfig, Stream

SHAPES = [(1, 5, 5), (2, 7, 4), (3, 9, 3), (5, 23, 5), (8, 29, 4), (12, 12, 1)]  # shards, samples, per shard


def keys_of(stream: Stream, count: int) -> list[tuple[str, int]]:
    """Key and epoch of the next samples."""
    return [(sample.key, sample.epoch) for sample in itertools.islice(stream, count)]


def per_epoch(stream: Stream) -> int:
    """The samples of the longest of a stream's lanes times their number: by then each was through once."""
    return len(stream.lanes) * max(sum(shard.samples for shard in lane.shards) for lane in stream.lanes)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sets of text-only samples with the shapes above."""
    folders = []
    for count, samples, per_shard in SHAPES:
        folder = tmp_path_factory.mktemp("sets") / f"{count}"
        text = Text(question="?", answer="!", task="t", source="s")
        made = shards.write((Sample(key=f"{n:03d}", text=text) for n in range(samples)), folder, per_shard)
        assert len(made) == count
        folders.append(folder)
    return folders


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """(which set, lanes asked for, ranks, block, seed) that fit together."""
    which = draw(st.integers(0, len(SHAPES) - 1))
    lanes = draw(st.integers(1, 14))
    ranks = draw(st.integers(1, min(lanes, SHAPES[which][0], 3)))
    return which, lanes, ranks, draw(st.integers(1, 10)), draw(st.integers(0, 2**32))


def rank_streams(sets: list[Path], split: tuple[int, int, int, int, int]) -> list[Stream]:
    which, lanes, ranks, block, seed = split
    config = DataConfig(train=sets[which], lanes=lanes, block=block)
    return [Stream(config, rank, ranks, seed) for rank in range(ranks)]


@given(split=splits(), epochs=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_sample_once_per_epoch_over_all_ranks(sets: list[Path], split: tuple, epochs: int) -> None:
    streams = rank_streams(sets, split)
    drawn = Counter(pair for stream in streams for pair in keys_of(stream, epochs * per_epoch(stream)))
    wanted = {(f"{n:03d}", epoch) for n in range(SHAPES[split[0]][1]) for epoch in range(epochs)}
    assert {pair: n for pair, n in drawn.items() if pair[1] < epochs} == dict.fromkeys(wanted, 1)
    numbers = [lane.number for stream in streams for lane in stream.lanes]
    assert sorted(numbers) == list(range(min(split[1], SHAPES[split[0]][0])))


@given(split=splits())
@settings(max_examples=30, deadline=None)
def test_lanes_take_turns(sets: list[Path], split: tuple) -> None:
    """A rank's n-th sample is of its lane n modulo lanes, which is the same whatever the number of ranks."""
    which, lanes, ranks, block, seed = split
    (alone,) = rank_streams(sets, (which, lanes, 1, block, seed))
    drawn = keys_of(alone, 5 * len(alone.lanes))
    for rank, stream in enumerate(rank_streams(sets, split)):
        own = keys_of(stream, 5 * len(stream.lanes))
        for turn in range(len(stream.lanes)):
            assert own[turn :: len(stream.lanes)] == drawn[rank + ranks * turn :: len(alone.lanes)]


@given(split=splits(), stops=st.lists(st.integers(0, 40), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_resumed_goes_on_as_if_never_stopped(sets: list[Path], split: tuple, stops: list[int]) -> None:
    """Stopped and resumed again and again, over ends of blocks, shards and epochs."""
    for rank, uninterrupted in enumerate(rank_streams(sets, split)):
        wanted = keys_of(uninterrupted, sum(stops) + 30)
        found, state = [], None
        for count in [*stops, 30]:
            stream = rank_streams(sets, split)[rank]
            if state is not None:
                stream.restore(json.loads(state))
            found += keys_of(stream, count)
            state = json.dumps(stream.state())
        assert found == wanted
        assert json.dumps(uninterrupted.state()) == state


@given(split=splits(), before=st.integers(0, 30), ahead=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_going_back_in_the_same_stream(sets: list[Path], split: tuple, before: int, ahead: int) -> None:
    """A state is a copy: samples drawn after it do not move it. Any other place can be gone to as well."""
    stream = rank_streams(sets, split)[0]
    drawn = keys_of(stream, before)
    state = stream.state()
    first = keys_of(stream, ahead)
    stream.restore(state)
    assert keys_of(stream, ahead) == first
    for taken in range(0, before + 1, 7):
        stream.seek(taken)
        assert stream.taken == taken and keys_of(stream, before - taken + ahead) == drawn[taken:] + first


@given(split=splits(), before=st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_a_full_pass_holds_every_sample(sets: list[Path], split: tuple, before: int) -> None:
    """Wherever it begins."""
    streams = rank_streams(sets, split)
    found = set()
    for stream in streams:
        stream.seek(before)
        found |= {key for key, _ in keys_of(stream, stream.full_pass)}
    assert len(found) == SHAPES[split[0]][1]


def orders(folder: Path, seed: int, block: int = 256) -> list[list[str]]:
    """The keys of two epochs of the set of 29 samples in one lane."""
    drawn = keys_of(Stream(DataConfig(train=folder, lanes=1, block=block), 0, 1, seed), 58)
    return [[key for key, epoch in drawn if epoch == wanted] for wanted in (0, 1)]


def test_order_differs_between_epochs_and_seeds(sets: list[Path]) -> None:
    found = [tuple(keys) for seed in range(4) for keys in orders(sets[4], seed)]
    assert len(set(found)) == 8
    assert {tuple(sorted(keys)) for keys in found} == {tuple(f"{n:03d}" for n in range(29))}
    assert orders(sets[4], 0) == orders(sets[4], 0)


def test_both_shards_and_samples_are_shuffled(sets: list[Path]) -> None:
    """A block of one keeps the order within the shards of four; larger ones mix samples of several shards."""
    (unmixed, _), (mixed, _) = orders(sets[4], 0, block=1), orders(sets[4], 0, block=12)
    starts = [run[0] for run in runs(unmixed)]
    assert sorted(starts) == [f"{n:03d}" for n in range(0, 29, 4)] != starts
    assert len(runs(mixed)) > 20


def runs(keys: list[str]) -> list[list[str]]:
    """Keys in runs that follow each other in one shard of four."""
    found: list[list[str]] = []
    for key in keys:
        if found and int(key) == int(found[-1][-1]) + 1 and int(key) % 4:
            found[-1].append(key)
        else:
            found.append([key])
    return found


def test_shuffling_uses_no_global_generator(sets: list[Path]) -> None:
    random.seed(1)
    first = orders(sets[4], 0)
    state = random.getstate()
    assert orders(sets[4], 0) == first and random.getstate() == state


@pytest.mark.parametrize(("which", "lanes", "ranks"), [(0, 64, 2), (2, 2, 3), (2, 64, 4)])
def test_too_few_lanes_for_the_ranks(sets: list[Path], which: int, lanes: int, ranks: int) -> None:
    with pytest.raises(DataError) as caught:
        Stream(DataConfig(train=sets[which], lanes=lanes), 0, ranks, 0)
    text = str(caught.value)
    assert "\n" not in text and str(sets[which]) in text
    assert f"{min(lanes, SHAPES[which][0])} lanes for {ranks} ranks" in text and f"at least {ranks} shards" in text


@pytest.mark.parametrize(("rank", "ranks"), [(1, 2), (0, 1), (0, 4)])
def test_lanes_of_another_rank_are_refused(sets: list[Path], rank: int, ranks: int) -> None:
    """A state of rank 0 of 2 fits neither rank 1 nor another number of ranks, and changes nothing there."""
    config = DataConfig(train=sets[4])
    first = Stream(config, 0, 2, 0)
    keys_of(first, 5)
    other = Stream(config, rank, ranks, 0)
    with pytest.raises(DataError, match="resume with the ranks it was written with") as caught:
        other.restore(first.state())
    assert "\n" not in str(caught.value)
    assert keys_of(other, 10) == keys_of(Stream(config, rank, ranks, 0), 10)


def test_damage_shows_when_its_shard_is_read(sets: list[Path], tmp_path: Path) -> None:
    """A shard that lost its end after the index was written does not shorten an epoch silently."""
    for path in sets[3].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "000002.tar"
    content = bytearray(damaged.read_bytes())
    content[2 * 1024 + 5] ^= 1  # the header of its third sample
    damaged.write_bytes(content)
    stream = Stream(DataConfig(train=tmp_path, lanes=1, block=1), 0, 1, 0)
    with pytest.raises(DataError, match=r"000002\.tar: ends after 011 with 2 samples, not 5"):
        keys_of(stream, 23)


def test_a_state_of_another_set_is_refused(sets: list[Path]) -> None:
    state = Stream(DataConfig(train=sets[3]), 0, 1, 0).state()
    other = Stream(DataConfig(train=sets[4]), 0, 1, 0)
    with pytest.raises(DataError, match="the shard set changed"):
        other.restore(state)
