"""Files that appear under their names only when they are whole and on the disk."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from data.shards.index import OFFSET, OFFSETS, Shard
from data.tar import BLOCK

PART = ".part"  # after the name of a file that is not whole yet
END = bytes(2 * BLOCK)  # of a tar


class Part:
    """A shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.offsets, self._hash = path, [0], hashlib.sha256()
        self._part = beside(path, PART)
        self._file = self._part.open("wb")

    @property
    def samples(self) -> int:
        """How many it has."""
        return len(self.offsets) - 1

    def bytes_with(self, content: bytes) -> int:
        """How many it would have with one sample more."""
        return self.offsets[-1] + len(content) + len(END)

    def add(self, content: bytes) -> None:
        """The members of one sample."""
        self._write(content)
        self.offsets.append(self.offsets[-1] + len(content))

    def finish(self) -> Shard:
        """Put it in its place, after its offsets."""
        self._write(END)
        settle(self._file)
        self._file.close()
        replace(beside(self.path, OFFSETS), np.array(self.offsets, OFFSET).tobytes())
        self._part.replace(self.path)
        _settle_folder(self.path.parent)
        size = self.offsets[-1] + len(END)
        return Shard(shard=self.path.name, samples=self.samples, bytes=size, sha256=self._hash.hexdigest())

    def drop(self) -> None:
        """Delete what there is of it, unless it is in its place."""
        self._part.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk, once more
            self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is the old or the new one, whole, whatever happens."""
    part = beside(path, PART)
    try:
        with part.open("wb") as file:
            file.write(content)
            settle(file)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _settle_folder(path.parent)


def beside(path: Path, ending: str) -> Path:
    """The file of this name and ending."""
    return path.with_name(path.name + ending)


def settle(file: IO[bytes]) -> None:
    """Wait until the disk has it."""
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    """The same for the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
