"""Where shards are read from: this machine's disks, and whatever fsspec reaches (http, https, s3, ...).

    source = Source(SourceConfig())
    span = source.span("s3://bucket/set/000000.tar", 0, 1 << 20)
    header = span.read(0, 512)

A remote range comes in one request, repeated while the failure may pass. No address is ever run as a command.
"""

import os
import re
from functools import lru_cache
from urllib.parse import quote, urlsplit, urlunsplit

from data.cache import Cache, OpenFile
from data.failures import SourceError, public, refuse
from data.remote import Remote, SourceConfig, is_http

Url = str | os.PathLike[str]

OPEN_FILES = 64  # local shards held open; those of living spans come on top
AHEAD = 1 << 18  # bytes; of one long call Linux reads no more than the disk takes at once, and forgets the rest


class Span:
    """Bytes [start, end) of one shard, about to be read piece by piece, in any order."""

    def __init__(self, content: bytes, start: int, end: int) -> None:
        self.start, self.end, self._content = start, end, content

    def read(self, start: int, end: int) -> bytes:
        """What is between two positions of the shard; shorter where the shard ends early."""
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"bytes {start} to {end} of a span from {self.start} to {self.end}")
        return self._bytes(start, end)

    def _bytes(self, start: int, end: int) -> bytes:
        return self._content[start - self.start : end - self.start]


class FileSpan(Span):
    """A span whose bytes are in a file: the shard, or one that has left out its first bytes."""

    def __init__(self, file: OpenFile, start: int, end: int, left_out: int = 0) -> None:
        super().__init__(b"", start, end)
        self._file, self._left_out = file, left_out

    def _bytes(self, start: int, end: int) -> bytes:
        number, size, place = self._file.number, end - start, start - self._left_out
        try:
            content = os.pread(number, size, place)
            while len(content) < size and (more := os.pread(number, size - len(content), place + len(content))):
                content += more
        except OSError as error:
            refuse(self._file.path, error)
        return content


class Source:
    """Files and URLs, read in ranges. It may be shared by threads and taken along into other processes."""

    def __init__(self, config: SourceConfig | None = None) -> None:
        self.config = config or SourceConfig()
        self._remote = Remote(self.config)
        self._opened = lru_cache(OPEN_FILES)(lambda path, *identity: OpenFile(path, os.open(path, os.O_RDONLY)))
        self._version = lru_cache(4096)(self._remote.version)
        try:
            self._cache = Cache(self.config.cache, self.config.cache_bytes) if self.config.cache else None
        except OSError as error:
            text = f"cannot cache here ({error.strerror}); choose another cache folder"
            raise SourceError(f"{self.config.cache}: {text}") from error

    def __reduce__(self) -> tuple[type, tuple]:
        return Source, (self.config,)  # the rest is of this process

    def close(self) -> None:
        """End remote reads for good, so that no thread goes on with them: they end in a SourceError."""
        self._remote.close()

    def read(self, url: Url, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) or the whole; shorter where the file ends early."""
        url = os.fspath(url)
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"{public(url)}: bytes {start} to {end}")
        if is_remote(url):
            return self._remote.read(url, start, end)
        try:
            with open(url, "rb") as file:
                file.seek(start)
                return file.read(-1 if end is None else end - start)
        except OSError as error:
            refuse(url, error)

    def span(self, url: Url, start: int, end: int) -> Span:
        """A range that is fetched now, or asked of the local disk."""
        url = os.fspath(url)
        if start < 0 or end < start:
            raise ValueError(f"{public(url)}: bytes {start} to {end}")
        if not is_remote(url):
            return self._local_span(url, start, end)
        if self._cache is None or start == end:
            return Span(self.read(url, start, end), start, end)
        key = f"{url} {start} {end} {self._version(url)}"
        file = self._cache.get(key, end - start)
        if file is None:
            content = self.read(url, start, end)
            file = self._cache.put(key, content) if len(content) == end - start else None
            if file is None:
                return Span(content, start, end)
        return FileSpan(file, start, end, left_out=start)

    def size(self, url: Url) -> int:
        """Of a file, in bytes."""
        url = os.fspath(url)
        try:
            size = self._remote.about(url)["size"] if is_remote(url) else os.stat(url).st_size
        except OSError as error:
            refuse(url, error)
        if size is None:
            raise SourceError(f"{public(url)}: the server does not tell the size; serve it from one that does")
        return size

    def names(self, url: Url) -> list[str]:
        """The names of the files directly in a folder, sorted."""
        url = os.fspath(url)
        if is_remote(url):
            return self._remote.names(url)
        try:
            return sorted(entry.name for entry in os.scandir(url) if entry.is_file())
        except OSError as error:
            refuse(url, error)

    def _local_span(self, path: str, start: int, end: int) -> FileSpan:
        try:
            status = os.stat(path)  # a file that was written anew is opened anew
            file = self._opened(path, status.st_dev, status.st_ino, status.st_mtime_ns)
            _fetch_ahead(file.number, start, min(end, status.st_size))
        except OSError as error:
            refuse(path, error)
        return FileSpan(file, start, end)


def _fetch_ahead(number: int, start: int, end: int) -> None:
    """Have the disk read a range, unless it is in memory: to advise on such pages takes as long as to copy them."""
    third = (end - start) // 3  # inside, as the first and the last page are those of other ranges, too
    try:
        there = all(os.preadv(number, [bytearray(1)], start + n * third, os.RWF_NOWAIT) for n in (1, 2))
    except OSError:  # not there, or a file system that cannot tell
        there = False
    if not there:
        for place in range(start, end, AHEAD):
            os.posix_fadvise(number, place, min(AHEAD, end - place), os.POSIX_FADV_WILLNEED)


def is_remote(url: str) -> bool:
    """Whether this is an address, and no path."""
    return bool(re.match(r"[A-Za-z][\w+.-]+:(//|:)|pipe:", url))


def join(folder: Url, name: str) -> str:
    """The path or URL of a file in a folder."""
    folder = os.fspath(folder)
    if not is_remote(folder):
        return os.path.join(folder, name)
    if not is_http(folder):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)  # a signature stays at the end
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
