"""The tar format as far as shards need it: the files of one sample, and where in a shard the samples begin.

A sample is a run of files whose names are one key and different endings: `KEY.0.jpg`, `KEY.1.png`, `KEY.json`. Headers
are read here and not by Python's tarfile, which takes 10 times as long and which hostile ones make recurse without
end, run in circles or ask for all memory.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple
from zlib import adler32

from data.sample import DataError

BLOCK = 512
ADLER = 65521  # adler32 has in its low half 1 + the sum of all bytes, to this modulus: ten times as fast as `sum`
ZEROS = bytes(BLOCK)
# Types of members. All others (links, devices, volumes of a larger file) are refused, as they may stand for a picture.
FILE = b"0\x007"  # of the usual form, of the oldest one, contiguous
FOLDER, LONG_NAME, LONG_LINK, SPARSE = b"5LKS"
NEXT = b"LKxX"  # a long name of the next member, where it links to, fields of it (pax)
IGNORED = b"5gDV"  # folders, fields of all that follow (none that samples need), GNU's folders and labels
BARE = b"123456"  # without content, whatever size they state
MOST = 10**15  # bytes of a file: more than there are anywhere
HEADERS = 4  # of one member at most: a long name, where a link leads, fields, the last
HEADER_BYTES = 2**16  # bytes of a long name, or of fields
LONGEST = 255  # characters of a key


class Extent(NamedTuple):
    """Where one sample of a shard is."""

    key: str
    start: int  # bytes from the shard's start, whole blocks
    end: int


class Damage(NamedTuple):
    """What is no sample, and why."""

    start: int
    reason: str


class Member(NamedTuple):
    """One member of a tar, by its headers."""

    name: str
    kind: int
    start: int  # of its content
    size: int
    sparse: bool

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.start + _whole(self.size)


Read = Callable[[int, int], bytes]  # what is between two positions, or as much as there is of it


def files(content: bytes) -> Iterator[tuple[str, memoryview]]:
    """(name, content) of the files in a run of tar members. DataError, without a place, where it is damaged."""
    view = memoryview(content)  # so that no picture is copied
    for member in _members(content):
        end = member.start + member.size
        if end > len(content):
            raise DataError(f"ends within a file of {member.size:,} bytes")
        if member.kind not in FILE or member.sparse:
            what = "a sparse file" if member.sparse else "a link or a device"
            raise DataError(f"{member.name[:100]!a} is {what}; pack what it stands for")
        yield member.name, view[member.start : end]


def first_key(content: bytes) -> str | None:
    """The key of the first file, where it can be read."""
    try:
        return split(next(_members(content)).name)[0]
    except (DataError, StopIteration):
        return None


def _members(content: bytes) -> Iterator[Member]:
    """Those of a run, without what is ignored. DataError where it is damaged."""

    def read(start: int, stop: int) -> bytes:
        return content[start:stop]

    at = 0
    while at < len(content):
        member = _member(read, at)
        if member and member.kind not in IGNORED:
            yield member
        at = member.end if member else at + BLOCK  # zeros, where tars were put together


def _member(read: Read, at: int) -> Member | None:
    """The member whose headers begin here; None at a block of zeros. DataError where they are damaged."""
    name = size = None
    sparse = False
    for number in range(HEADERS):
        header = read(at, at + BLOCK)
        if header == ZEROS and not number:
            return None
        if len(header) < BLOCK:
            raise DataError(f"ends {len(header)} bytes into a header")
        kind, stated, field = header[156], _number(header[124:136]), header[148:156]
        total = _number(field) + sum(field) - 8 * 32  # of the header's bytes; its own count as spaces in the checksum
        if not 0 <= stated < MOST or (total + 1) % ADLER != adler32(header) & 0xFFFF:
            raise DataError("a damaged header")
        at += BLOCK
        if kind not in NEXT:
            name = _name(header) if name is None else name
            size = stated if size is None else size
            if kind in BARE or (kind == 0 and name.endswith(b"/")):  # a folder of the oldest form
                kind, size = kind or FOLDER, 0
            return Member(name.decode(errors="surrogateescape"), kind, at, size, sparse or kind == SPARSE)
        content = read(at, at + stated) if stated <= HEADER_BYTES else b""
        if len(content) < stated:
            raise DataError(f"a damaged header of {stated:,} bytes")
        if kind == LONG_NAME:
            name = content.partition(b"\0")[0]
        elif kind != LONG_LINK:
            fields = _fields(content)
            name = fields.get(b"GNU.sparse.name", fields.get(b"path", name))
            size = _decimal(fields[b"size"]) if b"size" in fields else size
            sparse = any(field.startswith(b"GNU.sparse.") for field in fields)
        at += _whole(stated)
    raise DataError("a damaged header; one file has too many")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:262] == b"ustar" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _fields(content: bytes) -> dict[bytes, bytes]:
    """Of a pax header: lines `LENGTH NAME=VALUE`, where the length is that of the line."""
    fields, at = {}, 0
    while at < len(content) and content[at]:
        digits = content[at : at + 9].partition(b" ")[0]
        end = at + _decimal(digits)
        line = content[at + len(digits) + 1 : end]
        name, equals, value = line[:-1].partition(b"=")
        if not equals or line[-1:] != b"\n":
            raise DataError("a damaged header")
        fields[name], at = value, end
    return fields


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 15:
        raise DataError("a damaged header")
    return int(digits)


def _whole(size: int) -> int:
    """The bytes of whole blocks that hold so many."""
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """A number of a header, -1 where it is none."""
    if field[0] == 0x80:  # for what has too many digits, as GNU does
        return int.from_bytes(field[1:])
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def split(name: str) -> tuple[str, str]:
    """(key, ending) of a file's name. DataError for a name that no key can come from."""
    folder, _, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    # A key goes to logs, file names and pages: nothing in it may act there.
    if not stem or len(key) > LONGEST or not key.isprintable() or set(key) & set("\\<>\"'&") or name.startswith("/"):
        raise DataError(f"a file named {name[:100]!r}; rename it to KEY.ENDING, up to {LONGEST} plain characters")
    if ".." in key.split("/"):
        raise DataError(f"a file named {name[:100]!r}, outside its folder; rename it to KEY.ENDING")
    return key, ending


