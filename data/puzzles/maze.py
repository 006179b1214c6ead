"""Maze: which of four exits the way from the start leads to.

1: one wide coloured path. 2: a maze of walls with an exit on each side, one of which can be reached.
3: a larger one whose exits have letters.
"""

import itertools
import random
from collections import deque

from PIL import ImageDraw

from data.puzzles.draw import BASIC, BLACK, canvas, letter, letter_points, shade, shape
from data.puzzles.puzzle import DRAWN, Puzzle, fixed, shuffled

SIDES = {"top": (0, -1), "right": (1, 0), "bottom": (0, 1), "left": (-1, 0)}
Cell = tuple[int, int]  # column, row
Links = dict[Cell, set[Cell]]  # which neighbours can be walked to from a cell


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A maze puzzle."""
    if difficulty == 1:
        return _path(rng, size)
    cells = 5 if difficulty == 2 else 7
    right = rng.choice(list(SIDES))
    links, start, exits = _maze(rng, cells, right)
    margin = 4 if difficulty == 2 else letter_points(size) - 2
    step = (size - 2 * margin) // cells
    corner = (size - step * cells) // 2
    image, pen = canvas(rng, size)
    _walls(pen, links, exits, cells, corner, step)
    x, y = (corner + (at + 0.5) * step for at in start)
    shape(pen, "disc", x, y, step * 0.28, shade(rng, "red"))
    if difficulty == 2:
        question = "Which exit can be reached from the red disc?"
        return shuffled(rng, [image], question, list(SIDES), right)
    letters = rng.sample(DRAWN, 4)
    for name, side in zip(letters, SIDES, strict=True):
        across, down = SIDES[side]
        x, y = (corner + (at + 0.5) * step for at in exits[side])
        reach = step / 2 + corner / 2
        letter(pen, name, x + across * reach, y + down * reach, letter_points(size))
    question = "Which lettered exit can be reached from the red disc?"
    return fixed([image], question, DRAWN, letters[list(SIDES).index(right)])


def _path(rng: random.Random, size: int) -> Puzzle:
    """A path over a 4 by 4 grid, from one of the middle cells over others of them and out at a side."""
    right = rng.choice(list(SIDES))
    across, down = SIDES[right]
    steps = [(rng.randint(1, 2), rng.randint(1, 2))]
    while True:
        column, row = steps[-1]
        # The side's last cell before the edge is never a corner: a path in a corner leaves at two sides.
        if (across and column == (1 if across < 0 else 2)) or (down and row == (1 if down < 0 else 2)):
            break
        near = [(column + across, row + down), (column + down, row + across), (column - down, row - across)]
        steps.append(rng.choice([cell for cell in near if cell not in steps and set(cell) <= {1, 2}]))
    for _ in range(2):  # one step into the outer cells, one past the edge
        steps.append((steps[-1][0] + across, steps[-1][1] + down))
    image, pen = canvas(rng, size)
    cell = size / 4
    half = cell * rng.uniform(0.32, 0.4)
    fill = shade(rng, rng.choice([colour for colour in BASIC if colour != "red"]))
    points = [((column + 0.5) * cell, (row + 0.5) * cell) for column, row in steps]
    for ends in itertools.pairwise(points):
        (left, top), (to_right, to_bottom) = min(ends), max(ends)
        pen.rectangle((left - half, top - half, to_right + half, to_bottom + half), fill=fill)
    shape(pen, "disc", *points[0], cell * 0.28, shade(rng, "red"))
    question = "Follow the path from the red disc. At which side does it leave the picture?"
    return fixed([image], question, list(SIDES), right)


def _maze(rng: random.Random, cells: int, right: str) -> tuple[Links, Cell, dict[str, Cell]]:
    """Links, a start and an exit cell on each side, of which only the right one can be reached."""
    inner = range(1, cells - 1)
    while True:
        links = _tree(rng, cells)
        exits = {
            "top": (rng.choice(inner), 0),
            "right": (cells - 1, rng.choice(inner)),
            "bottom": (rng.choice(inner), cells - 1),
            "left": (0, rng.choice(inner)),
        }
        start = rng.choice(inner), rng.choice(inner)
        way = _way(links, start, exits[right])
        if len(way) < cells:
            continue
        for side, cell in exits.items():
            wrong = _way(links, start, cell)
            if side == right or not wrong:
                continue
            off = [(a, b) for a, b in itertools.pairwise(wrong) if b not in way]
            if not off:
                break  # the right way passes this exit
            a, b = rng.choice(off)
            links[a].discard(b)
            links[b].discard(a)
        reached = [side for side, cell in exits.items() if _way(links, start, cell)]
        if reached == [right]:
            return links, start, exits


def _tree(rng: random.Random, cells: int) -> Links:
    """A maze with just one way between any two cells, by a walk that backs out of dead ends."""
    links: Links = {(column, row): set() for column in range(cells) for row in range(cells)}
    walk = [(rng.randrange(cells), rng.randrange(cells))]
    while walk:
        column, row = walk[-1]
        fresh = [
            (column + across, row + down)
            for across, down in SIDES.values()
            if links.get((column + across, row + down)) == set()
        ]
        if not fresh:
            walk.pop()
            continue
        cell = rng.choice(fresh)
        links[walk[-1]].add(cell)
        links[cell].add(walk[-1])
        walk.append(cell)
    return links


def _way(links: Links, start: Cell, end: Cell) -> list[Cell]:
    """The cells from one to another, none if there is no way."""
    came: dict[Cell, Cell | None] = {start: None}
    todo = deque([start])
    while todo:
        cell = todo.popleft()
        for near in links[cell]:
            if near not in came:
                came[near] = cell
                todo.append(near)
    way = []
    at: Cell | None = end if end in came else None
    while at is not None:
        way.append(at)
        at = came[at]
    return way[::-1]


def _walls(pen: ImageDraw.ImageDraw, links: Links, exits: dict[str, Cell], cells: int, corner: int, step: int) -> None:
    """A wall at every side of a cell that leads neither to a linked cell nor out."""
    open_sides = {(cell, SIDES[side]) for side, cell in exits.items()}
    width = max(1, step // 8)
    for (column, row), linked in links.items():
        left, top = corner + column * step, corner + row * step
        right, bottom = left + step, top + step
        edges = {
            (0, -1): (left, top, right, top),
            (1, 0): (right, top, right, bottom),
            (0, 1): (left, bottom, right, bottom),
            (-1, 0): (left, top, left, bottom),
        }
        for (across, down), edge in edges.items():
            opened = ((column, row), (across, down)) in open_sides
            if not opened and (column + across, row + down) not in linked:
                pen.line(edge, fill=BLACK, width=width)
