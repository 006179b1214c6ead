"""Pattern completion: what belongs at the question mark in a grid.

1: two colours in turn. 2: 3 by 3, the row gives the shape and the column the colour or the other way
round. 3: 3 by 3, shape, colour and number each follow a rule of their own.
"""

import random
from typing import Any

from PIL import Image, ImageDraw

from data.puzzles.draw import BASIC, GREY, SHAPES, canvas, group, letter, letter_points, shade
from data.puzzles.puzzle import Puzzle, balanced, described, fixed, shuffled

RULES = (  # which of a rule's values a cell has, from its row and column
    lambda row, column: row,
    lambda row, column: column,
    lambda row, column: (row + column) % 3,
    lambda row, column: (row - column) % 3,
)


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A pattern puzzle."""
    if difficulty == 1:
        return _two_colours(rng, size)
    values: list[list[Any]]
    if difficulty == 2:
        rules = [*rng.sample(RULES[:2], 2), lambda row, column: 0]
        values = [rng.sample(SHAPES, 3), rng.sample(BASIC, 3), [1]]
        hidden = rng.randrange(3), rng.randrange(3)
    else:
        rules = rng.sample(RULES, 3)
        values = [rng.sample(SHAPES, 3), rng.sample(BASIC, 3), rng.sample((1, 2, 3), 3)]
        hidden = 2, 2
    cells = {
        (row, column): tuple(value[rule(row, column)] for value, rule in zip(values, rules, strict=True))
        for row in range(3)
        for column in range(3)
    }
    image = _matrix(rng, size, cells, hidden)
    right = cells[hidden]
    varied = 2 if difficulty == 2 else 3
    wrong = [rng.choice([v for v in values[at] if v != right[at]]) for at in range(varied)]
    choices = [described(*mixture) for mixture in balanced(right[:varied], wrong)]
    return shuffled(rng, [image], "What belongs at the question mark?", choices, choices[0])


def _two_colours(rng: random.Random, size: int) -> Puzzle:
    """Cells of two colours that alternate by column, by row or both; one in the last row is hidden."""
    right, other = rng.sample(BASIC, 2)
    fills = [shade(rng, right), shade(rng, other)]
    across, down = rng.choice(((1, 0), (0, 1), (1, 1)))
    image, pen = canvas(rng, size)
    cell = size // 4
    hidden = 3, rng.randrange(4)
    for row in range(4):
        for column in range(4):
            left, top = column * cell, row * cell
            box = left + 1, top + 1, left + cell - 2, top + cell - 2
            if (row, column) == hidden:
                _question_mark(pen, box, size)
                continue
            # Counted from the hidden cell, so that the hidden one has the right colour.
            turn = (across * (column - hidden[1]) + down * (row - hidden[0])) % 2
            pen.rectangle(box, fill=fills[turn])
    return fixed([image], "Which colour belongs at the question mark?", BASIC, right)


def _matrix(rng: random.Random, size: int, cells: dict, hidden: tuple[int, int]) -> Image.Image:
    image, pen = canvas(rng, size)
    cell = size / 3
    for at in (1, 2):
        line = round(at * cell)
        pen.line((line, 0, line, size), fill=GREY)
        pen.line((0, line, size, line), fill=GREY)
    for (row, column), (name, colour, count) in cells.items():
        left, top = column * cell, row * cell
        if (row, column) == hidden:
            _question_mark(pen, (left + 3, top + 3, left + cell - 3, top + cell - 3), size)
        else:
            group(pen, name, count, (left, top, cell), shade(rng, colour), fraction=0.32)
    return image


def _question_mark(pen: ImageDraw.ImageDraw, box: tuple[float, ...], size: int) -> None:
    pen.rectangle(box, fill=(225, 225, 225))
    letter(pen, "?", (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, letter_points(size))
