"""Pictures: every rule of reading them, pixel by pixel; what is refused, how it is said, and what it costs."""

import io
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data.pictures import FORMATS, Limits, decode, pictures
from data.sample import DataError, Sample, Text
from tests.refusal import refusal

# PIL's warnings are silenced where data.pictures is imported; pytest has its own filters.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RED, GREEN, BLUE = (250, 10, 20), (30, 240, 40), (50, 60, 230)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}, "BMP": {}}


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **LOSSLESS.get(form, {}) | options)
    return out.getvalue()


def made(mode: str, *values: object) -> Image.Image:
    """A picture of one row."""
    picture = Image.new(mode, (len(values), 1))
    picture.putdata(values)
    return picture


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, bits: int, colour: int, row: bytes, *chunks: bytes, height: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(content)


def tiff(raw: bytes, tags: dict[int, tuple[int, ...]], width: int = 2) -> bytes:
    """A little-endian TIFF of one row; all tags are long integers."""
    tags = {256: (width,), 257: (1,), 259: (1,), 273: (8,), 277: (1,), 278: (1,), 279: (len(raw),)} | tags
    start, far = 8 + len(raw) + 2 + 12 * len(tags) + 4, b""
    entries = b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            far, content = far + content, struct.pack("<I", start + len(far))
        entries += struct.pack("<HHI", tag, 4, len(values)) + content
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + entries + bytes(4) + far


def palette(mode: str = "P") -> Image.Image:
    picture = made("P", 0, 1, 2)
    picture.putpalette([*RED, *GREEN, *BLUE])
    if mode == "PA":
        picture = picture.convert("PA")
        picture.putalpha(made("L", 255, 0, 255))
    return picture


