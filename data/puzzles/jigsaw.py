"""Jigsaw: which of two pieces fills the hole in a picture.

1: a picture of one hue, the wrong piece has another. 2: waves in two colours, the wrong piece has the
same colours and other waves. 3: the wrong piece is the right one mirrored or turned.
"""

import math
import random

import numpy as np
from PIL import Image

from data.puzzles.draw import BASIC, WHITE, shade
from data.puzzles.puzzle import Puzzle, in_order

CHOICES = ("the second image", "the third image")
MISFIT = 45  # how much worse the wrong piece meets the picture along the seam, in mean colour steps of 255
TURNS = (np.fliplr, np.flipud, np.rot90, lambda piece: np.rot90(piece, 2), lambda piece: np.rot90(piece, 3))


def make(rng: random.Random, size: int, difficulty: int) -> Puzzle:
    """A jigsaw puzzle."""
    half = size // 2
    top, left = (rng.choice((0, half)) for _ in range(2))
    hole = slice(top, top + half), slice(left, left + half)
    if difficulty == 1:
        hue, other = rng.sample(BASIC, 2)
        picture = _fade(rng, size, hue)
        piece, wrong = picture[hole], _fade(rng, size, other)[hole]
    else:
        picture, piece, wrong = _waves_and_pieces(rng, size, hole, difficulty)
    shown = picture.copy()
    shown[hole] = WHITE
    right = rng.randrange(2)
    pieces = [piece, wrong] if right == 0 else [wrong, piece]
    # Pieces are enlarged to the size of the picture: every image has the same side.
    images = [Image.fromarray(shown), *(Image.fromarray(p.repeat(2, 0).repeat(2, 1)) for p in pieces)]
    question = "<image> One quarter is cut out. Which piece, shown enlarged, fills it? <image> <image>"
    return in_order(rng, difficulty, images, question, CHOICES, CHOICES[right])


def _blend(level: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    """A picture that goes from one colour to another with a level from 0 to 1."""
    return (np.array(low) + level[..., None] * (np.array(high) - np.array(low))).round().astype(np.uint8)


def _plane(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The x and y of every pixel, from -1 to 1."""
    line = (np.arange(size) + 0.5) / size * 2 - 1
    return line[None, :], line[:, None]


def _fade(rng: random.Random, size: int, hue: str) -> np.ndarray:
    """One hue that goes from a darker to the full shade in some direction."""
    x, y = _plane(size)
    angle = rng.uniform(0, 2 * math.pi)
    level = 0.5 + (x * math.cos(angle) + y * math.sin(angle)) / (2 * math.sqrt(2))
    full = shade(rng, hue)
    red, green, blue = (part * 5 // 8 for part in full)
    dark = (red, green, blue)
    return _blend(level, dark, full)


def _waves(rng: random.Random, size: int, low: tuple, high: tuple) -> np.ndarray:
    """Straight waves or rings about a point near the middle, so that three quarters tell the fourth."""
    x, y = _plane(size)
    if rng.random() < 0.5:
        angle = rng.uniform(0, math.pi)
        distance = x * math.cos(angle) + y * math.sin(angle)
    else:
        distance = np.hypot(x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3))
    wave = np.sin(distance * math.pi * rng.uniform(1.5, 2.5) + rng.uniform(0, 2 * math.pi))
    return _blend(0.5 + 0.5 * np.clip(wave * 1.5, -1, 1), low, high)


def _waves_and_pieces(
    rng: random.Random, size: int, hole: tuple[slice, slice], difficulty: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, the piece that was in its hole, and one that plainly does not fit there."""
    while True:
        low, high = (shade(rng, colour) for colour in rng.sample(BASIC, 2))
        picture = _waves(rng, size, low, high)
        piece = picture[hole]
        wrong = _waves(rng, size, low, high)[hole] if difficulty == 2 else rng.choice(TURNS)(piece)
        if _seam(picture, wrong, hole) > _seam(picture, piece, hole) + MISFIT:
            return picture, piece, wrong


def _seam(picture: np.ndarray, piece: np.ndarray, hole: tuple[slice, slice]) -> float:
    """The mean step in colour along the two inner sides of the hole if a piece were put in."""
    half = len(piece)
    rows, columns = hole
    # The hole is a corner quarter: one of its sides in each direction meets the picture.
    row, outer_row = (half - 1, half) if rows.start == 0 else (0, half - 1)
    column, outer_column = (half - 1, half) if columns.start == 0 else (0, half - 1)
    inner = np.concatenate([piece[row], piece[:, column]]).astype(int)
    outer = np.concatenate([picture[outer_row, columns], picture[rows, outer_column]])
    return float(np.abs(inner - outer).mean())
