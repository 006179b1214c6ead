"""Shard sets: folders of tar files of samples with an `index.json`. Writing, reading, checking.

python -m data.shards lint FOLDER      read every sample; exit code 2 and one line at the first bad one
python -m data.shards sheet FOLDER --out PICTURE.png    a contact sheet of the first samples
"""

import argparse
import hashlib
import io
import itertools
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import webdataset
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.sample import DataError, Sample, Text, pictures
from data.sheet import write_sheet

INDEX = "index.json"


class Shard(BaseModel):
    """One tar file of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: str
    samples: Annotated[int, Field(ge=1)]
    bytes: int
    sha256: str


def write(samples: Iterable[Sample], folder: Path, per_shard: int) -> list[Shard]:
    """Write samples in order, `per_shard` to a tar, then the index. The folder must not hold a set yet."""
    if (folder / INDEX).exists():
        raise DataError(f"{folder}: holds a shard set already; delete it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    iterator, shards, keys = iter(samples), [], set()
    for number in itertools.count():
        chunk = list(itertools.islice(iterator, per_shard))
        if not chunk:
            break
        path = folder / f"{number:06d}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as tar:
            for sample in chunk:
                if "." in sample.key or "/" in sample.key:
                    raise DataError(f"{path}: {sample.key}: a key is part of a file name; take out its . and /")
                if sample.key in keys:
                    raise DataError(f"{path}: {sample.key}: the key of an earlier sample; keys must differ in a set")
                keys.add(sample.key)
                tar.write(_members(sample))
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shards.append(Shard(shard=path.name, samples=len(chunk), bytes=len(content), sha256=digest))
    # The index comes last and whole: a set without it was never finished.
    part = folder / (INDEX + ".part")
    part.write_text(json.dumps([s.model_dump() for s in shards], indent=1))
    part.replace(folder / INDEX)
    return shards


def _members(sample: Sample) -> dict[str, str | bytes]:
    images = {}
    for number, content in enumerate(sample.images):
        try:
            ending = (Image.open(io.BytesIO(content)).format or "").lower()
        except OSError as error:
            raise DataError(f"{sample.key}.{number}: not a picture ({error}); leave the sample out") from error
        images[f"{number}.{ending}"] = content
    return {"__key__": sample.key, **images, "json": sample.text.model_dump_json().encode()}


def load_index(folder: Path) -> list[Shard]:
    """The shards of a set; DataError when the folder, its index or a shard is missing."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of shards; check data.train in the config or write the set first")
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder}: no {INDEX}; the set was not finished, delete the folder and write it again")
    try:
        shards = [Shard.model_validate(entry) for entry in json.loads((folder / INDEX).read_text())]
    except (ValueError, ValidationError) as error:
        raise DataError(f"{folder / INDEX}: not an index of shards ({_brief(error)}); write the set again") from error
    for shard in shards:
        path = folder / shard.shard
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: missing or not {shard.bytes} bytes as {INDEX} says; fetch the shard again")
    if not shards:
        raise DataError(f"{folder / INDEX}: names no shard; write the set again")
    return shards


def read_shard(path: Path, skip: int = 0, samples: int | None = None) -> Iterator[Sample]:
    """Samples of one tar in order, without the first `skip`. DataError names shard and key.

    With `samples`, what the index counts, a tar that ends early is an error (tarfile stops at a damaged header).
    """
    members: dict[str, bytes | None] = {}
    key, number = "", -1
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, ending = Path(member.name).name.partition(".")
                if stem != key or number < 0:
                    if number >= skip:
                        yield _sample(path, key, members)
                    key, number, members = stem, number + 1, {}
                file = tar.extractfile(member) if number >= skip else None
                members[ending] = file.read() if file else None
            if number >= skip:
                yield _sample(path, key, members)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: broken tar after {key or 'its start'} ({error}); fetch the shard again") from error
    if samples is not None and number + 1 != samples:
        last = f"ends after {key}" if key else "is empty"
        raise DataError(f"{path}: {last} with {number + 1} samples, not {samples}; fetch the shard again")


def read_set(folder: Path) -> Iterator[Sample]:
    """All samples of a set, shard by shard."""
    for shard in load_index(folder):
        yield from read_shard(folder / shard.shard, samples=shard.samples)


def _sample(path: Path, key: str, members: dict[str, bytes | None]) -> Sample:
    place = f"{path}: {key}"
    if "json" not in members:
        raise DataError(f"{place}: no {key}.json in the shard; every sample needs one, write the shard again")
    images = sorted((int(e.split(".")[0]), c or b"") for e, c in members.items() if e.split(".")[0].isdigit())
    if [n for n, _ in images] != list(range(len(images))):
        raise DataError(f"{place}: images numbered {[n for n, _ in images]}; number them 0, 1, 2, ...")
    try:
        text = Text.model_validate_json(members["json"] or b"")
        return Sample(key=key, text=text, images=tuple(c for _, c in images), origin=str(path))
    except ValidationError as error:
        raise DataError(f"{place}: {_brief(error)}; mend {key}.json") from error


def _brief(error: Exception) -> str:
    """A validation error in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")


def lint(folder: Path) -> int:
    """Read and decode every sample of a set, and compare every shard with its checksum. Returns how many."""
    count = 0
    for shard in load_index(folder):
        for sample in read_shard(folder / shard.shard, samples=shard.samples):
            pictures(sample)
            count += 1
        if hashlib.sha256((folder / shard.shard).read_bytes()).hexdigest() != shard.sha256:
            raise DataError(f"{folder / shard.shard}: not what {INDEX} has the sha256 of; fetch the shard again")
    return count


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m data.shards", description="check or show a shard set")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (("lint", "read and decode every sample"), ("sheet", "draw the first samples")):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("folder", type=Path)
        if name == "sheet":
            command.add_argument("--out", type=Path, required=True)
            command.add_argument("--count", type=int, default=24)
    arguments = parser.parse_args()
    try:
        if arguments.command == "lint":
            print(f"{arguments.folder}: {lint(arguments.folder)} samples, all whole")
        else:
            samples = itertools.islice(read_set(arguments.folder), arguments.count)
            write_sheet(arguments.out, [list(samples)])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
