"""Generated puzzles: valid, repeatable, split cleanly, not to be guessed from text, right in their pixels."""

import io
import itertools
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.puzzles import DIFFICULTIES, KINDS, SIZES, SPLITS, generate, seeds, stream
from data.puzzles.draw import BASIC, COLOURS, font, letter_points
from data.sample import IMAGE_MARK, LETTERS, Sample

ALL = [(kind, difficulty) for kind in KINDS for difficulty in DIFFICULTIES]
Spot = tuple[int, int]  # row, column of a pixel


def pixels(sample: Sample, at: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.images[at])).convert("RGB")).astype(int)


def chosen(sample: Sample) -> str:
    return sample.text.choices[LETTERS.index(sample.text.answer)]


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels have a named colour."""
    return np.abs(picture - np.array(COLOURS[colour])).max(axis=-1) <= 10


def flooded(mask: np.ndarray, start: Spot) -> set[Spot]:
    """The pixels of a mask that are joined by their sides to a start."""
    todo, seen = [start], {start}
    while todo:
        row, column = todo.pop()
        for spot in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= spot[0] < mask.shape[0] and 0 <= spot[1] < mask.shape[1]
            if inside and mask[spot] and spot not in seen:
                seen.add(spot)
                todo.append(spot)
    return seen


def regions(mask: np.ndarray) -> list[set[Spot]]:
    left = set(zip(*(axis.tolist() for axis in mask.nonzero()), strict=True))
    found = []
    while left:
        region = flooded(mask, min(left))
        found.append(region)
        left -= region
    return found


def shape_of(region: set[Spot]) -> str:
    """What shape a region is, by how much of its box it fills and where."""
    rows, columns = zip(*region, strict=True)
    height, width = max(rows) - min(rows) + 1, max(columns) - min(columns) + 1
    if len(region) > 0.95 * height * width:
        return "square"
    corners = itertools.product((min(rows), max(rows)), (min(columns), max(columns)))
    if len(region & set(corners)) == 2:
        return "triangle"
    return "disc" if len(region) > 0.68 * height * width else "cross"


def middle(mask: np.ndarray) -> tuple[float, float]:
    """The mean row and column of a mask."""
    rows, columns = mask.nonzero()
    return float(rows.mean()), float(columns.mean())


def things_seen(picture: np.ndarray) -> tuple[str, str, int]:
    """The shape, colour and number of a picture's equal things."""
    (colour,) = [c for c in BASIC if near(picture, c).any()]
    found = regions(near(picture, colour))
    (name,) = {shape_of(region) for region in found}
    return name, colour, len(found)


def cases(count: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(count), SIZES))


@given(st.sampled_from(ALL), st.sampled_from(SIZES), st.integers(0, 10**9 - 1))
@settings(max_examples=150, deadline=None)
def test_every_puzzle_is_a_valid_sample(which: tuple[str, int], size: int, seed: int) -> None:
    kind, difficulty = which
    sample = generate(kind, seed, size, difficulty)
    assert sample.key == f"{kind}-s{size}-d{difficulty}-{seed:09d}"
    assert (sample.text.task, sample.text.source) == (kind, "puzzles")
    assert len(set(sample.text.choices)) == len(sample.text.choices) == (2 if kind == "jigsaw" else 4)
    assert sample.text.answer in LETTERS[: len(sample.text.choices)]
    marks = sample.text.question.count(IMAGE_MARK)
    assert marks == (len(sample.images) if len(sample.images) > 1 else 0)
    for image in sample.images:
        width, height = Image.open(io.BytesIO(image)).size
        assert height == size and width in (size, 2 * size)


