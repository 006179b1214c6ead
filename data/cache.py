"""A folder that keeps ranges of remote shards, shared by all processes of a machine.

One file per range, the least recently used dropped first. The file `total` holds how many bytes there are and is the
lock to change them under, so that the folder is listed only when it is full. Whoever holds a range has its file open,
so that dropping it harms nobody.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STALE = 3600.0  # seconds after which a part belongs to a process that is gone
RANGE = re.compile(r"[0-9a-f]{64}\.range")
PART = re.compile(r"[0-9a-f]{64}\.([0-9]+)\.[0-9a-f]{32}\.part")  # says how long it is going to be

logger = logging.getLogger(__name__)


class OpenFile:
    """A file that is open for as long as somebody holds it."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass
class Total:
    """Bytes in the folder, with the ranges that are being written."""

    bytes: int


class Cache:
    """Ranges by key. Every range it takes is whole; what it cannot take is simply not there next time."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._usable = True
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as total:
            total.bytes = self._shrink(limit)  # also mends what killed processes left

    def get(self, key: str, size: int) -> OpenFile | None:
        """The range of a key. One of another size is damaged and counts as missing; `put` writes over it."""
        path = self._path(key)
        try:
            file = OpenFile(path, os.open(path, os.O_RDONLY))
            if os.fstat(file.number).st_size != size:
                return None
        except OSError:
            return None
        with contextlib.suppress(OSError):  # of another user, say
            os.utime(file.number)  # times of access are often not kept
        return file

    def put(self, key: str, content: bytes) -> OpenFile | None:
        """Keep a range. None if there is no room, ever or now."""
        size, path = len(content), self._path(key)
        if not self._usable or size > self.limit:
            return None
        part = f"{path.removesuffix('.range')}.{size}.{uuid.uuid4().hex}.part"
        try:
            with self._locked() as total:
                if total.bytes + size > self.limit:
                    total.bytes = self._shrink(min(self.limit - size, self.limit * 9 // 10))
                if total.bytes + size > self.limit:  # what others are writing fills it
                    return None
                file = OpenFile(path, os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
                total.bytes += size
            view = memoryview(content)
            while view:
                view = view[os.write(file.number, view) :]
            with self._locked() as total:
                with contextlib.suppress(FileNotFoundError):
                    total.bytes -= os.stat(path).st_size  # another process was first, or it is damaged
                os.replace(part, path)
        except OSError as error:
            self._usable = False
            logger.warning(f"{self.folder}: no longer caching ({error.strerror}); free space or choose another folder")
            with contextlib.suppress(OSError), self._locked() as total:
                os.unlink(part)
                total.bytes -= size
            return None
        return file

    def _path(self, key: str) -> str:
        return f"{self.folder}/{hashlib.sha256(key.encode()).hexdigest()}.range"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Total]:
        """The total, for this process alone; written back unless an error gets in between."""
        lock = os.open(self.folder / "total", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = os.pread(lock, 20, 0)
            total = Total(int(before) if before.strip().isdigit() else self.limit)  # so that it is counted anew
            yield total
            if (after := b"%20d" % total.bytes) != before:
                os.pwrite(lock, after, 0)
        finally:
            os.close(lock)

    def _shrink(self, limit: int) -> int:
        """Drop stale parts, and the ranges used longest ago until no more bytes than the limit are left. How many."""
        ranges, total = [], 0
        for entry in os.scandir(self.folder):
            part = PART.fullmatch(entry.name)
            if not part and not RANGE.fullmatch(entry.name):
                continue
            status = entry.stat()
            if not part:
                ranges.append((status.st_mtime_ns, status.st_size, entry.path))
            elif time.time() - status.st_mtime > STALE:
                os.unlink(entry.path)
                continue
            total += int(part[1]) if part else status.st_size
        for _, size, path in sorted(ranges):
            if total <= limit:
                break
            os.unlink(path)
            total -= size
        return total
