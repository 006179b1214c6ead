"""The stream: every sample once per epoch, whoever owns its lane; stopped and dealt out again without loss."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shards
from data.lanes import Lane, Ref, pieces_of
from data.sample import DataError, Sample, Text
from data.shards import WriteOptions
from data.stream import DataConfig, Stream
from tests.refusal import refusal

SHAPES = [[1], [5], [2, 7], [9, 1, 1], [5, 23, 4, 12], [1] * 12]  # samples of each shard
TEXT = Text(question="?", answer="!", task="t", source="s")
Draw = tuple[int, int, int, int]  # set, shard, sample, epoch


def write_set(folder: Path, shape: list[int]) -> Path:
    """A set of text-only samples with shards of given sizes."""
    parts = []
    for number, samples in enumerate(shape):
        part = folder / f"part{number}"
        made = (Sample(key=f"{number:02d}-{n:03d}", text=TEXT) for n in range(samples))
        (shard,) = shards.write(made, part, WriteOptions(per_shard=samples))
        name = f"{number:06d}.tar"
        (part / shard.shard).rename(folder / name)
        (part / f"{shard.shard}.idx").rename(folder / f"{name}.idx")
        parts.append(shard.model_copy(update={"shard": name}))
    (folder / shards.INDEX).write_text(json.dumps([part.model_dump() for part in parts]))
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_set(tmp_path_factory.mktemp("set"), shape) for shape in SHAPES]


def draws(stream: Stream, count: int) -> list[Draw]:
    return [(ref.set, ref.piece.shard, ref.sample, ref.epoch) for ref in itertools.islice(stream, count)]


def epochs_of(streams: list[Stream], epochs: int) -> Counter[Draw]:
    """What the first epochs of all lanes hold, drawn by as many draws as the longest lane takes."""
    found: Counter[Draw] = Counter()
    for stream in streams:
        longest = max(lane.size for lanes in stream.lanes for lane in lanes)
        count = epochs * longest * sum(map(len, stream.lanes))
        found.update(draw for draw in draws(stream, count) if draw[3] < epochs)
    return found


def whole(shape: list[int], epochs: int) -> Counter[Draw]:
    places = [(shard, sample) for shard, samples in enumerate(shape) for sample in range(samples)]
    return Counter((0, *place, epoch) for place in places for epoch in range(epochs))


@st.composite
def settings_of(draw: st.DrawFn, most_ranks: int = 4) -> tuple[int, int, dict[str, int], int]:
    """(which set, ranks, lanes and sizes, seed) that fit together."""
    which = draw(st.integers(0, len(SHAPES) - 1))
    lanes = draw(st.integers(1, 14))
    ranks = draw(st.integers(1, min(lanes, sum(SHAPES[which]), most_ranks)))
    sizes = {"lanes": lanes, "piece": draw(st.integers(1, 6)), "shuffle": draw(st.integers(1, 12))}
    return which, ranks, sizes, draw(st.integers(0, 2**32))


def streams_of(folder: Path, ranks: int, sizes: dict[str, int], seed: int) -> list[Stream]:
    config = DataConfig(train=str(folder), **sizes)
    return [Stream(config, rank, ranks, seed) for rank in range(ranks)]


@given(shape=st.lists(st.integers(1, 30), min_size=1, max_size=8), lanes=st.integers(1, 20), size=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_lanes_part_a_set_into_equal_parts(shape: list[int], lanes: int, size: int) -> None:
    starts = [0, *itertools.accumulate(shape)]
    lanes = min(lanes, starts[-1])
    parts = [pieces_of(starts, lane, lanes, size) for lane in range(lanes)]
    samples = [[(p.shard, n) for p in part for n in range(p.first, p.last)] for part in parts]
    assert [s for part in samples for s in part] == [(k, n) for k, count in enumerate(shape) for n in range(count)]
    assert max(map(len, samples)) - min(map(len, samples)) <= 1
    assert all(0 < p.last - p.first <= size for part in parts for p in part)


@given(seed=st.integers(0, 99), turns=st.lists(st.integers(0, 200), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_lane_is_a_function_of_the_turn(seed: int, turns: list[int]) -> None:
    """In whatever order it is asked; each epoch holds every sample once, and reads a piece within one block only."""
    pieces = pieces_of([0, 9, 30, 41], 0, 1, 4)
    in_order = [Lane((0, 0), pieces, 3, seed).at(turn) for turn in range(201)]
    jumping = Lane((0, 0), pieces, 3, seed)
    assert [jumping.at(turn) for turn in turns] == [in_order[turn] for turn in turns]
    for epoch in range(4):
        part = in_order[41 * epoch : 41 * (epoch + 1)]
        assert {ref.epoch for ref in part} == {epoch} and len({ref.place for ref in part}) == 41
        blocks = [ref.block for ref in part]
        assert blocks == sorted(blocks)
        assert all(len({ref.block for ref in part if ref.piece == piece}) == 1 for piece in pieces)


@given(case=settings_of(), epochs=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_every_sample_once_per_epoch_over_all_ranks(sets: list[Path], case: tuple, epochs: int) -> None:
    which, ranks, sizes, seed = case
    assert epochs_of(streams_of(sets[which], ranks, sizes, seed), epochs) == whole(SHAPES[which], epochs)


@given(case=settings_of(), stops=st.lists(st.integers(0, 40), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_resumed_goes_on_as_if_never_stopped(sets: list[Path], case: tuple, stops: list[int]) -> None:
    """With the same ranks, stopped and resumed again and again, over ends of blocks, shards and epochs."""
    which, ranks, sizes, seed = case
    unbroken = streams_of(sets[which], ranks, sizes, seed)
    wanted = [draws(stream, sum(stops) + 30) for stream in unbroken]
    found: list[list[Draw]] = [[] for _ in range(ranks)]
    states: list[dict] = []
    for count in [*stops, 30]:
        streams = streams_of(sets[which], ranks, sizes, seed)
        for rank, stream in enumerate(streams):
            if states:
                stream.restore(json.loads(json.dumps(states)))
            found[rank] += draws(stream, count)
        states = [stream.state(stream.position) for stream in streams]
    assert found == wanted
    assert states == [stream.state(stream.position) for stream in unbroken]


@given(case=settings_of(), worlds=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
@settings(max_examples=100, deadline=None)
def test_dealt_out_to_other_ranks_nothing_is_lost_or_repeated(
    sets: list[Path], case: tuple, worlds: list[int], data: st.DataObject
) -> None:
    """Also what was drawn without anything coming of it (`again`), which the next owner of its lane draws first."""
    which, _, sizes, seed = case
    most = min(sizes["lanes"], sum(SHAPES[which]))
    used: Counter[Draw] = Counter()
    states: list[dict] = []
    for ranks in worlds:
        streams = streams_of(sets[which], min(ranks, most), sizes, seed)
        for stream in streams:
            if states:
                stream.restore(states)
        states_now = []
        for stream in streams:
            drawn = list(itertools.islice(stream, data.draw(st.integers(0, 25))))
            kept = data.draw(st.integers(0, len(drawn)))  # the rest was drawn, and is to be handed out again
            used.update((ref.set, ref.piece.shard, ref.sample, ref.epoch) for ref in drawn[:kept])
            states_now.append(stream.state(stream.position, [ref.name for ref in drawn[kept:]]))
        states = json.loads(json.dumps(states_now))
    (last,) = streams_of(sets[which], 1, sizes, seed)
    last.restore(states)
    epochs = 1 + max((draw[3] for draw in used), default=0)
    ends = {lane.number: epochs * lane.size for lane in last.lanes[0]}
    while last.position.again or any(last.position.lanes[number] < end for number, end in ends.items()):
        used.update(draws(last, 1))
    assert Counter({draw: n for draw, n in used.items() if draw[3] < epochs}) == whole(SHAPES[which], epochs)


def test_a_state_is_small_plain_json(sets: list[Path]) -> None:
    stream = Stream(DataConfig(train=str(sets[4]), lanes=3), 0, 1, seed=7)
    drawn = [next(stream).name for _ in range(5)]
    state = json.loads(json.dumps(stream.state(stream.position, drawn[-1:])))
    assert state["lanes"] == {"0/0": 2, "0/1": 2, "0/2": 1}
    assert state["turns"] == [5] and state["again"] == [list(drawn[-1])] == [[0, 1, 1]]
    assert state["plan"] == {"seed": 7, "lanes": 3, "piece": 64, "shuffle": 256, "sets": [stream.sets[0].fingerprint]}


def test_a_state_is_a_copy(sets: list[Path]) -> None:
    stream = Stream(DataConfig(train=str(sets[4]), lanes=3), 0, 1, 0)
    state = stream.state(stream.position)
    first = draws(stream, 20)
    stream.restore([state])
    assert draws(stream, 20) == first


@pytest.mark.parametrize(("weights", "parts"), [((3, 1), (0.75, 0.25)), ((1, 1), (0.5, 0.5)), (None, (9, 44))])
def test_sets_are_mixed_by_weight(sets: list[Path], weights: tuple | None, parts: tuple) -> None:
    """At every moment as near as whole samples allow; without weights, by size, so that epochs keep in step."""
    train = [{"folder": str(sets[n]), "weight": weights[i] if weights else None} for i, n in enumerate((2, 4))]
    drawn = draws(Stream(DataConfig(train=train), 0, 1, 0), 53 * 3)
    part = parts[0] / sum(parts)
    for count in range(1, len(drawn) + 1):
        assert abs(sum(draw[0] == 0 for draw in drawn[:count]) - part * count) <= 1
    for number, shape in ((0, SHAPES[2]), (1, SHAPES[4])):
        first = Counter(draw for draw in drawn if draw[0] == number and draw[3] == 0)
        assert set(first.values()) == {1} and len(first) <= sum(shape)
    if weights is None:
        assert {draw[3] for draw in drawn} == {0, 1, 2}


def test_weights_are_given_to_all_sets_or_none(sets: list[Path]) -> None:
    with pytest.raises(ValueError, match="give all of them one, or none"):
        DataConfig(train=[{"folder": str(sets[1]), "weight": 2}, {"folder": str(sets[2])}])
    assert DataConfig(train=sets[1]).train[0].folder == str(sets[1])
    with pytest.raises(ValueError, match="train"):
        DataConfig(train=[])


def test_order_differs_between_epochs_seeds_and_lanes(sets: list[Path]) -> None:
    orders = []
    for seed in range(4):
        drawn = draws(Stream(DataConfig(train=str(sets[4]), lanes=1), 0, 1, seed), 88)
        orders += [tuple(d[1:3] for d in drawn if d[3] == epoch) for epoch in (0, 1)]
    assert len(set(orders)) == 8 and len({tuple(sorted(order)) for order in orders}) == 1
    again = draws(Stream(DataConfig(train=str(sets[4]), lanes=1), 0, 1, 0), 44)
    assert tuple(d[1:3] for d in again) == orders[0]


def test_lane_order_depends_on_no_world(sets: list[Path]) -> None:
    """A lane hands out the same samples in the same order whichever rank owns it."""

    def by_lane(ranks: int) -> dict[int, list[Ref]]:
        refs = [ref for stream in streams_of(sets[4], ranks, {"lanes": 6}, 3) for ref in itertools.islice(stream, 60)]
        return {lane: [ref for ref in refs if ref.lane == lane][:10] for lane in range(6)}

    assert by_lane(1) == by_lane(2) == by_lane(3)


def test_a_block_mixes_samples_of_several_pieces(sets: list[Path]) -> None:
    """In the order of the set, neighbours would follow each other 43 times."""
    config = DataConfig(train=str(sets[4]), lanes=1, piece=4, shuffle=16)
    places = [draw[1:3] for draw in draws(Stream(config, 0, 1, 0), 44)]
    assert sum(b == (a[0], a[1] + 1) for a, b in itertools.pairwise(places)) < 10


def test_shuffling_uses_no_global_generator(sets: list[Path]) -> None:
    random.seed(1)
    state = random.getstate()
    draws(Stream(DataConfig(train=str(sets[4])), 0, 1, 0), 100)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("which", "lanes", "ranks", "mend"),
    [(0, 64, 2, "start fewer ranks"), (4, 2, 3, "raise data.lanes"), (1, 64, 6, "start fewer ranks")],
)
def test_too_few_lanes_for_the_ranks(sets: list[Path], which: int, lanes: int, ranks: int, mend: str) -> None:
    text = refusal(lambda: Stream(DataConfig(train=str(sets[which]), lanes=lanes), 0, ranks, 0))
    assert mend in text and str(sets[which]) in text


def test_more_ranks_than_shards(sets: list[Path]) -> None:
    """One shard of five samples over five ranks."""
    assert epochs_of(streams_of(sets[1], 5, {"lanes": 64}, 0), 2) == whole(SHAPES[1], 2)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"lanes": 5}, "data.lanes"), ({"piece": 5}, "data.piece"), ({"shuffle": 5}, "data.shuffle"), ({}, "run.seed")],
)
def test_a_state_of_other_settings_is_refused(sets: list[Path], change: dict[str, int], what: str) -> None:
    state = Stream(DataConfig(train=str(sets[4])), 0, 1, 0).state(Stream(DataConfig(train=sets[4]), 0, 1, 0).position)
    other = Stream(DataConfig(train=str(sets[4]), **change), 0, 1, 0 if change else 1)
    assert refusal(lambda: other.restore([state])).startswith(f"{what} changed since the checkpoint")


def test_a_state_of_another_set_is_refused(sets: list[Path]) -> None:
    stream = Stream(DataConfig(train=str(sets[3])), 0, 1, 0)
    with pytest.raises(DataError, match=r"the shards of data\.train changed"):
        Stream(DataConfig(train=str(sets[4])), 0, 1, 0).restore([stream.state(stream.position)])


def test_states_of_some_ranks_are_not_enough(sets: list[Path]) -> None:
    first, second = streams_of(sets[4], 2, {"lanes": 4}, 0)
    (alone,) = streams_of(sets[4], 1, {"lanes": 4}, 0)
    with pytest.raises(DataError, match="no rank's state has the stream's lane 0/1"):
        alone.restore([first.state(first.position)])
    alone.restore([second.state(second.position), first.state(first.position)])