def scan(shard: BinaryIO) -> Iterator[Extent | Damage]:
    """Samples of a shard in order, and what is damaged, from the headers alone.

    Samples follow each other without gaps. Damage may have been a picture of the sample before it or of the one behind:
    both become one that is refused when it is read, as otherwise one of them could be taken for a sample without it.
    """

    def read(start: int, stop: int) -> bytes:
        shard.seek(start)
        return shard.read(stop - start)

    size = shard.seek(0, 2)
    key: str | None = None
    start = end = at = 0
    damaged = False  # since the last key began
    lost = False  # since the last header that could be read
    while at < size:
        try:
            member = _member(read, at)
        except DataError as error:
            if not lost:
                yield Damage(at, f"{error} at byte {at:,}")
            lost = damaged = True
            at = min(at + BLOCK, size)  # there may be more behind it
            end = max(end, at)
            continue
        if member is None:
            at += BLOCK
            continue
        found = key
        if member.kind not in IGNORED:
            try:
                found = split(member.name)[0]
            except DataError as error:
                yield Damage(at, str(error))
                found = member.name
        if key is not None and found != key and not damaged:
            yield Extent(key, start, at)
            start = at
        if key is None and not damaged:
            start = at
        lost = member.start + member.size > size
        if lost:
            yield Damage(at, f"unexpected end of data, within a file of {member.size:,} bytes at byte {at:,}")
        damaged = lost or (damaged and found == key)
        key, end = found, member.end
        at = member.start if lost else end
    if key is not None:
        yield Extent(key, start, end)