@given(st.sampled_from(ALL), st.sampled_from(SIZES), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_same_arguments_make_the_same_sample(which: tuple[str, int], size: int, seed: int) -> None:
    random.seed(seed)  # the global generator plays no part
    assert generate(which[0], seed, size, which[1]) == generate(which[0], seed, size, which[1])


def test_another_process_makes_the_same_samples() -> None:
    """Nothing depends on Python's own hashes, which differ between processes."""
    code = (
        "from data.puzzles import KINDS, generate; import hashlib; print(hashlib.sha256(repr("
        "[generate(k, 7, 64, d) for k in KINDS for d in (1, 2, 3)]).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("sudoku", 1), ("'sudoku'", "counting", "maze")),
        (("maze", 1, 65), ("65", "64, 96, 128")),
        (("maze", 1, 64, 4), ("4", "1, 2, 3")),
        (("maze", -1), ("-1",)),
    ],
)
def test_unknown_arguments_are_named(arguments: tuple, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        generate(*arguments)
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts)


def test_stream_checks_before_it_starts() -> None:
    with pytest.raises(ValueError, match="'test': one of train, heldout"):
        stream(["maze"], "test", 1)
    with pytest.raises(ValueError, match="unknown kind 'sudoku'"):
        stream(["maze", "sudoku"], "train", 1)
    with pytest.raises(ValueError, match="no size given"):
        stream(["maze"], "train", 1, sizes=())


def test_stream_cycles_evenly() -> None:
    kinds = ["maze", "counting", "pattern"]
    samples = list(stream(kinds, "train", 36, sizes=(64, 96), difficulties=(1, 2, 3)))
    assert set(Counter(s.key.rsplit("-", 1)[0] for s in samples).values()) == {2}
    assert [s.text.task for s in samples[:6]] == kinds * 2


def test_splits_and_streams_share_no_key() -> None:
    assert list(itertools.islice(seeds("train"), 3)) == [0, 2, 4]
    assert list(itertools.islice(seeds("heldout", 5), 3)) == [11, 13, 15]
    streams = [
        {sample.key for sample in stream(list(KINDS), split, 90, seed=seed)} for split in SPLITS for seed in (0, 1)
    ]
    assert len(set().union(*streams)) == sum(len(keys) for keys in streams) == 360


@pytest.fixture(scope="module")
def drawn() -> Callable[[str, int, str], list[Sample]]:
    """400 samples of a kind and difficulty in a split, made once."""
    made: dict[tuple[str, int, str], list[Sample]] = {}

    def samples(kind: str, difficulty: int, split: str) -> list[Sample]:
        key = kind, difficulty, split
        if key not in made:
            made[key] = list(stream([kind], split, 400, difficulties=(difficulty,)))
        return made[key]

    return samples


@pytest.mark.parametrize(("kind", "difficulty"), ALL)
def test_heldout_puzzles_are_not_among_the_train_ones(kind: str, difficulty: int, drawn: Callable) -> None:
    train, heldout = (
        [(s.images, s.text.question, s.text.answer) for s in drawn(kind, difficulty, split)[:300]] for split in SPLITS
    )
    assert sum(puzzle in set(train) for puzzle in heldout) < 0.01 * len(heldout)


@pytest.mark.parametrize(("kind", "difficulty"), ALL)
def test_right_letters_are_even(kind: str, difficulty: int, drawn: Callable) -> None:
    samples = drawn(kind, difficulty, "train")
    ways = len(samples[0].text.choices)
    counts = Counter(s.text.answer for s in samples)
    # Four standard deviations of an even draw.
    spread = 4 * (len(samples) * (1 / ways) * (1 - 1 / ways)) ** 0.5
    for letter in LETTERS[:ways]:
        assert abs(counts[letter] - len(samples) / ways) < spread


