"""Samples to be looked at by a person: a contact sheet as one PNG, or a page."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.pictures import pictures
from data.sample import DataError, Text
from data.shards.items import read, some
from data.shards.page import check_form, render
from data.sheet import cell, write_cells
from data.source import Source

SIDE = 320  # pixels of a thumbnail

STYLES = """.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
.sample { border: 1px solid #ccc; border-radius: .3rem; padding: .7rem; overflow-wrap: anywhere }
.sample img { max-width: 100%; border: 1px solid #ddd; margin: 0 .2rem .2rem 0; vertical-align: top }
.small { image-rendering: pixelated } p, ol { margin: .3rem 0; white-space: pre-wrap } small { color: #555 }
ol { list-style: upper-alpha; padding-left: 1.6rem } .answer { color: #a01010; font-weight: 600 }
"""
BODY = """<p>{{ samples|length }} of {{ "{:,}".format(total) }} samples</p>
<div class="samples">
{% for one in samples %}{% set text = one.text %}<div class="sample"><small>{{ one.key }}</small>
<div>{% for picture in one.pictures %}<img src="{{ picture.address }}" width="{{ picture.width }}"
 height="{{ picture.height }}" alt="picture {{ loop.index0 }}" title="{{ picture.size }}"
 {{- ' class="small"'|safe if picture.small }}>{% endfor %}</div>
<p>{{ text.question }}</p>
{% if text.choices %}<ol>{% for choice in text.choices %}<li>{{ choice }}</li>{% endfor %}</ol>{% endif %}
<p class="answer">{{ text.answer }}</p>
{% if text.rationale %}<p>{{ text.rationale }}</p>{% endif %}<small>{{ text.task }}, {{ text.source }}</small></div>
{% endfor %}</div>
"""


class Thumbnail(NamedTuple):
    """A picture in a page."""

    address: str
    width: int
    height: int
    size: str  # of the picture itself
    small: bool  # and enlarged


class Shown(NamedTuple):
    """A sample in a page."""

    key: str
    text: Text
    pictures: list[Thumbnail]


def preview(folder: str, out: Path, source: Source, count: int, seed: int | None) -> Iterator[str]:
    """Write the page or the sheet. Yields what is wrong with samples that cannot be shown."""
    check_form(out)
    total, pieces = some(folder, source, count, seed)
    shown, sheet = [], []
    for piece in pieces:
        try:
            sample = read(piece)
            opened = pictures(sample)
        except DataError as error:
            yield str(error)
            continue
        if out.suffix == ".png":
            sheet.append(cell(sample, opened))
        else:
            shown.append(Shown(sample.key, sample.text, [thumbnail(picture) for picture in opened]))
    if not shown and not sheet:
        raise DataError(f"{folder}: no sample that can be shown; see what lint says")
    if out.suffix == ".png":
        write_cells(out, [sheet])
    else:
        out.write_text(render(STYLES, BODY, title=folder, total=total, samples=shown), encoding="utf-8")


def thumbnail(picture: Image.Image) -> Thumbnail:
    size = f"{picture.width} x {picture.height} pixels"
    factor = max(1, SIDE // 2 // max(picture.size))  # a whole one: the pixels of small pictures stay as they are
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG" if max(picture.size) < SIDE else "WEBP")
    kind = "png" if max(picture.size) < SIDE else "webp"
    address = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
    return Thumbnail(address, picture.width * factor, picture.height * factor, size, factor > 1)
