"""Correspondence: which point of the second picture is the marked one of the first.

1: four coloured discs, turned by quarters; the answer is a corner. 2: four coloured arms, turned by any
angle; the points have letters. 3: arms of one colour that only their lengths tell apart.
"""

import random

from PIL import ImageDraw

from data.puzzles.draw import (
    BASIC,
    BLACK,
    COLOURS,
    WHITE,
    Colour,
    canvas,
    letter,
    letter_points,
    polar,
    shade,
    shape,
)
from data.puzzles.puzzle import CORNERS, DRAWN, Puzzle, fixed

CLOCKWISE = (0, 1, 3, 2)  # the corners, as places in CORNERS, in clockwise order
LENGTHS = (0.11, 0.18, 0.25, 0.32)  # of arms, in picture sides


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A correspondence puzzle."""
    if difficulty == 1:
        return _discs(rng, size)
    return _arms(rng, size, difficulty)


def _discs(rng: random.Random, size: int) -> Puzzle:
    colours = rng.sample(BASIC, 4)  # clockwise from the top left
    marked, turn = rng.randrange(4), rng.randint(1, 3)
    images = []
    for shift in (0, turn):
        image, pen = canvas(rng, size)
        radius = size * rng.uniform(0.13, 0.15)
        for at, colour in enumerate(colours):
            row, column = divmod(CLOCKWISE[(at + shift) % 4], 2)
            x, y = (column + 0.5) * size / 2, (row + 0.5) * size / 2
            if shift == 0 and at == marked:
                shape(pen, "disc", x, y, size * 0.23, BLACK)
                shape(pen, "disc", x, y, size * 0.17, WHITE)
            shape(pen, "disc", x, y, radius, shade(rng, colour))
        images.append(image)
    question = "<image> One disc has a black ring. <image> The discs are turned. Where is that disc now?"
    return fixed(images, question, CORNERS, CORNERS[CLOCKWISE[(marked + turn) % 4]])


def _arms(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A figure with four arms, then the same turned and with a letter at the end of each arm."""
    if difficulty == 2:
        lengths = [0.25] * 4
        colours = [shade(rng, colour) for colour in rng.sample(BASIC, 4)]
    else:
        lengths = rng.sample(LENGTHS, 4)
        colours = [shade(rng, rng.choice(list(COLOURS)))] * 4
    marked = rng.randrange(4)
    angle = rng.uniform(0, 360)
    turned = angle + rng.uniform(40, 320)
    first, pen = canvas(rng, size)
    _figure(pen, size, lengths, colours, angle)
    # The mark and the letters stand off the ends: the length of an arm stays visible.
    x, y = polar(size / 2, size / 2, (lengths[marked] + 0.08) * size, angle + 90 * marked)
    ring = size * 0.06
    pen.ellipse((x - ring, y - ring, x + ring, y + ring), outline=BLACK, width=max(2, size // 32))
    second, pen = canvas(rng, size)
    _figure(pen, size, lengths, colours, turned)
    letters = rng.sample(DRAWN, 4)
    for at, name in enumerate(letters):
        end = polar(size / 2, size / 2, (lengths[at] + 0.11) * size, turned + 90 * at)
        letter(pen, name, *end, letter_points(size))
    question = (
        "<image> A black ring marks the end of one arm. <image> The figure is turned. "
        "Which letter stands at the end of that arm?"
    )
    return fixed([first, second], question, DRAWN, letters[marked])


def _figure(pen: ImageDraw.ImageDraw, size: int, lengths: list[float], colours: list[Colour], angle: float) -> None:
    """Four arms about the middle of the picture."""
    middle = size / 2
    for at, (length, colour) in enumerate(zip(lengths, colours, strict=True)):
        tip = polar(middle, middle, length * size, angle + 90 * at)
        pen.line((middle, middle, *tip), fill=colour, width=max(5, size // 12))
    shape(pen, "disc", middle, middle, size * 0.045, BLACK)
