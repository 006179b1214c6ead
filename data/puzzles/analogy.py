"""Analogy: the first picture is to the second as the third is to the one asked for.

1: the colour changes or the shape does, and that is what is asked. 2: one of them changes, the whole
picture is asked. 3: one of them changes and so does the number.
"""

import random

from PIL import Image

from data.puzzles.draw import BASIC, SHAPES, canvas, group, shade
from data.puzzles.puzzle import Puzzle, balanced, described, fixed, shuffled

OPENING = "<image> is to <image> as <image> is to another picture."


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """An analogy puzzle."""
    # The first value is in the first picture, the second in what it becomes or in what differs between
    # the first and the third.
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(BASIC, 2)
    changes_colour = rng.random() < 0.5
    counts, step = [1, 1], 0
    if difficulty == 3:
        # Both pictures keep between one and four things before and after the step.
        step = rng.choice((-1, 1))
        counts = rng.sample((1, 2, 3) if step > 0 else (2, 3, 4), 2)
    first = shapes[0], colours[0], counts[0]
    if changes_colour:
        second = shapes[0], colours[1], counts[0] + step
        third = shapes[1], colours[0], counts[1]
    else:
        second = shapes[1], colours[0], counts[0] + step
        third = shapes[0], colours[1], counts[1]
    right = shapes[1], colours[1], counts[1] + step
    images = [_picture(rng, size, *thing) for thing in (first, second, third)]
    if difficulty == 1:
        if changes_colour:
            return fixed(images, f"{OPENING} What colour has that one?", BASIC, right[1])
        return fixed(images, f"{OPENING} What shape has that one?", SHAPES, right[0])
    varied = 2 if difficulty == 2 else 3
    wrong = shapes[0], colours[0], counts[1]
    choices = [described(*mixture) for mixture in balanced(right[:varied], wrong[:varied])]
    return shuffled(rng, images, f"{OPENING} What does that one show?", choices, choices[0])


def _picture(rng: random.Random, size: int, name: str, colour: str, count: int) -> Image.Image:
    image, pen = canvas(rng, size)
    side = size * rng.uniform(0.85, 1.0)
    left, top = (rng.uniform(0, size - side) for _ in range(2))
    group(pen, name, count, (left, top, side), shade(rng, colour), fraction=0.36)
    return image
