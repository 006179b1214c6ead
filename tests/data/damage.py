"""Damaged shards of every kind, and what is to come of them.

A damaged shard holds the samples `one`, `k` and `two`, of which `k` is the damaged one. The damage is done before the
shard is indexed, or behind its back: to the shard or to its offsets.
"""

import gzip
import io
import json
import pickle
import random
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.sample import Sample, Text

BLOCK = 512
Edit = Callable[[bytes], bytes]
TEXT = {"question": "<image> How many?", "answer": "3", "task": "t", "source": "s"}


class Refused(NamedTuple):
    """How a sample that cannot be used is named."""

    key: str | None
    words: str  # in the reason


@dataclass(frozen=True)
class Case:
    """One damaged shard."""

    content: bytes  # of the shard when it is indexed
    refused: dict[int, Refused] = field(default_factory=dict)  # by number in the shard
    whole: tuple[str, ...] = ("one", "two")  # keys of the samples that are delivered all the same
    after: Edit | None = None  # what is done to the shard afterwards
    offsets: Edit | None = None  # and to its offsets
    told: str = ""  # words of the one fault that indexing tells
    limits: dict[str, int] = field(default_factory=dict)
    others: dict[str, Sample] = field(default_factory=dict)  # by key: delivered samples that are not as usual


def colour(key: str) -> Image.Image:
    red, green, blue, *_ = random.Random(key).randbytes(3)
    return Image.new("RGB", (32, 32), (red, green, blue))


def saved(picture: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()


def picture(key: str) -> bytes:
    return saved(colour(key))


def text(**changes: object) -> bytes:
    return json.dumps(TEXT | changes).encode()


def original(key: str) -> Sample:
    """A sample as it is before any damage."""
    return Sample(key=key, text=Text(**TEXT), images=(picture(key),))


def header(name: str, stated: int, kind: bytes = b"0", **raw: bytes) -> bytes:
    """The header of a member. `raw`: fields as bytes, whatever they say; the checksum is right in any case."""
    info = tarfile.TarInfo("-")
    info.type, info.size = kind, stated
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    places = {"name": (0, 100), "size": (124, 12), "more": (482, 1)}
    for where, content in ({"name": name.encode(errors="surrogateescape")} | raw).items():
        start, length = places[where]
        assert len(content) <= length
        block[start : start + length] = content.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, content: bytes = b"", kind: bytes = b"0", **raw: bytes) -> bytes:
    """A member in whole blocks."""
    return header(name, len(content), kind, **raw) + content + bytes(-len(content) % BLOCK)


def long_name(name: str) -> bytes:
    return member("././@LongLink", name.encode(errors="surrogateescape") + b"\0", b"L")


def fields(**values: str) -> bytes:
    """A pax header."""
    lines = b""
    for name, value in values.items():
        line = f" {name.replace('_', '.')}={value}\n".encode()
        digits = next(n for n in range(1, 9) if len(str(len(line) + n)) == n)
        lines += b"%d%b" % (len(line) + digits, line)
    return member("pax", lines, b"x")


def sample(key: str, content: bytes | None = None, json_content: bytes | None = None) -> bytes:
    image, words = picture(key) if content is None else content, text() if json_content is None else json_content
    return member(f"{key}.0.png", image) + member(f"{key}.json", words)


ONE, K, TWO = sample("one"), sample("k"), sample("two")
END = bytes(2 * BLOCK)
PLAIN = ONE + K + TWO + END
LONG = b"".join(
    long_name(name) + member(name[:99], content)
    for name, content in ((f"{'l' * 150}.0.png", picture("l")), (f"{'l' * 150}.json", text()))
)
JSON = member("k.json", text())  # without a picture: what stands before it may have been one
PICTURE = member("k.0.png", picture("k"))
AT_K, AT_TWO, AFTER_TWO = len(ONE), len(ONE + K), len(ONE + K + TWO)
AT_JSON = AT_K + len(PICTURE)


def before(k: bytes, words: str, key: str | None = "k", **options: object) -> Case:
    """`k` is refused."""
    return Case(ONE + k + TWO + END, {1: Refused(key, words)}, **options)  # type: ignore[arg-type]


def before_text(content: bytes, words: str, **options: object) -> Case:
    return before(sample("k", json_content=content), words, **options)


def before_picture(content: bytes, words: str = "not a whole picture", **options: object) -> Case:
    return before(sample("k", content), words, **options)


