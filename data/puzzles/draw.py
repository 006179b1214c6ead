"""Drawing: named colours with small variations, shapes, letters, PNG bytes."""

import io
import math
import random
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (222, 38, 38),
    "green": (36, 160, 60),
    "blue": (40, 80, 225),
    "yellow": (242, 205, 25),
    "purple": (150, 45, 185),
    "orange": (245, 130, 25),
}
BASIC = ("red", "green", "blue", "yellow")  # the four that are farthest apart
SHAPES = ("disc", "square", "triangle", "cross")
BLACK: Colour = (15, 15, 15)
GREY: Colour = (150, 150, 150)
WHITE: Colour = (255, 255, 255)


def shade(rng: random.Random, name: str, spread: int = 10) -> Colour:
    """A named colour, a little off: pictures that ask the same still differ in their pixels."""
    red, green, blue = (min(255, max(0, part + rng.randint(-spread, spread))) for part in COLOURS[name])
    return red, green, blue


def canvas(rng: random.Random, width: int, height: int | None = None) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture on a nearly white ground, and its pen."""
    # Hardly tinted: the ground is never what tells one picture from another.
    level = rng.randint(238, 253)
    ground = tuple(level + rng.randint(-2, 2) for _ in range(3))
    image = Image.new("RGB", (width, height or width), ground)
    return image, ImageDraw.Draw(image)


def shape(pen: ImageDraw.ImageDraw, name: str, x: float, y: float, radius: float, fill: Colour) -> None:
    """A filled shape about (x, y) that stays within `radius` of it on both axes."""
    x, y, radius = round(x), round(y), round(radius)  # whole pixels keep small shapes even
    if name == "disc":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif name == "square":
        half = round(radius * 0.88)
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif name == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=fill)
    elif name == "cross":
        arm = round(radius * 0.28)  # thin enough that a small cross never looks like a disc
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    else:
        raise ValueError(f"shape {name!r}: one of {', '.join(SHAPES)}")


def group(
    pen: ImageDraw.ImageDraw, name: str, count: int, box: Sequence[float], fill: Colour, fraction: float = 0.4
) -> None:
    """One to four equal shapes laid out in a square box (left, top, side)."""
    left, top, side = box
    spots = {
        1: [(0.5, 0.5)],
        2: [(0.26, 0.5), (0.74, 0.5)],
        3: [(0.5, 0.26), (0.26, 0.74), (0.74, 0.74)],
        4: [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)],
    }[count]
    radius = side * (fraction if count == 1 else 0.17)
    for x, y in spots:
        shape(pen, name, left + x * side, top + y * side, radius, fill)


def scattered(
    rng: random.Random,
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    cells: int,
    things: Sequence[tuple[str, str]],
) -> None:
    """Draw (shape, colour) things in different cells of a grid, each a little off its middle."""
    cell = image.width / cells
    for place, (name, colour) in zip(rng.sample(range(cells * cells), len(things)), things, strict=True):
        row, column = divmod(place, cells)
        x = (column + 0.5 + rng.uniform(-0.03, 0.03)) * cell
        y = (row + 0.5 + rng.uniform(-0.03, 0.03)) * cell
        shape(pen, name, x, y, cell * rng.uniform(0.32, 0.38), shade(rng, colour))


@lru_cache(maxsize=16)
def font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size=points)


def letter_points(size: int) -> int:
    """How large a letter is drawn in a picture of `size`: never under what can be read."""
    return max(13, size // 7)


def letter(pen: ImageDraw.ImageDraw, text: str, x: float, y: float, points: int) -> None:
    """A letter with its middle at (x, y)."""
    pen.text((x, y), text, fill=BLACK, font=font(points), anchor="mm")


def polar(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    """The point at a distance and an angle (0 up, growing clockwise) from (x, y)."""
    angle = math.radians(degrees)
    return x + radius * math.sin(angle), y - radius * math.cos(angle)


def png(image: Image.Image) -> bytes:
    """The picture as PNG, packed fast rather than small."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