def blend(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple(round((value * alpha + 255 * (255 - alpha)) / 255) for value in colour)


GREYS = [(5,) * 3, (6,) * 3]
CASES: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "RGB in PNG": (saved(made("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "RGB in WEBP": (saved(made("RGB", RED, GREEN), "WEBP"), [RED, GREEN]),
    "RGB in BMP": (saved(made("RGB", RED, GREEN), "BMP"), [RED, GREEN]),
    "RGB in TIFF": (saved(made("RGB", RED, GREEN), "TIFF"), [RED, GREEN]),
    "compressed TIFF": (saved(made("RGB", RED, GREEN), "TIFF", compression="tiff_lzw"), [RED, GREEN]),
    "grey": (saved(made("L", 5, 6), "PNG"), GREYS),
    "one bit": (saved(made("1", 255, 0), "PNG"), [WHITE, BLACK]),
    "palette": (saved(palette(), "PNG"), [RED, GREEN, BLUE]),
    "palette in BMP": (saved(palette(), "BMP"), [RED, GREEN, BLUE]),
    "palette in GIF": (saved(palette(), "GIF"), [RED, GREEN, BLUE]),
    "palette, one transparent": (saved(palette(), "PNG", transparency=1), [RED, WHITE, BLUE]),
    "palette in GIF, one transparent": (saved(palette(), "GIF", transparency=2), [RED, GREEN, WHITE]),
    "palette with alpha": (saved(palette(), "PNG", transparency=b"\xff\x80\x00"), [RED, blend(GREEN, 128), WHITE]),
    "PA": (saved(palette("PA"), "TIFF"), [RED, WHITE, BLUE]),
    "RGBA": (
        saved(made("RGBA", (*RED, 255), (*GREEN, 0), (*BLUE, 1), (*RED, 100)), "PNG"),
        [RED, WHITE, blend(BLUE, 1), blend(RED, 100)],
    ),
    "RGBA in WEBP": (saved(made("RGBA", (*RED, 255), (*GREEN, 0), (*BLUE, 77)), "WEBP"), [RED, WHITE, blend(BLUE, 77)]),
    "LA": (saved(made("LA", (5, 255), (6, 0), (7, 99)), "PNG"), [GREYS[0], WHITE, blend((7,) * 3, 99)]),
    "LA, alpha multiplied in": (
        tiff(bytes([50, 255, 40, 100]), {258: (8, 8), 262: (1,), 277: (2,), 338: (1,)}),
        [(50,) * 3, blend((102,) * 3, 100)],
    ),
    "transparent grey": (png(2, 8, 0, bytes([5, 6]), chunk(b"tRNS", b"\0\6")), [GREYS[0], WHITE]),
    "transparent of one bit": (png(2, 1, 0, b"\x40", chunk(b"tRNS", b"\0\0")), [WHITE, WHITE]),
    "transparent grey of 2 bits": (png(2, 2, 0, b"\x60", chunk(b"tRNS", b"\0\2")), [(85,) * 3, WHITE]),
    "transparent grey of 4 bits": (png(2, 4, 0, b"\x5f", chunk(b"tRNS", b"\0\5")), [WHITE, WHITE]),
    "transparent colour": (
        png(2, 8, 2, bytes([*RED, *GREEN]), chunk(b"tRNS", struct.pack(">3H", *GREEN))),
        [RED, WHITE],
    ),
    "16 bits": (png(4, 16, 0, struct.pack(">4H", 0, 255, 32767, 65535)), [BLACK, BLACK, (127,) * 3, WHITE]),
    "16 bits, transparent": (
        png(3, 16, 0, struct.pack(">3H", 0x1234, 0x1235, 0x12FF), chunk(b"tRNS", b"\x12\x35")),
        [(0x12,) * 3, WHITE, (0x12,) * 3],
    ),
    "16 bits, colour": (png(1, 16, 2, struct.pack(">3H", 65535, 0x8001, 0)), [(255, 128, 0)]),
    "16 bits, colour, transparent": (
        png(
            2,
            16,
            2,
            struct.pack(">6H", 1000, 2000, 3000, 0, 0, 0),
            chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)),
        ),
        [WHITE, BLACK],
    ),
    "I;16 in TIFF": (saved(made("I;16", 0, 0x80FF, 65535), "TIFF"), [BLACK, (128,) * 3, WHITE]),
    "I;16B in TIFF": (saved(made("I;16B", 0, 0x80FF, 65535), "TIFF"), [BLACK, (128,) * 3, WHITE]),
    "32 bits": (saved(made("I", 0, 0x80FF, 65535), "TIFF"), [BLACK, (128,) * 3, WHITE]),
    "16 bits, white is zero": (
        tiff(struct.pack("<2H", 0, 65535), {258: (16,), 262: (0,)}),
        [WHITE, BLACK],
    ),
    "12 bits": (tiff(b"\xff\xf8\x10", {258: (12,), 262: (1,)}), [WHITE, (0x81,) * 3]),
    "CMYK": (saved(made("CMYK", (255, 0, 0, 0), (0, 200, 0, 51)), "TIFF"), [(0, 255, 255), (204, 44, 204)]),
    "YCbCr": (saved(made("YCbCr", (100, 128, 128)), "TIFF"), [(100, 100, 100)]),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(case: str) -> None:
    content, wanted = CASES[case]
    picture = decode(content, "k.0")
    assert picture.mode == "RGB" and picture.height == 1
    assert [picture.getpixel((x, 0)) for x in range(picture.width)] == wanted


def test_cmyk_jpegs() -> None:
    """Adobe's CMYK is inverted. Of YCCK the first three are luma and chroma: of grey, 255 - Y each."""
    content = saved(Image.new("CMYK", (16, 16), (155, 127, 127, 55)), "JPEG", quality=100)
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0  # not transformed
    assert decode(content, "").getpixel((8, 8)) == tuple(round((255 - v) * 200 / 255) for v in (155, 127, 127))
    assert decode(content[: marker + 11] + b"\2" + content[marker + 12 :], "").getpixel((8, 8)) == (122, 122, 122)


UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (128, 128, 128)]], dtype=np.uint8)
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # how a picture lies that the orientation puts upright
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.transpose(1, 0, 2),
    6: lambda u: np.rot90(u),  # a quarter to the left
    7: lambda u: u[::-1, ::-1].transpose(1, 0, 2),
    8: lambda u: np.rot90(u, -1),
}


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[274] = orientation
    return found.tobytes()


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB"), ("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "I;16")],
)
@pytest.mark.parametrize("orientation", STORED)
def test_upright(orientation: int, form: str, mode: str) -> None:
    upright = UPRIGHT.repeat(16, 0).repeat(16, 1)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    if mode == "I;16":
        picture, upright = Image.fromarray(stored[..., 0].astype(np.uint16) * 256), upright[..., :1].repeat(3, 2)
    else:
        picture = Image.fromarray(stored).convert(mode)
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    found = np.asarray(decode(saved(picture, form, exif=exif(orientation), **options), ""))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (3 if form == "JPEG" else 0)