def merged(k: bytes, words: str, told: str = "damaged header") -> Case:
    """Nothing says whose the damaged header is: `one`, before it, is refused with it, and `k` behind it."""
    return Case(ONE + k + TWO + END, {0: Refused("one", words)}, ("two",), told=told)


def unnamed(name: str) -> Case:
    """`k` by a name that no key can come from: each of its files is refused by itself."""
    names = (f"{name}.0.png", f"{name}.json")
    content = b"".join(
        (long_name(full) if len(full) > 99 else b"") + member(full[:99], content)
        for full, content in zip(names, (picture("k"), text()), strict=True)
    )
    refused = dict.fromkeys((1, 2), Refused(None, "rename it"))
    return Case(ONE + content + TWO + END, refused, told="rename it")


def harmless(k: bytes, other: Sample | None = None, key: str = "k", **options: object) -> Case:
    """By the rules nothing is wrong: `k` is delivered."""
    others = {} if other is None else {key: other}
    return Case(ONE + k + TWO + END, whole=("one", key, "two"), others=others, **options)  # type: ignore[arg-type]


def after(edit: Edit, words: str, key: str | None = "k") -> Case:
    """`k` is damaged after indexing."""
    return Case(PLAIN, {1: Refused(key, words)}, after=edit)


def flip(at: int, bit: int = 1) -> Edit:
    return lambda content: content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def put(at: int, new: bytes) -> Edit:
    return lambda content: content[:at] + new + content[at + len(new) :]


def cut(end: int, refused: dict[int, Refused]) -> Case:
    """The shard ends early, after indexing."""
    whole = tuple(key for number, key in enumerate(("one", "k", "two")) if number not in refused)
    return Case(PLAIN, refused, whole, after=lambda content: content[:end])


def moved(number: int, by: int, refused: dict[int, Refused]) -> Case:
    """One of the offsets is wrong."""

    def edit(content: bytes) -> bytes:
        values = np.frombuffer(content, "<i8").copy()
        values[number] += by
        return values.tobytes()

    whole = tuple(key for number, key in enumerate(("one", "k", "two")) if number not in refused)
    return Case(PLAIN, refused, whole, offsets=edit)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes(3 * width)) * min(height, 64)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + saved(Image.new("P", (1, 1)), "GIF")[10:]


