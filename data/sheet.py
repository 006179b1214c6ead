"""A contact sheet of samples: pictures, question, choices and answer, to be looked at and solved by a person."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from data.pictures import pictures
from data.puzzles.draw import BLACK, GREY, WHITE, font
from data.sample import LETTERS, Sample

GAP = 12
WIDTH = 1780  # holds the six samples of a kind that has two pictures
POINTS = 15  # of the text
LINES = 12  # of one of its parts
ANSWER = (190, 20, 20)
GREEN = (20, 105, 45)  # of the rationale


def write_sheet(path: Path, groups: Iterable[Sequence[Sample]]) -> None:
    """Write samples as one PNG; every group starts a new row."""
    write_cells(path, ([cell(sample, pictures(sample)) for sample in group] for group in groups))


def write_cells(path: Path, groups: Iterable[Sequence[Image.Image]]) -> None:
    """The same with samples that are drawn already."""
    rows = [row for group in groups for row in _rows(group)]
    height = GAP + sum(_height(row) for row in rows)
    sheet = Image.new("RGB", (WIDTH, height), WHITE)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for row in rows:
        left = GAP
        for one in row:
            sheet.paste(one, (left, top))
            left += one.width + GAP
        top += _height(row)
        pen.line((0, top - GAP, WIDTH, top - GAP), fill=GREY)
    sheet.save(path, "PNG")


def _rows(cells: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """Cells set like words in lines no wider than the sheet."""
    rows: list[list[Image.Image]] = [[]]
    for one in cells:
        if rows[-1] and GAP + sum(other.width + GAP for other in rows[-1]) + one.width > WIDTH:
            rows.append([])
        rows[-1].append(one)
    return rows


def _height(row: list[Image.Image]) -> int:
    return max(one.height for one in row) + 2 * GAP


def cell(sample: Sample, opened: list[Image.Image]) -> Image.Image:
    """A sample's pictures, with its question, choices, answer and rationale beneath."""
    text, images = sample.text, [_enlarged(picture) for picture in opened]
    width = min(WIDTH - 2 * GAP, max(244, sum(picture.width + GAP for picture in images) - GAP))
    lettered = zip(LETTERS, text.choices or (), strict=False)
    listed = "  ".join(f"{name}) {choice}" for name, choice in lettered)
    parts = [(f"{sample.key}: {text.question}", BLACK), (listed, BLACK), (f"answer: {text.answer}", ANSWER)]
    lines = [(line, fill) for part, fill in [*parts, (text.rationale or "", GREEN)] for line in _wrapped(part, width)]
    placed, high = _placed(images, width)
    drawn = Image.new("RGB", (width, high + len(lines) * (POINTS + 5)), WHITE)
    pen = ImageDraw.Draw(drawn)
    for picture, left, top in placed:
        drawn.paste(picture, (left, top))
        pen.rectangle((left, top, left + picture.width - 1, top + picture.height - 1), outline=GREY)
    for at, (line, fill) in enumerate(lines):
        pen.text((0, high + at * (POINTS + 5)), line, fill=fill, font=font(POINTS))
    return drawn


def _wrapped(text: str, width: int) -> list[str]:
    """Text in lines, of which the last says so when there are more."""
    plain = "".join(c if c.isprintable() else " " for c in text[: 2 * LINES * width])
    return textwrap.wrap(plain, width // 8, max_lines=LINES, placeholder=" ...")


def _placed(images: list[Image.Image], width: int) -> tuple[list[tuple[Image.Image, int, int]], int]:
    """Where in a cell its pictures go (left, top), set in rows, and how high they are together."""
    placed, left, top, high = [], 0, 0, 0
    for picture in images:
        if left and left + picture.width > width:
            left, top, high = 0, top + high + GAP, 0
        placed.append((picture, left, top))
        left, high = left + picture.width + GAP, max(high, picture.height)
    return placed, top + high + GAP


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture by a whole factor, so that its pixels stay as they are; a large one made to fit."""
    picture.thumbnail((384, 384))
    factor = max(1, min(128 // picture.height, 384 // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