ENTRY = b"II*\0\x08\0\0\0\x01\0\x12\x01"  # a directory of one tag, the orientation
DAMAGED = {
    "nothing": b"",
    "no header": b"no header at all",
    "no directory": b"II*\0\xff\xff\xff\xff",
    "cut": ENTRY + b"\3\0",
    "a text": ENTRY + b"\2\0\2\0\0\0" + b"6\0\0\0" + bytes(4),
    "too long": ENTRY + b"\3\0\xff\xff\xff\x7f" + b"\6\0\0\0" + bytes(4),
    "of no type": ENTRY + b"\x63\0\1\0\0\0" + b"\6\0\0\0" + bytes(4),
    "none": ENTRY + b"\3\0\0\0\0\0" + b"\6\0\0\0" + bytes(4),
    "0": exif(0),
    "9": exif(9),
}


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_exif_turns_nothing(case: str, form: str) -> None:
    picture = Image.fromarray(UPRIGHT)
    content = saved(picture, form, exif=b"Exif\0\0" + DAMAGED[case].removeprefix(b"Exif\0\0"))
    assert decode(content, "").tobytes() == decode(saved(picture, form), "").tobytes()


@given(
    content=st.binary(max_size=60), header=st.sampled_from([b"", ENTRY, ENTRY.replace(b"\x01\0\x12", b"\x05\0\x12")])
)
@settings(max_examples=200, deadline=None)
def test_no_exif_fails_a_picture(content: bytes, header: bytes) -> None:
    picture = Image.fromarray(UPRIGHT)
    for form in ("PNG", "WEBP"):
        found = np.asarray(decode(saved(picture, form, exif=b"Exif\0\0" + header + content), ""))
        assert any(np.array_equal(stored(found), UPRIGHT) for stored in STORED.values())


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    found = np.asarray(decode(content, ""))
    assert np.abs(found.astype(int) - RED).max() <= (3 if form == "MPO" else 0)


def refused(content: bytes, limits: Limits | None = None) -> str:
    place, text = refusal(lambda: decode(content, "set.tar: k.0", limits or Limits())).split(": k.0: ")
    assert place == "set.tar"
    return text


ASKED = "not a whole picture in JPEG, PNG, WEBP, GIF, BMP or TIFF"
OTHER = {form: saved(Image.new("RGB", (32, 32)), form) for form in ("EPS", "PDF", "PPM", "ICO", "TGA", "PCX", "SGI")}
OTHER |= {"nothing": b"", "noise": bytes(range(256)), "SVG or HTML": b"  <!DOCTYPE html>", "PSD": b"8BPS" + bytes(40)}


