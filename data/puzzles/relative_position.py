"""Relative position: where one thing lies as seen from another.

1: two things in one row or column. 2: one of four slanting directions, other things about. 3: any of
eight directions, four of them offered, and things about that look like the two.
"""

import random

from PIL import Image

from data.puzzles.draw import BASIC, COLOURS, SHAPES, canvas, shade, shape
from data.puzzles.puzzle import Puzzle, described, fixed, shuffled

STRAIGHT = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
SLANTING = {
    f"{vertical} and {sideways}": (STRAIGHT[sideways][0], STRAIGHT[vertical][1])
    for vertical in ("above", "below")
    for sideways in ("left", "right")
}
Place = tuple[int, int]


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A relative position puzzle."""
    if difficulty == 1:
        right = rng.choice(list(STRAIGHT))
        things = [("disc", "red"), ("square", "blue")]
        image = _drawn(rng, size, 4, things, _two_places(rng, 4, STRAIGHT[right]))
        question = "Where is the red disc relative to the blue square?"
        return fixed([image], question, list(STRAIGHT), right)
    ways = SLANTING if difficulty == 2 else STRAIGHT | SLANTING
    cells = 4 if difficulty == 2 else 5
    offered = rng.sample(list(ways), 4)
    right = rng.choice(offered)
    things = _discs(rng) if difficulty == 2 else _look_alikes(rng)
    image = _drawn(rng, size, cells, things, _two_places(rng, cells, ways[right]))
    question = f"Where is the {described(*things[0])} relative to the {described(*things[1])}?"
    return shuffled(rng, [image], question, offered, right)


def _two_places(rng: random.Random, cells: int, way: Place) -> list[Place]:
    """The cells of the thing asked for and of the one it is seen from."""
    while True:
        seen_from = rng.randrange(cells), rng.randrange(cells)
        across, down = (rng.randint(1, cells - 1) for _ in range(2))
        place = seen_from[0] + way[0] * across, seen_from[1] + way[1] * down
        # A slanting direction stays near 45 degrees: nothing that could pass for a straight one.
        slants = 0 in way or max(across, down) <= 1.5 * min(across, down)
        if slants and all(0 <= at < cells for at in place):
            return [place, seen_from]


def _drawn(
    rng: random.Random, size: int, cells: int, things: list[tuple[str, str]], places: list[Place]
) -> Image.Image:
    """The things in a grid, the first ones at the given places and the others anywhere."""
    image, pen = canvas(rng, size)
    free = [(x, y) for x in range(cells) for y in range(cells) if (x, y) not in places]
    places = places + rng.sample(free, len(things) - len(places))
    cell = size / cells
    for (name, colour), (x, y) in zip(things, places, strict=True):
        radius = cell * rng.uniform(0.36, 0.42)
        shape(pen, name, (x + 0.5) * cell, (y + 0.5) * cell, radius, shade(rng, colour))
    return image


def _discs(rng: random.Random) -> list[tuple[str, str]]:
    return [("disc", colour) for colour in rng.sample(BASIC, 4)]


def _look_alikes(rng: random.Random) -> list[tuple[str, str]]:
    """Two things to ask about, then others, each different, that share a colour or a shape with them."""
    pairs = [(name, colour) for name in SHAPES for colour in COLOURS if colour != "orange"]
    asked = rng.sample(pairs, 2)
    near = [
        pair
        for pair in pairs
        if pair not in asked and any(a == b for one in asked for a, b in zip(pair, one, strict=True))
    ]
    return asked + rng.sample(near, 6)
