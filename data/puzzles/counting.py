"""Counting: how many things of one sort a picture shows.

1: one to four discs and nothing else. 2: discs of one colour among others. 3: things of one colour and
one shape among things that share only one of the two.
"""

import random

from data.puzzles.draw import BASIC, COLOURS, SHAPES, canvas, scattered, shade, shape
from data.puzzles.puzzle import Puzzle, described, fixed, shuffled


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A counting puzzle."""
    if difficulty == 1:
        return _few_discs(rng, size)
    # The window of numbers and the place of the right one in it are drawn apart from each other, so each
    # of the four numbers shown is equally often right.
    lowest = rng.randint(1, 4) if difficulty == 2 else rng.randint(2, 6)
    numbers = range(lowest, lowest + 4)
    count = rng.choice(numbers)
    colour = rng.choice(BASIC)
    if difficulty == 2:
        name, cells = "disc", 4
        others = [("disc", rng.choice([c for c in BASIC if c != colour])) for _ in range(rng.randint(2, 6))]
    else:
        name, cells = rng.choice(SHAPES), 5
        others = _near(rng, name, colour)
    image, pen = canvas(rng, size)
    scattered(rng, image, pen, cells, [(name, colour)] * count + others)
    question = f"How many {described(name, colour, 2).removeprefix('two ')} are there?"
    return shuffled(rng, [image], question, [str(n) for n in numbers], str(count))


def _few_discs(rng: random.Random, size: int) -> Puzzle:
    count = rng.randint(1, 4)
    image, pen = canvas(rng, size)
    cell = size // 4
    fill = shade(rng, rng.choice(list(COLOURS)))
    radius = cell * rng.uniform(0.34, 0.42)
    for place in rng.sample(range(16), count):
        row, column = divmod(place, 4)
        shape(pen, "disc", (column + 0.5) * cell, (row + 0.5) * cell, radius, fill)
    return fixed([image], "How many discs are there?", [str(n) for n in range(1, 5)], str(count))


def _near(rng: random.Random, name: str, colour: str) -> list[tuple[str, str]]:
    """Things that are not the ones to count but share their shape or their colour."""
    names = [other for other in SHAPES if other != name]
    colours = [other for other in BASIC if other != colour]
    same_shape = [(name, rng.choice(colours)) for _ in range(rng.randint(2, 5))]
    same_colour = [(rng.choice(names), colour) for _ in range(rng.randint(2, 5))]
    return same_shape + same_colour