@pytest.mark.parametrize("case", OTHER)
def test_other_formats_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before another program is started, as PIL does for EPS."""
    monkeypatch.setattr(subprocess, "Popen", None)
    known = f", but {case}" if case in ("EPS", "PDF", "SVG or HTML", "PSD") else ""
    assert refused(OTHER[case]) == f"{ASKED}{known} ({len(OTHER[case]):,} bytes); write it again as one of these"


REFUSED = {
    "floating point": (
        saved(made("F", 0.5), "TIFF"),
        "floating point values, of no known range; write it with 8 or 16",
    ),
    "32 bits": (
        saved(made("I", 5, 65536), "TIFF"),
        "values from 5 to 65536, not of 16 bits; write it with 8 or 16 bits",
    ),
    "below zero": (saved(made("I", -1, 5), "TIFF"), "values from -1 to 5, not of 16 bits"),
    "no size": (png(0, 8, 2, b""), ASKED),
    "truncated": (
        saved(Image.effect_noise((64, 64), 50), "PNG")[:-999],
        "not a whole picture (image file is truncated",
    ),
    "truncated JPEG": (
        saved(Image.effect_noise((64, 64), 50), "JPEG")[:-99],
        "not a whole picture (image file is trunc",
    ),
    "palette without colours": (png(1, 8, 3, b"\0"), "not a whole picture (AssertionError); write it again"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_and_why(case: str) -> None:
    content, text = REFUSED[case]
    assert refused(content).startswith(text)


def test_limits() -> None:
    content = saved(Image.new("RGB", (50, 40)), "PNG")
    fits = Limits(pixels=2000, image_bytes=len(content), images=2)
    text = Text(question="?", answer="!", task="t", source="s")

    def sample(images: int) -> Sample:
        return Sample(key="k", text=text, images=(content,) * images, origin="set.tar")

    assert [picture.size for picture in pictures(sample(2), fits)] == [(50, 40)] * 2
    with pytest.raises(DataError, match=r"^set\.tar: k: 3 images, more than 2; leave the sample out$"):
        pictures(sample(3), fits)
    with pytest.raises(DataError, match=r"^set\.tar: k\.0: 50 x 40 pixels, more than 1,999; shrink it or leave"):
        pictures(sample(1), fits.model_copy(update={"pixels": 1999}))
    said = refused(content, fits.model_copy(update={"image_bytes": len(content) - 1}))
    assert said == f"{len(content)} bytes, more than {len(content) - 1}; shrink it or leave the sample out"


def bmp(width: int, height: int) -> bytes:
    """A header that says these sizes."""
    content = saved(Image.new("RGB", (8, 8)), "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def gif(width: int, height: int) -> bytes:
    content = saved(palette(), "GIF")
    return content[:6] + struct.pack("<HH", width, height) + content[10:]


def webp(width: int, height: int) -> bytes:
    content = saved(made("RGBA", (*RED, 9)), "WEBP", save_all=True, append_images=[made("RGBA", (*BLUE, 9))])
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:24] + sides + content[30:]


def tiled(side: int) -> bytes:
    """One pixel, in a tile of this size."""
    raw = zlib.compress(bytes(side**2 * 3), 9)
    where = {322: (side,), 323: (side,), 324: (8,), 325: (len(raw),)}
    return tiff(raw, {258: (8, 8, 8), 259: (8,), 262: (2,), 277: (3,)} | where, width=1)


def zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 2**20), 9)


BOMBS: dict[str, tuple[bytes, str]] = {
    "BMP": (bmp(10_001, 10_000), "10001 x 10000 pixels, more than 100,000,000; shrink it"),
    "beyond PIL": (
        bmp(20_000, 20_000),
        "not a whole picture, or one of more than 100,000,000 pixels (Image size (400000000 pixels) exceeds",
    ),
    "PNG": (png(12_000, 8, 2, zeros(1), height=12_000), "12000 x 12000 pixels, more than"),
    "GIF": (gif(65_535, 2000), "65535 x 2000 pixels, more than"),
    "WEBP": (webp(13_000, 13_000), "13000 x 13000 pixels, more than"),
    "TIFF": (
        tiff(b"", {256: (2**31,), 257: (2**31,), 258: (8,), 262: (1,)}),
        "not a whole picture, or one of more than 100,000,000 pixels (Image size",
    ),
    "TIFF tile": (tiled(10_100), "10100 x 10100 pixels, more than"),
    "PNG text": (
        png(1, 8, 2, bytes(3), chunk(b"zTXt", b"a\0\0" + zeros(200))),
        "not a whole picture (Decompressed data",
    ),
    "PNG profile": (
        png(1, 8, 2, bytes(3), chunk(b"iCCP", b"a\0\0" + zeros(200))),
        "not a whole picture (Decompressed da",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused(case: str) -> None:
    content, text = BOMBS[case]
    assert refused(content).startswith(text)


MEASURE = """
import pickle, re, sys
from pathlib import Path
from PIL import Image, ImageFile
from data.pictures import decode
from data.sample import DataError

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

