"""What a family of puzzles returns, and the sets of choices that give nothing away by themselves."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

DRAWN = ("A", "B", "C", "D")  # the choices when they are letters drawn in the picture
CORNERS = ("top left", "top right", "bottom left", "bottom right")
ORDINALS = ("first", "second", "third", "fourth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Puzzle:
    """Pictures, a question, its choices and the index of the right one."""

    images: tuple[Image.Image, ...]
    question: str
    choices: tuple[str, ...]
    right: int


def fixed(images: Sequence[Image.Image], question: str, choices: Sequence[str], right: str) -> Puzzle:
    """A puzzle whose choices keep their order."""
    return Puzzle(tuple(images), question, tuple(choices), list(choices).index(right))


def shuffled(
    rng: random.Random, images: Sequence[Image.Image], question: str, choices: Sequence[str], right: str
) -> Puzzle:
    """A puzzle whose choices are put in a random order."""
    return fixed(images, question, rng.sample(list(choices), len(choices)), right)


def in_order(
    rng: random.Random,
    difficulty: int,
    images: Sequence[Image.Image],
    question: str,
    choices: Sequence[str],
    right: str,
) -> Puzzle:
    """A puzzle whose choices keep their order at difficulty 1 and lose it above."""
    if difficulty == 1:
        return fixed(images, question, choices, right)
    return shuffled(rng, images, question, choices, right)


def described(shape: str, colour: str, count: int = 0) -> str:
    """A group of shapes in words: "red disc" without a count, "two red discs" with one."""
    if not count:
        return f"{colour} {shape}"
    plural = {"cross": "crosses"}.get(shape, f"{shape}s")
    return f"{NUMBERS[count]} {colour} {shape if count == 1 else plural}"


def balanced(right: Sequence, wrong: Sequence) -> list[tuple]:
    """Four mixtures of two or three right and wrong values, the right one first.

    Each value is in exactly two of the four and any two of them differ in equally many values as any
    other pair does (for three values), so no choice stands out as the one the rest were made from.
    """
    swaps: list[tuple[int, ...]] = [(0, 0), (0, 1), (1, 0), (1, 1)]
    if len(right) == 3:
        swaps = [(*swap, swap[0] ^ swap[1]) for swap in swaps]
    return [tuple((right, wrong)[bit][at] for at, bit in enumerate(swap)) for swap in swaps]