def bmp(width: int, height: int) -> bytes:
    content = bytearray(saved(Image.new("RGB", (1, 1)), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + saved(colour("k"), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)


class Explosive:
    """What would show that it was unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


BOMB = pickle.dumps(Explosive())
NOISE = random.Random(0).randbytes(len(PLAIN))
DEEP = b"[" * 100_000 + b"]" * 100_000
MANY = b"".join(member(f"k.{n}.png", picture("k")) for n in range(65))
BIG, FOUR_GB = b"\x80" + bytes(6) + b"\x10\0\0\0\0", b"\x80" + bytes(6) + b"\x01\0\0\0\0"
NEGATIVE = b"\xff" * 10 + b"\xfc\0"
GONE, NOTHING = Refused(None, "damaged header"), Refused(None, "holds no file")
WITHIN = {key: Refused(key, "ends within a file") for key in ("one", "k", "two")}
ALL = (0, 1, 2)

FLIPS = {
    "a bit of the first name": after(flip(AT_K), "damaged header", None),
    "a bit of a size": after(flip(AT_K + 130), "damaged header", None),
    "a bit of a checksum": after(flip(AT_K + 150), "damaged header", None),
    "a bit of a type": after(flip(AT_K + 156), "damaged header", None),
    "a bit of the second header": after(flip(AT_JSON + 3), "damaged header"),
    "a bit of the JSON's first bracket": after(flip(AT_JSON + BLOCK), "Invalid JSON"),
    "a bit of a field's name": after(flip(AT_JSON + BLOCK + 3), "mend k.json"),
    "a byte of the JSON that is no UTF-8": after(put(AT_JSON + BLOCK + 20, b"\xff"), "Invalid JSON"),
    "a bit of the picture's signature": after(flip(AT_K + BLOCK + 2), "not a whole picture"),
    "a bit of the picture's size": after(flip(AT_K + BLOCK + 17), "not a whole picture"),
    "a bit of the picture's pixels": after(flip(AT_K + BLOCK + 45, 16), "not a whole picture"),
    "a block of zeros for the first header": after(put(AT_K, bytes(BLOCK)), "damaged header", None),
    "a block of zeros for the second header": after(put(AT_JSON, bytes(BLOCK)), "damaged header"),
    "zeros for the picture": after(put(AT_K + BLOCK, bytes(BLOCK)), "not a whole picture"),
    "zeros for the whole sample": after(put(AT_K, bytes(len(K))), "holds no file", None),
    "noise for the whole sample": after(put(AT_K, NOISE[: len(K)]), "damaged header", None),
    "noise for the whole shard": Case(PLAIN, dict.fromkeys(ALL, GONE), (), after=lambda content: NOISE),
    "a byte that came in": Case(PLAIN, {1: GONE, 2: GONE}, ("one",), after=lambda c: c[:AT_K] + b"!" + c[AT_K:]),
    "a byte that went": Case(
        PLAIN, {1: Refused("k", "damaged"), 2: GONE}, ("one",), after=lambda c: c[:AT_JSON] + c[AT_JSON + 1 :]
    ),
}
CUTS = {
    "in the last text": cut(AFTER_TWO - BLOCK + 20, {2: WITHIN["two"]}),
    "in the last header": cut(AFTER_TWO - 2 * BLOCK + 100, {2: Refused("two", "ends 100 bytes into a header")}),
    "between two files": cut(AFTER_TWO - 2 * BLOCK, {2: Refused("two", "no two.json")}),
    "in a picture": cut(AT_TWO + BLOCK + 9, {2: WITHIN["two"]}),
    "in a first header": cut(AT_TWO + 9, {2: Refused(None, "ends 9 bytes into a header")}),
    "between two samples": cut(AT_TWO, {2: NOTHING}),
    "in the sample before": cut(AT_K + BLOCK + 9, {1: WITHIN["k"], 2: NOTHING}),
    "in the first sample": cut(BLOCK + 9, {0: WITHIN["one"], 1: NOTHING, 2: NOTHING}),
    "at once": cut(0, dict.fromkeys(ALL, NOTHING)),
}
CUT_BEFORE = {
    "in the last text": Case(PLAIN[: AFTER_TWO - BLOCK + 9], {2: WITHIN["two"]}, ("one", "k"), told="unexpected end"),
    "in the last header": Case(
        PLAIN[: AFTER_TWO - 2 * BLOCK + 9], {2: Refused("two", "ends 9 bytes")}, ("one", "k"), told="ends 9 bytes"
    ),
    "between two files": Case(PLAIN[: AFTER_TWO - 2 * BLOCK], {2: Refused("two", "no two.json")}, ("one", "k")),
    "between two samples": Case(PLAIN[:AT_TWO], whole=("one", "k")),  # nothing tells of the third
    "at once": Case(b"", whole=(), told="no sample"),
}
OFFSETS = {
    "by a byte": moved(1, 1, {0: Refused("one", "ends 1 bytes into a header"), 1: GONE}),
    "by a block": moved(1, BLOCK, {0: Refused("one", "ends within a file"), 1: GONE}),
    "by a file": moved(1, len(PICTURE), {0: Refused("one", "a file of another sample"), 1: Refused("k", "0 images")}),
    "by a byte less": moved(2, -1, {2: GONE}),
    "the end before the last file": moved(3, -2 * BLOCK, {2: Refused("two", "no two.json")}),
    "the end far away": moved(3, 2**40, {2: Refused(None, "more than")}),
}
JSONS = {
    "empty": before_text(b"", "Invalid JSON"),
    "white space": before_text(b" \n ", "Invalid JSON"),
    "zeros": before_text(bytes(9), "Invalid JSON"),
    "a list": before_text(b"[1, 2]", "mend k.json"),
    "a number": before_text(b"3", "mend k.json"),
    "null": before_text(b"null", "mend k.json"),
    "a string": before_text(b'"How many?"', "mend k.json"),
    "cut off": before_text(text()[:-9], "Invalid JSON"),
    "two documents": before_text(text() * 2, "Invalid JSON"),
    "nested 100,000 deep": before_text(DEEP, "Invalid JSON"),
    "a field nested 100,000 deep": before_text(text()[:-1] + b', "x": ' + DEEP + b"}", "Invalid JSON"),
    "a number of 5,000 digits": before_text(text()[:-1] + b', "rationale": 1' + b"0" * 5000 + b"}", "mend k.json"),
    "1e999": before_text(text()[:-1] + b', "rationale": 1e999}', "mend k.json"),
    "NaN": before_text(text(answer=float("nan")), "answer"),
    "invalid UTF-8": before_text(text().replace(b"How", b"H\xf6w"), "Invalid JSON"),
    "UTF-16": before_text(text().decode().encode("utf-16"), "Invalid JSON"),
    "a byte order mark": before_text(b"\xef\xbb\xbf" + text(), "Invalid JSON"),
    "half a surrogate pair": before_text(text(question="\ud83e <image>"), "Invalid JSON"),
    "a field too many": before_text(text(more=1), "more: Extra inputs"),
    "a field too many, of a long and evil name": before_text(text(**{"\x1b[2J\n" * 9999: 1}), "Extra inputs"),
    "no question": before_text(json.dumps({k: v for k, v in TEXT.items() if k != "question"}).encode(), "question"),
    "an empty question": before_text(text(question=""), "question: "),
    "null for a question": before_text(text(question=None), "question: "),
    "a number for an answer": before_text(text(answer=3), "answer: "),
    "an answer that is no choice": before_text(text(choices=["2", "4"], answer="C"), "not a letter"),
    "an answer that is no choice, and long": before_text(text(choices=["2"], answer="C" * 10**6), "answer"),
    "no choices to choose from": before_text(text(choices=[], answer="A"), "not a letter"),
    "choices that are a string": before_text(text(choices="AB", answer="A"), "choices: "),
    "more marks than pictures": before_text(text(question="<image> <image>"), "1 images for 2"),
    "the model's own mark": before_text(text(question="<image> <|image_pad|>"), "2 image places for 1"),
    "too long": before_text(text(rationale="x" * 2**20), "more than 1,048,576"),
    "a field twice": harmless(  # the last one counts, as to all who read JSON
        sample("k", json_content=text()[:-1] + b', "answer": "4"}'),
        Sample(key="k", text=Text(**TEXT | {"answer": "4"}), images=(picture("k"),)),
    ),
}
PICTURES = {
    "empty": before_picture(b""),
    "zeros": before_picture(bytes(600)),
    "a text": before_picture(b"no picture"),
    "JSON": before_picture(text()),
    "a pickle": before_picture(BOMB),
    "EPS": before_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "but EPS"),
    "SVG": before_picture(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "but SVG or HTML"),
    "HTML": before_picture(b"<!DOCTYPE html><title>404</title>", "but SVG or HTML"),
    "PDF": before_picture(b"%PDF-1.7\n", "but PDF"),
    "PNG of 3,600,000,000 pixels": before_picture(png(60_000, 60_000), "pixels"),
    "PNG of few bytes, 200,000,000 pixels": before_picture(png(20_000, 10_000), "pixels"),
    "GIF of 4,294,836,225 pixels": before_picture(gif(65_535, 65_535), "pixels"),
    "BMP of 900,000,000 pixels": before_picture(bmp(30_000, 30_000), "pixels"),
    "TIFF of 4,000,000,000 pixels": before_picture(tiff(80_000, 50_000), "pixels"),
    "WEBP of 268,435,456 pixels": before_picture(webp(16_384, 16_384)),
    "a bomb in PNG's text": before_picture(
        png(32, 32, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**26)))), "too large"
    ),
    "PNG cut off": before_picture(saved(Image.effect_noise((64, 64), 9))[:-2000]),
    "JPEG cut off": before_picture(saved(Image.effect_noise((64, 64), 9), "JPEG")[:-1000]),
    "WEBP cut off": before_picture(saved(Image.effect_noise((64, 64), 9), "WEBP")[:-1000]),
    "PNG of no pixels": before_picture(png(0, 0)),
    "one pixel": before_picture(png(1, 1), "a side below one patch"),
    "a strip of one pixel": before_picture(png(3000, 1), "a side below one patch"),
    "a strip far too long": before_picture(png(28 * 201, 28), "aspect ratio"),
    "too many bytes": before_picture(saved(Image.effect_noise((99, 99), 9)), "more than", limits={"image_bytes": 999}),
    "more pixels than allowed": before_picture(png(64, 64), "64 x 64", limits={"pixels": 4000}),
    "65 pictures": before(MANY + JSON, "65 images, more than 64"),
    "no picture 0": before(member("k.1.png", picture("k")) + JSON, "images numbered [1]"),
    "no picture 1": before(PICTURE + member("k.2.png", picture("k")) + JSON, "images numbered [0, 2]"),
    "picture 0 twice": before(PICTURE + member("k.0.jpg", picture("k")) + JSON, "images numbered [0, 0]"),
    "picture 0 and 00": before(PICTURE + member("k.00.png", picture("k")) + JSON, "images numbered [0, 0]"),
    "a number of 5,000 digits": before(long_name(f"k.{'1' * 5000}.png") + PICTURE + JSON, "rename it"),
    "JPEG by the name of PNG": harmless(
        sample("k", saved(colour("k"), "JPEG")),
        Sample(key="k", text=Text(**TEXT), images=(saved(colour("k"), "JPEG"),)),
    ),
}
NAMES = {
    "up and out": unnamed("../../k"),
    "absolute": unnamed("/etc/k"),
    "a bell": unnamed("k\a"),
    "an escape": unnamed("k\x1b[2J"),
    "two lines": unnamed("k\nerror: all is lost"),
    "a tag": unnamed("<script>alert(1)</script>"),
    "quotes": unnamed("k' OR '1"),
    "a backslash": unnamed("..\\k"),
    "right to left": unnamed("k\u202egnp"),
    "no UTF-8": unnamed("k\udcff"),
    "300 characters": unnamed("k" * 300),
    "hidden": unnamed(""),
    "an ending of two lines": before(PICTURE + JSON + member("k.\nerror: all is lost"), "rename it to KEY.NUMBER"),
    "without endings": before(member("k", picture("k")), "no k.json"),
    "behind a zero": before(member("k\0.0.png", picture("k")), "no k.json"),
    "in large letters": before(PICTURE + member("k.JSON", text()), "no k.json"),
    "different case": harmless(sample("ONE"), key="ONE"),
    "the same letters otherwise": Case(
        ONE + sample("größe") + sample(unicodedata.normalize("NFD", "größe")) + TWO + END,
        whole=("one", "größe", unicodedata.normalize("NFD", "größe"), "two"),
    ),
    "in a folder": harmless(sample("a/b/k"), key="a/b/k"),
}
MEMBERS = {
    "a hard link": before(member("k.0.png", kind=b"1") + JSON, "a link or a device"),
    "a symbolic link": before(member("k.0.png", kind=b"2") + JSON, "a link or a device"),
    "a symbolic link behind the text": before(JSON + member("k.0.png", kind=b"2"), "a link or a device"),
    "a character device": before(member("k.0.png", kind=b"3") + JSON, "a link or a device"),
    "a block device": before(member("k.0.png", kind=b"4") + JSON, "a link or a device"),
    "a queue": before(member("k.0.png", kind=b"6") + JSON, "a link or a device"),
    "a volume's rest": before(member("k.0.png", picture("k"), b"M") + JSON, "a link or a device"),
    "an unknown type": before(member("k.0.png", picture("k"), b"Z") + JSON, "a link or a device"),
    "a folder of a picture's name": before(member("k.0.png", kind=b"5") + JSON, "0 images for 1"),
    "a sparse file": before(member("k.0.png", picture("k"), b"S") + JSON, "a sparse file"),
    "a sparse file with more holes": Case(  # where it ends is not known
        ONE + header("k.0.png", 400, b"S", more=b"\1") + bytes(BLOCK) + NOISE[:BLOCK] + JSON + TWO + END,
        {1: Refused("k", "a sparse file")},
        ("one",),
        told="damaged header",
    ),
    "a sparse file in pax": before(fields(GNU_sparse_major="1", GNU_sparse_name="k.0.png") + PICTURE + JSON, "sparse"),
    "a link that has a long name": before(long_name("k." + "9" * 99) + member("k", kind=b"2") + JSON, "a link"),
    "64 GB in a header": Case(
        ONE + header("k.0.png", 0, size=BIG) + JSON + TWO + END, {1: WITHIN["k"]}, ("one",), told="unexpected end"
    ),
    "-1,024 bytes in a header": merged(header("k.0.png", 0, size=NEGATIVE) + JSON, "damaged header"),
    "a size of letters": merged(header("k.0.png", 0, size=b"many") + JSON, "damaged header"),
    "a size of minus": merged(header("k.0.png", 0, size=b"-0000002000") + JSON, "damaged header"),
    "-1,024 bytes in pax": merged(fields(size="-1024") + PICTURE + JSON, "damaged header"),
    "a size of 5,000 digits in pax": merged(fields(size="9" * 5000) + PICTURE + JSON, "damaged header"),
    "pax fields of 4 GB": merged(header("pax", 0, b"x", size=FOUR_GB) + JSON, "damaged header of 4,294,967,296"),
    "pax fields of no length": merged(member("pax", b"0 path=k.0.png\n", b"x") + JSON, "damaged header"),
    "pax fields of 100,000 bytes": merged(fields(comment="x" * 100_000) + JSON, "damaged header of 100,0"),
    "a long name of 4 GB": merged(header("long", 0, b"L", size=FOUR_GB) + JSON, "damaged header of 4,294,967,296"),
    "3,000 long names": merged(long_name("k.0.png") * 3000 + JSON, "too many"),
    "a long name of nothing": Case(
        ONE + K + TWO + long_name("k.1.png"), {2: Refused("two", "into a header")}, ("one", "k"), told="into a header"
    ),
    "a long name": harmless(
        long_name("k" * 150 + ".0.png") + PICTURE + long_name("k" * 150 + ".json") + JSON,
        Sample(key="k" * 150, text=Text(**TEXT), images=(picture("k"),)),
        key="k" * 150,
    ),
    "a name in pax": harmless(
        fields(path="größe.0.png") + PICTURE + fields(path="größe.json") + JSON,
        Sample(key="größe", text=Text(**TEXT), images=(picture("k"),)),
        key="größe",
    ),
    "a folder": harmless(member("k/", kind=b"5") + PICTURE + member("k/", kind=b"5") + JSON),
    "a folder of the oldest form": harmless(member("k/", kind=b"\0") + K),
    "a label": harmless(member("disk 7", kind=b"V") + K),
    "fields for all that follow": harmless(member("pax", b"16 path=k.1.png\n", b"g") + K),
}
SAMPLES = {
    "files of two samples in turn": Case(
        b"".join(
            member(name, content)
            for name, content in [
                ("k.0.png", picture("k")),
                ("l.0.png", picture("l")),
                ("k.json", text()),
                ("l.json", text()),
            ]
        )
        + TWO
        + END,
        {
            0: Refused("k", "no k.json"),
            1: Refused("l", "no l.json"),
            2: Refused("k", "0 images"),
            3: Refused("l", "0 images"),
        },
        ("two",),
        told="comes again after other samples",
    ),
    "two texts": before(K + JSON, "two files named k.json"),
    "two pictures of one name": before(PICTURE + K, "two files named k.0.png"),
    "a picture alone": before(PICTURE, "no k.json"),
    "a text alone that speaks of a picture": before(JSON, "0 images for 1"),
    "a text alone": harmless(  # which is a sample without pictures
        member("k.json", text(question="How many?")),
        Sample(key="k", text=Text(**TEXT | {"question": "How many?"})),
    ),
    "other files": harmless(K + member("k.txt", b"?") + member("k.cls", b"1")),
    "a pickle": harmless(K + member("k.pkl", BOMB) + member("k.pyd", BOMB) + member("k.pth", BOMB)),
    "only a pickle": before(member("k.pkl", BOMB), "no k.json"),
    "a key twice in the shard": Case(
        ONE + K + TWO + K + END, whole=("one", "k", "two", "k"), told="comes again after other samples"
    ),
    "a key of another shard": harmless(sample("good0"), key="good0"),
    "more bytes than allowed": before(
        K + member("k.bin", NOISE * 9), "more than 20,000", None, limits={"sample_bytes": 20_000}
    ),
}
SHARDS = {
    "noise": Case(NOISE, whole=(), told="no sample"),
    "compressed": Case(gzip.compress(PLAIN), whole=(), told="no sample"),
    "of no member": Case(END * 10, whole=(), told="no sample"),
    "a web page": Case(b"<!DOCTYPE html><title>404</title>", whole=(), told="no sample"),
    "of links alone": Case(member("k.json", kind=b"2") + END, {0: Refused("k", "a link or a device")}, ()),
    "two put together": Case(PLAIN + sample("three") + END, whole=("one", "k", "two", "three")),
    "two put together within a sample": Case(ONE + PICTURE + END * 5 + JSON + TWO + END, whole=("one", "k", "two")),
    "noise behind its end": Case(
        PLAIN + NOISE, {2: Refused("two", "damaged header")}, ("one", "k"), told="damaged header"
    ),
    "noise before its start": Case(
        NOISE + PLAIN, {0: Refused(None, "damaged header")}, ("k", "two"), told="damaged header at byte 0"
    ),
    "without an end": harmless(K),
}
KINDS = {"after indexing, " + place: FLIPS[place] for place in FLIPS} | {
    f"{prefix}: {name}": case
    for prefix, cases in {
        "after indexing, the shard ends": CUTS,
        "the shard ends": CUT_BEFORE,
        "after indexing, an offset is moved": OFFSETS,
        "JSON": JSONS,
        "picture": PICTURES,
        "name": NAMES,
        "member": MEMBERS,
        "sample": SAMPLES,
        "shard": SHARDS,
    }.items()
    for name, case in cases.items()
}