@pytest.mark.parametrize(("kind", "difficulty"), ALL)
def test_text_alone_tells_little(kind: str, difficulty: int, drawn: Callable) -> None:
    """The commonest answer of a text, by its letter, by its words, or whatever the order of the choices."""
    views = {
        "letter": lambda t: ((t.question, t.choices), t.answer),
        "letter, question": lambda t: (t.question, t.answer),
        "words": lambda t: (t.question + str(sorted(t.choices)), t.choices[LETTERS.index(t.answer)]),
        "rank": lambda t: (t.question, sorted(t.choices).index(t.choices[LETTERS.index(t.answer)])),
    }
    chance = 1 / len(drawn(kind, difficulty, "train")[0].text.choices)
    for name, view in views.items():
        seen: dict = defaultdict(Counter)
        overall: Counter = Counter()
        for sample in drawn(kind, difficulty, "train"):
            text, answer = view(sample.text)
            seen[text][answer] += 1
            overall[answer] += 1
        right = 0
        for sample in drawn(kind, difficulty, "heldout"):
            text, answer = view(sample.text)
            right += seen.get(text, overall).most_common(1)[0][0] == answer
        assert right / 400 < chance + 0.12, name


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_counting_counts_what_is_drawn(seed: int, size: int) -> None:
    easy = generate("counting", seed, size, 1)
    picture = pixels(easy)
    assert len(regions((picture != picture[0, 0]).any(axis=-1))) == int(chosen(easy))
    for difficulty in (2, 3):
        sample = generate("counting", seed, size, difficulty)
        colour, plural = sample.text.question.split()[2:4]
        named = plural.removesuffix("es") if plural == "crosses" else plural.removesuffix("s")
        found = regions(near(pixels(sample), colour))
        assert sum(shape_of(region) == named for region in found) == int(chosen(sample))


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_relative_position_is_where_the_things_are(seed: int, size: int) -> None:
    for difficulty in DIFFICULTIES:
        sample = generate("relative_position", seed, size, difficulty)
        words = sample.text.question.removesuffix("?").split()
        places = []
        for colour, name in ((words[3], words[4]), (words[8], words[9])):
            (region,) = [r for r in regions(near(pixels(sample), colour)) if shape_of(r) == name]
            places.append(np.mean(list(region), axis=0))
        down, across = places[0] - places[1]
        reach = 0.4 * max(abs(down), abs(across))
        vertical = "above" if down < -reach else "below" if down > reach else ""
        sideways = "left" if across < -reach else "right" if across > reach else ""
        assert chosen(sample) == " and ".join(filter(None, (vertical, sideways)))


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_odd_one_out_is_unlike_the_rest(seed: int, size: int) -> None:
    easy = generate("odd_one_out", seed, size, 1)
    middles = size // 4, size // 4 * 3
    picture = pixels(easy)
    spots = [tuple(picture[place]) for place in itertools.product(middles, middles)]
    corners = ("top left", "top right", "bottom left", "bottom right")
    assert chosen(easy) == corners[[spots.count(spot) for spot in spots].index(1)]
    for difficulty in (2, 3):
        sample = generate("odd_one_out", seed, size, difficulty)
        seen = [things_seen(pixels(sample, at)) for at in range(4)]
        odd = [
            values.index(value)
            for values in zip(*seen, strict=True)
            for value, times in Counter(values).items()
            if times == 1 and len(set(values)) == 2
        ]
        assert odd == [("first", "second", "third", "fourth").index(chosen(sample).split()[1])]


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_jigsaw_right_piece_meets_the_picture(seed: int, size: int) -> None:
    """Put into the hole, the right piece goes on smoothly from its neighbours and the other one does not."""
    for difficulty in DIFFICULTIES:
        sample = generate("jigsaw", seed, size, difficulty)
        holed = pixels(sample, 0)
        rows, columns = (holed == 255).all(axis=-1).nonzero()
        hole = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        steps = {}
        for at, name in ((1, "the second image"), (2, "the third image")):
            whole = holed.copy()
            whole[hole] = pixels(sample, at)[::2, ::2]
            half = size // 2
            across = np.abs(whole[half - 1, hole[1]] - whole[half, hole[1]])
            down = np.abs(whole[hole[0], half - 1] - whole[hole[0], half])
            steps[name] = np.concatenate([across, down]).mean()
        best, worst = sorted(steps, key=lambda name: steps[name])
        assert chosen(sample) == best
        assert steps[best] < 20 and steps[worst] > steps[best] + 25


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_correspondence_finds_the_marked_colour(seed: int, size: int) -> None:
    easy = generate("correspondence", seed, size, 1)
    names = ("top left", "top right", "bottom left", "bottom right")
    halves = slice(0, size // 2), slice(size // 2, size)
    parts = list(itertools.product(halves, halves))
    first, second = pixels(easy, 0), pixels(easy, 1)
    (ringed,) = [part for part in parts if (first[part] < 30).all(axis=-1).any()]
    (colour,) = [c for c in BASIC if near(first[ringed], c).any()]
    there = [name for name, part in zip(names, parts, strict=True) if near(second[part], colour).any()]
    assert there == [chosen(easy)]


@pytest.mark.parametrize(("seed", "size"), cases(4))
def test_correspondence_finds_the_marked_arm(seed: int, size: int) -> None:
    """Tell the arms apart by their colour or by their length, then read the letter at the same one."""
    for difficulty in (2, 3):
        sample = generate("correspondence", seed, size, difficulty)
        first, second = pixels(sample, 0), pixels(sample, 1)
        x, y = offsets(size)
        ring = (first.max(axis=-1) < 60) & (np.hypot(x, y) > 0.09 * size)
        marked = arm(first, np.arctan2(y[ring].mean(), x[ring].mean()))
        # The arms are quarter turns apart: four times its angle is the same for all of them.
        coloured = np.any([near(second, c) for c in COLOURS], axis=0) & (np.hypot(x, y) > 0.06 * size)
        base = np.angle(np.exp(4j * np.arctan2(y, x)[coloured]).sum()) / 4
        arms = {angle: arm(second, angle) for angle in base + np.arange(4) * np.pi / 2}
        angle = min(arms, key=lambda at: (arms[at][0] != marked[0], abs(arms[at][1] - marked[1])))
        reach = arms[angle][1] + 0.11 * size
        middle_x, middle_y = size / 2 + reach * np.cos(angle), size / 2 + reach * np.sin(angle)
        assert chosen(sample) == letter_at(second, middle_x, middle_y)


def offsets(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The x and y of every pixel from the middle of the picture."""
    y, x = np.mgrid[:size, :size] - size / 2
    return x, y


def arm(picture: np.ndarray, angle: float) -> tuple[str, float]:
    """The colour and the length of the arm at an angle."""
    x, y = offsets(len(picture))
    along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    here = (np.abs(aside) < 1.5) & (along > 0.06 * len(picture))
    colour = max(COLOURS, key=lambda name: (near(picture, name) & here).sum())
    return colour, float(along[near(picture, colour) & here].max())


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_pattern_goes_on(seed: int, size: int) -> None:
    easy = generate("pattern", seed, size, 1)
    cell = size // 4
    # The corner of a cell is free of the question mark's strokes.
    colours = pixels(easy)[3::cell, 3::cell]
    named = {c: near(colours, c) for c in BASIC}
    ((row, column),) = np.argwhere(~np.any(list(named.values()), axis=0))
    # Every pattern comes back after two rows.
    assert named[chosen(easy)][row - 2, column]


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_pattern_rules_allow_one_answer(seed: int, size: int) -> None:
    """Every rule that the eight shown cells keep to says the same of the hidden one."""
    for difficulty in (2, 3):
        sample = generate("pattern", seed, size, difficulty)
        picture = pixels(sample)
        lines = [round(at * size / 3) for at in range(4)]
        cells = {}
        for row, column in itertools.product(range(3), repeat=2):
            cell = picture[lines[row] : lines[row + 1], lines[column] : lines[column + 1]]
            if any(near(cell, c).any() for c in BASIC):
                cells[row, column] = things_seen(cell)
        ((row, column),) = set(itertools.product(range(3), repeat=2)) - set(cells)
        found = []
        for attribute in range(3):
            said = set()
            for down, across in ((1, 0), (0, 1), (1, 1), (1, -1)):
                values = defaultdict(set)
                for (at, along), thing in cells.items():
                    values[(down * at + across * along) % 3].add(thing[attribute])
                if all(len(value) == 1 for value in values.values()):
                    said |= values[(down * row + across * column) % 3]
            (only,) = said
            found.append(only)
        name, colour, count = found
        words = f"{colour} {name}"
        if difficulty == 3:
            words = f"{('one', 'two', 'three')[count - 1]} {words}"
        assert [choice for choice in sample.text.choices if choice.startswith(words)] == [chosen(sample)]


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_rotation_turns_the_arrow(seed: int, size: int) -> None:
    sample = generate("rotation", seed, size, 1)
    picture = pixels(sample)
    arrow = (picture != picture[0, 0]).any(axis=-1)
    quarters = 1 if "counterclockwise" in sample.text.question else 3
    turned = np.rot90(arrow, quarters)  # counterclockwise
    rows, columns = turned.nonzero()
    # The head is the broader half, so more of the arrow lies beyond the middle of its box that way.
    row, column = middle(turned)
    off = {
        "up": (rows.min() + rows.max()) / 2 - row,
        "left": (columns.min() + columns.max()) / 2 - column,
    }
    off |= {"down": -off["up"], "right": -off["left"]}
    assert chosen(sample) == max(off, key=lambda way: off[way])


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_rotation_letters_stand_at_the_figures_they_name(seed: int, size: int) -> None:
    """Read the figures off the picture, then turn the left one with numpy rather than by the generator."""
    words = {"90 degrees clockwise": 3, "90 degrees counterclockwise": 1, "180 degrees": 2}
    for difficulty in (2, 3):
        sample = generate("rotation", seed, size, difficulty)
        picture = pixels(sample)
        cells, half = difficulty + 1, size // 2
        filled = np.zeros(picture.shape[:2], bool)
        for colour in COLOURS:
            filled |= near(picture, colour)
        figure = sampled(filled[:, : size - 2], cells)
        right = {}
        for at, letter in enumerate("ABCD"):
            row, column = divmod(at, 2)
            left = size + column * half + 2
            right[letter] = sampled(filled[row * half : (row + 1) * half, left : left + half - 2], cells)
        stated = [turn for text, turn in words.items() if f"turned {text}." in sample.text.question]
        matches = [
            letter
            for letter, cut in right.items()
            if any(np.array_equal(np.rot90(figure, turn), cut) for turn in stated or (1, 2, 3))
        ]
        assert matches == [sample.text.answer]


def sampled(mask: np.ndarray, cells: int) -> np.ndarray:
    """Which squares of a grid over the filled box are filled."""
    rows, columns = mask.nonzero()
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    at = [[int((i + 0.5) * side / cells) for i in range(cells)] for side in box.shape]
    return box[np.ix_(*at)]


@pytest.mark.parametrize(("seed", "size"), cases(12))
def test_analogy_does_to_the_third_what_made_the_second(seed: int, size: int) -> None:
    numbers = ("one", "two", "three", "four")
    for difficulty in DIFFICULTIES:
        sample = generate("analogy", seed, size, difficulty)
        first, second, third = (things_seen(pixels(sample, at)) for at in range(3))
        name, colour = (b if a != b else c for a, b, c in zip(first[:2], second[:2], third[:2], strict=True))
        count = third[2] + second[2] - first[2]
        assert {
            1: chosen(sample) in (name, colour),
            2: chosen(sample) == f"{colour} {name}",
            3: chosen(sample).startswith(f"{numbers[count - 1]} {colour} {name}"),
        }[difficulty]


def side_reached(sample: Sample, walkable: np.ndarray) -> list[str]:
    picture = pixels(sample)
    row, column = (round(at) for at in middle(near(picture, "red")))
    reached = flooded(walkable, (row, column))
    last = len(picture) - 1
    edges = {
        "top": any(row == 0 for row, _ in reached),
        "right": any(column == last for _, column in reached),
        "bottom": any(row == last for row, _ in reached),
        "left": any(column == 0 for _, column in reached),
    }
    return [side for side, touched in edges.items() if touched]


@pytest.mark.parametrize(("seed", "size"), cases(8))
def test_maze_path_leaves_at_one_side(seed: int, size: int) -> None:
    sample = generate("maze", seed, size, 1)
    picture = pixels(sample)
    assert side_reached(sample, (picture != picture[0, 0]).any(axis=-1)) == [chosen(sample)]


@pytest.mark.parametrize(("seed", "size"), cases(8))
def test_maze_walls_leave_one_way_out(seed: int, size: int) -> None:
    """A flood from the start, kept inside the walls' box, runs out of it at the right exit alone."""
    for difficulty in (2, 3):
        sample = generate("maze", seed, size, difficulty)
        picture = pixels(sample)
        cells, margin = (5, 4) if difficulty == 2 else (7, letter_points(size) - 2)
        step = (size - 2 * margin) // cells
        corner = (size - step * cells) // 2
        box = slice(corner, corner + step * cells + 1)
        open_to_walk = (picture > 30).any(axis=-1)
        ground = np.zeros_like(open_to_walk)
        ground[box, box] = open_to_walk[box, box]
        row, column = (round(at) for at in middle(near(picture, "red")))
        reached = flooded(ground, (row, column))
        low, high = box.start, box.stop - 1
        outs = {
            "top": [spot for spot in reached if spot[0] == low],
            "right": [spot for spot in reached if spot[1] == high],
            "bottom": [spot for spot in reached if spot[0] == high],
            "left": [spot for spot in reached if spot[1] == low],
        }
        ((side, spots),) = [(side, spots) for side, spots in outs.items() if spots]
        if difficulty == 2:
            assert chosen(sample) == side
        else:
            assert chosen(sample) == letter_beside(picture, side, np.mean(spots, axis=0), corner)


def letter_beside(picture: np.ndarray, side: str, exit_at: np.ndarray, corner: int) -> str:
    """Which letter is drawn outside an exit."""
    row, column = exit_at
    size = len(picture)
    x = {"left": corner / 2, "right": size - corner / 2}.get(side, column)
    y = {"top": corner / 2, "bottom": size - corner / 2}.get(side, row)
    return letter_at(picture, x, y)


def letter_at(picture: np.ndarray, x: float, y: float) -> str:
    """Which letter is drawn about a place: the one whose strokes agree best with the picture's black."""
    ink = 255 - picture.max(axis=-1)
    left, top = max(round(x) - 5, 0), max(round(y) - 6, 0)
    patch = slice(top, round(y) + 6), slice(left, round(x) + 6)
    misfits = {}
    for letter in "ABCD":
        for across, down in itertools.product(range(-3, 4), repeat=2):
            image = Image.new("L", (len(picture), len(picture)))
            pen = ImageDraw.Draw(image)
            place = x + across / 2, y + down / 2
            pen.text(place, letter, fill=240, font=font(letter_points(len(picture))), anchor="mm")
            strokes = np.asarray(image).astype(int)
            misfits[letter, across, down] = np.abs(strokes[patch] - ink[patch]).mean()
    return min(misfits, key=lambda key: misfits[key])[0]


def test_sheet_is_written(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    options = ["--sheet", str(out), "--size", "64", "--kinds", "maze", "jigsaw"]
    path = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-m", "data.puzzles", *options], env=path, check=True)
    image = Image.open(out)
    assert image.width > 500 and image.height > 300
    assert len(image.getcolors(1 << 20)) > 50
