"""Encoded pictures to RGB, by one rule. Shards are untrusted input: whatever its bytes, a picture is read or refused.

- JPEG, PNG, WEBP, GIF, BMP and TIFF are opened, nothing else (for EPS, PIL would start Ghostscript).
- Sizes are checked in the header, before anything is decoded. A truncated picture is refused.
- Of several frames the first counts.
- The picture is turned as its EXIF orientation says; where that cannot be read, it stays as it is.
- Palettes are read through their colours. Transparency of any kind is laid on white.
- 16-bit values keep their high byte (65535 becomes 255), 12-bit ones their eight highest bits. Longer integers are
  refused unless all are 16-bit values, and so is floating point, whose range nothing tells.
- One bit is black or white. CMYK becomes RGB as in PIL, Adobe's inverted one too. Colour profiles are not applied.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.ExifTags import Base as Tag
from PIL.Image import Transpose as Turn
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from data.sample import DataError, Sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
OTHERS = {b"%!PS": "EPS", b"%PDF": "PDF", b"8BPS": "PSD", b"<": "SVG or HTML"}  # by their first bytes, for messages
TURNS = {2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE}
TURNS |= {6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90}
# PNG states its transparent grey or colour at its own depth; PIL brings the pixels to 8 bits, but not this.
KEY_FACTORS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}

# What PIL has to say of odd files: one can bring tens of thousands of warnings, and none names it. Once for all, as
# changing filters around every picture is not safe in threads and lets all other warnings appear again and again.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Limits(BaseModel):
    """The most that one sample may hold; what holds more is refused before it is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pixels: int = Field(100_000_000, ge=1, le=178_956_970, description="of one picture, and no more than PIL opens")
    image_bytes: ByteSize = Field(ByteSize(64 * 2**20), gt=0, description="of one encoded picture")
    sample_bytes: ByteSize = Field(ByteSize(256 * 2**20), gt=0, description="of one sample in its shard")
    images: int = Field(64, ge=0, description="of one sample")
    text_bytes: ByteSize = Field(ByteSize(2**20), gt=0, description="of KEY.json")


LIMITS = Limits()


def pictures(sample: Sample, limits: Limits = LIMITS) -> list[Image.Image]:
    """The sample's images as RGB, upright. DataError names the one that is damaged or beyond a limit."""
    if len(sample.images) > limits.images:
        what = f"{len(sample.images)} images, more than {limits.images}"
        raise DataError(f"{sample.place}: {what}; leave the sample out")
    return [decode(content, f"{sample.place}.{number}", limits) for number, content in enumerate(sample.images)]


def decode(content: bytes, place: str, limits: Limits = LIMITS) -> Image.Image:
    """One encoded picture as RGB, upright. DataError starts with `place`."""
    picture = header(content, place, limits)
    with _blamed_on(place, content, limits):
        _scale_key(picture)
        picture.load()
        turn = _turn(picture)
    if picture.mode == "F":
        raise DataError(f"{place}: floating point values, of no known range; write it with 8 or 16 bits a value")
    if picture.mode.startswith("I"):
        rgb = _cut(picture, place)
    else:
        with _blamed_on(place, content, limits):
            rgb = _rgb(picture)
    return rgb if turn is None else rgb.transpose(turn)


def header(content: bytes, place: str, limits: Limits = LIMITS) -> ImageFile.ImageFile:
    """A picture of which no more than the header was read: of a format that is opened, and within the limits."""
    if len(content) > limits.image_bytes:
        what = f"{len(content):,} bytes, more than {limits.image_bytes:,}"
        raise DataError(f"{place}: {what}; shrink it or leave the sample out")
    with _blamed_on(place, content, limits):
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        tags = getattr(picture, "tag_v2", {})  # of TIFF, whose tiles are decoded whole
        sizes = [picture.size, (tags.get(Tag.TileWidth, 0), tags.get(Tag.TileLength, 0))]
        width, height = max(sizes, key=lambda size: size[0] * size[1])
    if width * height > limits.pixels:
        what = f"{width} x {height} pixels, more than {limits.pixels:,}"
        raise DataError(f"{place}: {what}; shrink it or leave the sample out")
    return picture


@contextmanager
def _blamed_on(place: str, content: bytes, limits: Limits) -> Iterator[None]:
    """Around calls of PIL alone: on damaged bytes they raise nearly anything (SyntaxError, KeyError, struct.error).

    A lack of memory is no fault of the picture, which was found small enough.
    """
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        head = content[:12].lstrip()
        found = next((f", but {name}" for start, name in OTHERS.items() if head.startswith(start)), "")
        what = f"not a whole picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}{found}"
        raise DataError(f"{place}: {what} ({len(content):,} bytes); write it again as one of these") from error
    except Image.DecompressionBombError as error:
        what = f"not a whole picture, or one of more than {limits.pixels:,} pixels ({error})"
        raise DataError(f"{place}: {what}; write it again, smaller") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{place}: not a whole picture ({reason}); write it again") from error


def _scale_key(picture: ImageFile.ImageFile) -> None:
    key, depth = picture.info.get("transparency"), picture.tile[0].args if picture.format == "PNG" else None
    if key is not None and depth in KEY_FACTORS:
        scaled = [int(value * KEY_FACTORS[depth]) for value in np.atleast_1d(key)]
        picture.info["transparency"] = tuple(scaled) if len(scaled) > 1 else scaled[0]


def _turn(picture: Image.Image) -> Turn | None:
    """What puts it upright. (PIL turns a TIFF itself, and takes the tag out.)"""
    try:
        orientation = picture.getexif().get(Tag.Orientation)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF raises as much as damaged pixels
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":
        picture = picture.convert("LA")  # PIL knows no other way on
    if not picture.has_transparency_data:
        # As it is, uncopied; but a WEBP would keep its decoder, which takes twice the picture's memory.
        return picture if picture.mode == "RGB" and picture.format != "WEBP" else picture.convert("RGB")
    rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _cut(picture: Image.Image, place: str) -> Image.Image:
    """Grey of more than 8 bits, cut to its 8 highest."""
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})
    if values.min() < 0 or values.max() > 65535:
        what = f"values from {values.min()} to {values.max()}, not of 16 bits"
        raise DataError(f"{place}: {what}; write it with 8 or 16 bits a value")
    grey = (values >> (4 if tags.get(Tag.BitsPerSample) == (12,) else 8)).astype(np.uint8)
    if tags.get(Tag.PhotometricInterpretation) == 0:  # white is zero, which PIL minds in 8 bits only
        grey = 255 - grey
    grey[values == picture.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")
