"""A contact sheet of samples: pictures, question, choices and answer, to be looked at and solved by a person."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from data.puzzles.draw import BLACK, GREY, WHITE, font
from data.sample import LETTERS, Sample, pictures

GAP = 12
WIDTH = 1780  # holds the six samples of a kind that has two pictures
POINTS = 15  # of the text
ANSWER = (190, 20, 20)


def write_sheet(path: Path, groups: Iterable[Sequence[Sample]]) -> None:
    """Write samples as one PNG; every group starts a new row."""
    rows = [row for group in groups for row in _rows([_cell(sample) for sample in group])]
    height = GAP + sum(_height(row) for row in rows)
    sheet = Image.new("RGB", (WIDTH, height), WHITE)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for row in rows:
        left = GAP
        for cell in row:
            sheet.paste(cell, (left, top))
            left += cell.width + GAP
        top += _height(row)
        pen.line((0, top - GAP, WIDTH, top - GAP), fill=GREY)
    sheet.save(path, "PNG")


def _rows(cells: list[Image.Image]) -> list[list[Image.Image]]:
    """Cells set like words in lines no wider than the sheet."""
    rows: list[list[Image.Image]] = [[]]
    for cell in cells:
        if rows[-1] and GAP + sum(other.width + GAP for other in rows[-1]) + cell.width > WIDTH:
            rows.append([])
        rows[-1].append(cell)
    return rows


def _height(row: list[Image.Image]) -> int:
    return max(cell.height for cell in row) + 2 * GAP


def _cell(sample: Sample) -> Image.Image:
    """A sample's pictures, with its question, choices and answer beneath."""
    images = [_enlarged(picture) for picture in pictures(sample)]
    width = min(WIDTH - 2 * GAP, max(244, sum(picture.width + GAP for picture in images)))
    lines = [(line, BLACK) for line in textwrap.wrap(f"{sample.key}: {sample.text.question}", width // 8)]
    lettered = zip(LETTERS, sample.text.choices or (), strict=False)
    listed = "  ".join(f"{name}) {choice}" for name, choice in lettered)
    lines += [(line, BLACK) for line in textwrap.wrap(listed, width // 8)]
    lines.append((f"answer: {sample.text.answer}", ANSWER))
    pictures_high = max((picture.height for picture in images), default=0)
    cell = Image.new("RGB", (width, pictures_high + GAP + len(lines) * (POINTS + 5)), WHITE)
    pen = ImageDraw.Draw(cell)
    left = 0
    for picture in images:
        cell.paste(picture, (left, 0))
        pen.rectangle((left, 0, left + picture.width - 1, picture.height - 1), outline=GREY)
        left += picture.width + GAP
    for at, (line, fill) in enumerate(lines):
        pen.text((0, pictures_high + GAP + at * (POINTS + 5)), line, fill=fill, font=font(POINTS))
    return cell


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture by a whole factor, so that its pixels stay as they are; a large one made to fit."""
    picture.thumbnail((384, 384))
    factor = max(1, 128 // picture.height)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
