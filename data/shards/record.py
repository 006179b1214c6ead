"""What an unfinished write remembers, so that it can be killed at any time and go on.

    FOLDER/index.part        its options, then a line per finished shard: its entry in the index, and of which items
    FOLDER/left_out.jsonl    the items that could not be written: number, key, reason

A shard counts once its line is there; whatever else lies in the folder is written again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from data.sample import DataError
from data.shards.index import OFFSETS, Shard
from data.shards.part import beside, replace, settle

RECORD = "index.part"
LEFT_OUT = "left_out.jsonl"


class Finished(Shard):
    """A whole shard, with the items it took."""

    items: int  # with those left out
    keys: str  # hash of all their keys

    def entry(self) -> Shard:
        """What the index says of it."""
        return Shard(**{name: getattr(self, name) for name in Shard.model_fields})


class KeysHash:
    """A hash of keys in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, key: str) -> None:
        """One more."""
        self._hash.update(json.dumps(key).encode() + b"\n")

    def value(self) -> str:
        """Of all so far."""
        return self._hash.hexdigest()


class Record:
    """The record of a folder, which no other write may use meanwhile."""

    def __init__(self, folder: Path, options: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists() and any(folder.glob("*.tar")):
            raise DataError(f"{folder}: holds tar files of another origin; name an empty folder")
        self.folder, self._lock = folder, os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.finished = self._restore(json.dumps(options))
            self.items = sum(shard.items for shard in self.finished)
            self.left_out = self._restore_left_out()  # numbers of items
        except BlockingIOError as error:
            os.close(self._lock)
            raise DataError(f"{folder}: another process writes there; wait for it") from error
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _restore(self, options: str) -> list[Finished]:
        """The shards that are there, as far as they follow each other."""
        path, finished = self.folder / RECORD, []
        first, *lines = path.read_text().split("\n")[:-1] if path.exists() else [options]  # the last one may be half
        if first != options:
            raise DataError(f"{self.folder}: begun with {first}, not {options}; go on with these, or delete the folder")
        for line in lines:
            try:
                shard = Finished.model_validate_json(line)
            except ValidationError as error:
                raise DataError(f"{path}: damaged; delete {self.folder} and write it again") from error
            tar = self.folder / shard.shard
            if not tar.is_file() or tar.stat().st_size != shard.bytes or not beside(tar, OFFSETS).is_file():
                break
            finished.append(shard)
        replace(path, "".join(f"{line}\n" for line in [first, *lines[: len(finished)]]).encode())
        return finished

    def _restore_left_out(self) -> set[int]:
        """Those of finished shards."""
        path = self.folder / LEFT_OUT
        if not path.exists():
            return set()
        lines = [line for line in path.read_text().split("\n")[:-1] if json.loads(line)["item"] < self.items]
        replace(path, "".join(f"{line}\n" for line in lines).encode())
        return {json.loads(line)["item"] for line in lines}

    def skip(self, keys: Iterator[str]) -> Iterator[str]:
        """Take the keys of the items that finished shards took; yields those that are in them."""
        end = 0
        for shard in self.finished:
            start, end, hashed = end, end + shard.items, KeysHash()
            for number, key in zip(range(start, end), keys, strict=False):
                hashed.add(key)
                if number not in self.left_out:
                    yield key
            if hashed.value() != shard.keys:
                raise DataError(f"{self.folder}: {shard.shard} is of other items; delete the folder or name another")

    def leave_out(self, item: int, key: str, reason: str) -> None:
        """Note an item that cannot be written."""
        self.left_out.add(item)
        with (self.folder / LEFT_OUT).open("a") as file:
            print(json.dumps({"item": item, "key": key, "reason": reason}), file=file)

    def add(self, shard: Finished) -> None:
        """A shard is in its place."""
        if self.left_out:
            with (self.folder / LEFT_OUT).open("ab") as file:
                settle(file)
        with (self.folder / RECORD).open("ab") as file:
            file.write(shard.model_dump_json().encode() + b"\n")
            settle(file)
        self.finished.append(shard)
