"""The tar reader: as Python's tarfile reads whole tars, and never more than a refusal for anything else."""

import io
import itertools
import tarfile
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tar
from data.sample import DataError
from tests.data.damage import BLOCK, END, FOUR_GB, JSON, ONE, PICTURE, TWO, fields, header, long_name, member, sample

Members = list[tuple[str, bytes, str]]  # name, content, what it is


def archive(members: Members, form: int, shared: str = "") -> bytes:
    """By Python's tarfile."""
    out = io.BytesIO()
    fields_of_all = {"comment": shared} if shared and form == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=fields_of_all) as file:
        for name, content, what in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if what == "folder" else tarfile.REGTYPE
            info.size = len(content) if what == "file" else 0
            info.mtime, info.uid = (1.5, 2**40) if form != tarfile.USTAR_FORMAT else (1, 7)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
names = st.text(characters, min_size=1, max_size=20) | st.text("ab/.ö", min_size=1, max_size=300)
named = st.tuples(names.filter(lambda name: not name.endswith("/")), st.binary(max_size=1100))
forms = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@given(
    st.lists(st.tuples(named, st.sampled_from(["file", "file", "folder"])), min_size=1, max_size=5),
    forms,
    st.text("é=\n", max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_whole_tars_are_read_as_by_tarfile(drawn: list, form: int, shared: str) -> None:
    try:
        content = archive([(*one, what) for one, what in drawn], form, shared)
    except ValueError:  # a name that this form cannot hold
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        wanted = [(one.name, file.extractfile(one).read()) for one in file if one.isfile()]  # type: ignore[union-attr]
    assert [(name, bytes(read)) for name, read in tar.files(content)] == wanted


@given(st.binary(max_size=3 * BLOCK))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused(content: bytes) -> None:
    assert_read_or_refused(content)


NUMBERS = st.binary(max_size=12) | st.integers(0, 8**11 - 1).map(lambda n: b"%o" % n)
HEADERS = st.builds(
    lambda name, kind, size: header(name, 0, bytes([kind]), size=size),
    st.text("k.0/", max_size=9),
    st.sampled_from(b"\x0001234567LKxXgSDVMNA") | st.integers(0, 255),
    NUMBERS | st.integers(0, 3 * BLOCK).map(lambda n: b"%o" % n),
)
LINES = st.sampled_from([b"9 path=k\n", b"11 size=99\n", b"11 size=-9\n", b"18 GNU.sparse.a=1\n"])
CONTENTS = st.binary(max_size=30) | st.lists(LINES).map(b"".join)


@given(st.lists(HEADERS | CONTENTS.map(lambda content: content.ljust(BLOCK, b"\0")[:BLOCK]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_headers_that_say_anything_are_read_or_refused(blocks: list[bytes]) -> None:
    """All of the right checksum."""
    assert_read_or_refused(b"".join(blocks))


def assert_read_or_refused(content: bytes) -> None:
    """DataError at most, and samples without gaps."""
    try:
        total = sum(len(file) for _, file in tar.files(content))
        assert total <= len(content)
    except DataError as error:
        assert "\n" not in str(error)
    tar.first_key(content)
    found = list(tar.scan(io.BytesIO(content)))
    extents = [one for one in found if isinstance(one, tar.Extent)]
    assert all(0 <= one.start < one.end < 2**62 for one in extents)
    assert all(one.end == two.start for one, two in itertools.pairwise(extents))


def spans(content: bytes) -> list[tuple[str, int, int]]:
    return [tuple(one) for one in tar.scan(io.BytesIO(content)) if isinstance(one, tar.Extent)]


def damage(content: bytes) -> list[str]:
    return [one.reason for one in tar.scan(io.BytesIO(content)) if isinstance(one, tar.Damage)]


def test_samples_follow_each_other() -> None:
    content = ONE + JSON + TWO + END
    assert spans(content) == [("one", 0, 2048), ("k", 2048, 3072), ("two", 3072, 5120)] and damage(content) == []
    assert [name for name, _ in tar.files(content[2048:5120])] == ["k.json", "two.0.png", "two.json"]


def test_the_last_picture_is_not_lost_silently() -> None:
    """Its header is damaged, behind a text that alone would be a whole sample."""
    broken = bytes([PICTURE[0] ^ 1]) + PICTURE[1:]
    for content in (ONE + JSON + broken + END, ONE + JSON + bytes(BLOCK) + PICTURE[BLOCK:] + END):
        *_, (key, start, end) = spans(content)
        assert key == "k" and len(damage(content)) == 1
        with pytest.raises(DataError, match="damaged header"):
            list(tar.files(content[start:end]))


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"M", b"Z"])
def test_a_link_belongs_to_the_sample_that_it_names(kind: bytes) -> None:
    content = ONE + member("k.0.png", kind=kind) + JSON + TWO + END
    assert [key for key, *_ in spans(content)] == ["one", "k", "two"]
    (_, start, end) = spans(content)[1]
    assert tar.first_key(content[start:end]) == "k"
    with pytest.raises(DataError, match=r"^'k.0.png' is a link or a device; pack what it stands for$"):
        list(tar.files(content[start:end]))


def test_samples_behind_a_wrong_size_are_found_again() -> None:
    content = ONE + header("k.0.png", 0, size=FOUR_GB) + JSON + TWO + sample("three") + END
    assert [key for key, *_ in spans(content)] == ["one", "two", "three"]  # what may be the damaged one's goes with it
    assert damage(content) == ["unexpected end of data, within a file of 4,294,967,296 bytes at byte 2,048"]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "long names without end": lambda: long_name("k.0.png") * 4000,
    "long names of nothing": lambda: member("long", b"", b"L") * 8000,
    "fields without end": lambda: fields(path="k.0.png") * 4000,
    "fields within fields": lambda: header("pax", 60_000, b"x") * 8000,
    "folders": lambda: member("k/", kind=b"5") * 8000,
    "links": lambda: member("k.0.png", kind=b"2") * 8000,
    "files of giant size": lambda: header("k.0.png", 0, size=FOUR_GB) * 8000,
    "fields of giant size": lambda: header("pax", 0, b"x", size=FOUR_GB) * 8000,
    "sizes that lead back": lambda: header("k.0.png", 0, size=b"\xff" * 10 + b"\xfe\0") * 8000,
    "headers that are damaged": lambda: (b"k".ljust(148, b"\0") + b"7777").ljust(BLOCK, b"\0") * 8000,
    "lines of fields": lambda: member("pax", b"6 a=b\n" * 10_000, b"x") * 6,
    "a sparse file's map without end": lambda: header("k.0.png", 0, b"S", more=b"\1") * 8000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tars_cost_little(kind: str) -> None:
    """Of 360 KB to 8 MB: in time that grows with them alone, and in no more memory than they have."""
    content = HOSTILE[kind]()
    begun = time.process_time()
    tracemalloc.start()
    try:
        for _ in tar.scan(io.BytesIO(content)):
            pass
        try:
            for _ in tar.files(content):
                pass
        except DataError:
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * len(content) + 2**22
    assert time.process_time() - begun < 10