for content in pickle.load(sys.stdin.buffer):
    before = peak()
    try:
        decode(content, "")
    except DataError:
        pass
    print(peak() - before)
assert not ImageFile.LOAD_TRUNCATED_IMAGES and Image.MAX_IMAGE_PIXELS == 89_478_485
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_refusing_takes_no_memory_and_no_warnings() -> None:
    """In a process of its own: peaks are counted from its start, and warnings appear as they do to a user."""
    contents = [CASES["RGB in TIFF"][0], *(content for content, _ in BOMBS.values())]
    damaged = [saved(Image.fromarray(UPRIGHT), form, exif=DAMAGED["too long"]) for form in ("PNG", "WEBP", "JPEG")]
    given = pickle.dumps(contents + damaged)
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", MEASURE], input=given, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    peaks = [float(line) for line in done.stdout.split()]
    assert len(peaks) == 1 + len(BOMBS) + len(damaged) and max(peaks[1:]) < 16  # MB; the first loads PIL's readers


def test_a_lack_of_memory_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    with pytest.raises(MemoryError):
        decode(CASES["RGB in BMP"][0], "")


NOISE = Image.effect_noise((24, 17), 60)
WHOLE = {form: saved(NOISE.convert("RGB"), form) for form in FORMATS} | {
    "PNG, 16 bits": saved(NOISE.convert("I;16"), "PNG", exif=exif(6)),
    "PNG, palette": saved(NOISE.convert("P"), "PNG", transparency=bytes(range(256))),
    "JPEG, CMYK": saved(NOISE.convert("CMYK"), "JPEG", exif=exif(5)),
    "WEBP, frames": saved(NOISE.convert("RGBA"), "WEBP", save_all=True, append_images=[NOISE.convert("RGBA")]),
    "GIF, transparent": saved(NOISE.convert("P"), "GIF", transparency=7, save_all=True, append_images=[NOISE]),
    "TIFF, packed": saved(NOISE.convert("RGB"), "TIFF", compression="tiff_adobe_deflate", exif=exif(3)),
    "TIFF, JPEG": saved(NOISE.convert("RGB"), "TIFF", compression="jpeg"),
    "TIFF, tiled": tiled(16),
    "PNG, text": png(1, 8, 2, bytes(3), chunk(b"zTXt", b"a\0\0" + zeros(0)), chunk(b"eXIf", exif(7)[6:])),
}


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_pictures_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Any number of flipped bits, many of them in the header; the end cut off or not."""
    content = bytearray(WHOLE[kind])
    places = st.integers(0, 99) | st.integers(0, len(content) - 1)
    for place, bit in data.draw(st.lists(st.tuples(places, st.integers(0, 7)), max_size=8)):
        content[place % len(content)] ^= 1 << bit
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    try:
        picture = decode(bytes(content), "k.0", Limits(pixels=10**6))
    except DataError as error:
        assert str(error).startswith("k.0: ")
    else:
        assert picture.mode == "RGB" and len(picture.tobytes()) == 3 * picture.width * picture.height
