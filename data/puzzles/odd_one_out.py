"""Odd one out: three alike and one that is not.

1: four shapes in one picture, one of another colour. 2: four pictures, one differs in colour, shape or
number. 3: four pictures that all differ in two respects; in the third, three agree.
"""

import random
from typing import Any

from PIL import Image

from data.puzzles.draw import BASIC, COLOURS, SHAPES, canvas, shade, shape
from data.puzzles.puzzle import CORNERS, ORDINALS, Puzzle, fixed, shuffled

VALUES = {"shape": SHAPES, "colour": BASIC, "count": (1, 2, 3, 4)}


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """An odd one out puzzle."""
    odd = rng.randrange(4)
    if difficulty == 1:
        image = _four_in_one(rng, size, odd)
        return fixed([image], "Which shape has another colour than the rest?", CORNERS, CORNERS[odd])
    asked = rng.choice(list(VALUES))
    columns: dict[str, list[Any]] = {}
    for what, values in VALUES.items():
        common, other = rng.sample(values, 2)
        if what == asked:
            columns[what] = [other if at == odd else common for at in range(4)]
        elif difficulty == 2:
            columns[what] = [common] * 4
        else:
            columns[what] = rng.sample(values, 4)
    images = [
        _scene(rng, size, name, colour, count)
        for name, colour, count in zip(columns["shape"], columns["colour"], columns["count"], strict=True)
    ]
    agree_in = "shape, colour and number" if difficulty == 2 else "one of shape, colour and number"
    question = f"{' '.join(['<image>'] * 4)} Three of these images agree in {agree_in}. Which one does not?"
    choices = [f"the {ordinal} image" for ordinal in ORDINALS]
    return shuffled(rng, images, question, choices, choices[odd])


def _four_in_one(rng: random.Random, size: int, odd: int) -> Image.Image:
    image, pen = canvas(rng, size)
    name = rng.choice(SHAPES)
    common, other = (shade(rng, colour) for colour in rng.sample(list(COLOURS)[:5], 2))
    radius = size * rng.uniform(0.15, 0.2)
    for at in range(4):
        row, column = divmod(at, 2)
        fill = other if at == odd else common
        shape(pen, name, (column + 0.5) * size / 2, (row + 0.5) * size / 2, radius, fill)
    return image


def _scene(rng: random.Random, size: int, name: str, colour: str, count: int) -> Image.Image:
    """Some equal things anywhere in a 3 by 3 grid."""
    image, pen = canvas(rng, size)
    cell = size / 3
    fill = shade(rng, colour)
    for place in rng.sample(range(9), count):
        row, column = divmod(place, 3)
        shape(pen, name, (column + 0.5) * cell, (row + 0.5) * cell, cell * 0.38, fill)
    return image
