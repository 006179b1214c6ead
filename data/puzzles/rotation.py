"""Rotation: what a figure looks like once it is turned.

1: an arrow, and where it points after a quarter turn. 2: a figure of squares, and which of four
orientations is the stated turn. 3: any turn, among mirror images and figures with one square moved.
"""

import random

from PIL import Image, ImageDraw

from data.puzzles.draw import COLOURS, GREY, canvas, letter, letter_points, polar, shade
from data.puzzles.puzzle import DRAWN, Puzzle, fixed

WAYS = ("up", "right", "down", "left")
TURNS = {"90 degrees clockwise": 1, "90 degrees counterclockwise": 3, "180 degrees": 2}
SQUARES = {3: 6, 4: 8}  # how many of its grid's squares a figure fills, by the grid's side
Cells = frozenset[tuple[int, int]]  # a figure: its filled squares as (row, column)


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A rotation puzzle."""
    if difficulty == 1:
        return _arrow(rng, size)
    side = 3 if difficulty == 2 else 4
    figure = _figure(rng, side)
    if difficulty == 2:
        words, turns = rng.choice(list(TURNS.items()))
        shown = [_turned(figure, side, turn) for turn in (turns, *(t for t in range(4) if t != turns))]
        question = f"The figure on the left is turned {words}. Which one on the right is the result?"
    else:
        other = _moved(rng, figure, side)
        # Turned and mirrored, right and altered are each half of the four: none stands out by itself.
        figures = [figure, _mirrored(figure, side), other, _mirrored(other, side)]
        shown = [_turned(cells, side, rng.randint(1, 3)) for cells in figures]
        question = "Which figure on the right is the one on the left turned, and not mirrored?"
    letters = rng.sample(DRAWN, 4)
    image = _sheet(rng, size, side, figure, dict(zip(letters, shown, strict=True)))
    return fixed([image], question, DRAWN, letters[0])


def _arrow(rng: random.Random, size: int) -> Puzzle:
    way = rng.randrange(4)
    words = rng.choice(list(TURNS)[:2])
    image, pen = canvas(rng, size)
    fill = shade(rng, rng.choice(list(COLOURS)))
    x, y = (size / 2 + rng.uniform(-0.06, 0.06) * size for _ in range(2))
    tip = polar(x, y, size * 0.4, 90 * way)
    neck = polar(x, y, size * 0.04, 90 * way)
    tail = polar(x, y, size * 0.4, 90 * way + 180)
    pen.line((*tail, *neck), fill=fill, width=size // 6)
    wings = [polar(*neck, size * 0.28, 90 * way + side) for side in (-90, 90)]
    pen.polygon([tip, *wings], fill=fill)
    question = f"The arrow is turned {words}. Where does it point then?"
    return fixed([image], question, WAYS, WAYS[(way + TURNS[words]) % 4])


def _turned(cells: Cells, side: int, quarters: int) -> Cells:
    """A figure after some quarter turns clockwise."""
    for _ in range(quarters % 4):
        cells = frozenset((column, side - 1 - row) for row, column in cells)
    return cells


def _mirrored(cells: Cells, side: int) -> Cells:
    return frozenset((row, side - 1 - column) for row, column in cells)


def _orientations(cells: Cells, side: int) -> set[Cells]:
    """All that turns and mirrors make of a figure."""
    return {_turned(face, side, turn) for face in (cells, _mirrored(cells, side)) for turn in range(4)}


def _connected(cells: Cells) -> bool:
    todo, seen = [min(cells)], {min(cells)}
    while todo:
        row, column = todo.pop()
        for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if near in cells and near not in seen:
                seen.add(near)
                todo.append(near)
    return len(seen) == len(cells)


def _clear(cells: Cells, side: int) -> bool:
    """Whether a figure is in one piece, spans the grid and looks different in all eight orientations."""
    spans = all({cell[axis] for cell in cells} == set(range(side)) for axis in (0, 1))
    return spans and _connected(cells) and len(_orientations(cells, side)) == 8


def _grid(side: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(side) for column in range(side)]


def _figure(rng: random.Random, side: int) -> Cells:
    while True:
        cells = frozenset(rng.sample(_grid(side), SQUARES[side]))
        if _clear(cells, side):
            return cells


def _moved(rng: random.Random, figure: Cells, side: int) -> Cells:
    """The figure with one square moved so that no turn or mirror makes it the first one."""
    empty = [cell for cell in _grid(side) if cell not in figure]
    while True:
        taken, added = rng.choice(sorted(figure)), rng.choice(empty)
        cells = figure - {taken} | {added}
        if _clear(cells, side) and cells not in _orientations(figure, side):
            return cells


def _sheet(rng: random.Random, size: int, side: int, figure: Cells, lettered: dict[str, Cells]) -> Image.Image:
    """The figure at the left and four with letters at the right, in a picture twice as wide as high."""
    image, pen = canvas(rng, 2 * size, size)
    fill = shade(rng, rng.choice(list(COLOURS)))
    _squares(pen, figure, size // 5, size // 5, round(size * 0.6 / side), fill)
    pen.line((size, 0, size, size), fill=GREY, width=2)
    half = size // 2
    for name in DRAWN:
        row, column = divmod(DRAWN.index(name), 2)
        left, top = size + column * half, row * half
        letter(pen, name, left + half * 0.18, top + half * 0.5, letter_points(size))
        _squares(pen, lettered[name], left + half * 3 // 8, top + half // 5, round(half * 0.6 / side), fill)
    return image


def _squares(
    pen: ImageDraw.ImageDraw, cells: Cells, left: int, top: int, side: int, fill: tuple[int, int, int]
) -> None:
    for row, column in cells:
        x, y = left + column * side, top + row * side
        pen.rectangle((x, y, x + side - 1, y + side - 1), fill=fill)
