"""The kinds of puzzles, and the samples made from them.

Train puzzles have even seeds and held-out puzzles odd ones, so no puzzle is in both.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from data.puzzles import (
    analogy,
    correspondence,
    counting,
    jigsaw,
    maze,
    odd_one_out,
    pattern,
    relative_position,
    rotation,
)
from data.puzzles.draw import png
from data.puzzles.puzzle import Puzzle
from data.sample import LETTERS, Sample, Text

KINDS: dict[str, Callable[[random.Random, int, int], Puzzle]] = {
    "counting": counting.make,
    "relative_position": relative_position.make,
    "odd_one_out": odd_one_out.make,
    "jigsaw": jigsaw.make,
    "correspondence": correspondence.make,
    "pattern": pattern.make,
    "rotation": rotation.make,
    "analogy": analogy.make,
    "maze": maze.make,
}
SIZES = (64, 96, 128)
DIFFICULTIES = (1, 2, 3)
SPLITS = {"train": 0, "heldout": 1}  # the split's seeds modulo 2
STRIDE = 1_000_000  # streams with different seeds share no puzzle until one is this long


def generate(kind: str, seed: int, size: int = 64, difficulty: int = 1) -> Sample:
    """The puzzle that these arguments name: the same ones always give the same bytes.

    `size` is the side of one picture in pixels.
    """
    _check("kind", kind, KINDS)
    _check("size", size, SIZES)
    _check("difficulty", difficulty, DIFFICULTIES)
    if seed < 0:
        raise ValueError(f"seed {seed}: a whole number from 0 on")
    name = f"{kind} {seed} {size} {difficulty}"
    rng = random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    puzzle = KINDS[kind](rng, size, difficulty)
    return Sample(
        key=f"{kind}-s{size}-d{difficulty}-{seed:09d}",
        text=Text(
            question=puzzle.question,
            answer=LETTERS[puzzle.right],
            choices=puzzle.choices,
            task=kind,
            source="puzzles",
        ),
        images=tuple(png(image) for image in puzzle.images),
    )


def seeds(split: str, first: int = 0) -> Iterator[int]:
    """The seeds of a split without end: even ones to train, odd ones held out, from the `first`-th on."""
    _check("split", split, SPLITS)
    return itertools.count(2 * first + SPLITS[split], 2)


def stream(
    kinds: Sequence[str],
    split: str,
    count: int,
    sizes: Sequence[int] = (64,),
    difficulties: Sequence[int] = (1,),
    seed: int = 0,
) -> Iterator[Sample]:
    """`count` samples of a split that cycle over kinds, then sizes, then difficulties.

    `seed` picks which puzzles of the split: streams of up to a million samples with different ones
    share none.
    """
    for what, values, allowed in (
        ("kind", kinds, KINDS),
        ("size", sizes, SIZES),
        ("difficulty", difficulties, DIFFICULTIES),
    ):
        if not values:
            raise ValueError(f"no {what} given: at least one of {_listed(allowed)}")
        for value in values:
            _check(what, value, allowed)
    turns = itertools.cycle(itertools.product(difficulties, sizes, kinds))
    numbers = itertools.islice(seeds(split, seed * STRIDE), count)
    return (
        generate(kind, number, size, difficulty)
        for number, (difficulty, size, kind) in zip(numbers, turns, strict=False)
    )


def _check(what: str, value: object, allowed: Iterable) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}: one of {_listed(allowed)}")


def _listed(values: Iterable) -> str:
    return ", ".join(str(value) for value in values)
