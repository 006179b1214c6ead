"""Samples from the bytes of a shard."""

import itertools
from collections.abc import Iterator
from os import PathLike, fspath

from pydantic import ValidationError

from data import tar
from data.pictures import LIMITS, Limits
from data.sample import DataError, Sample, Text
from data.shards.foreign import shown
from data.shards.index import Shard, brief, load_index, read_offsets
from data.source import Source, join

AT_ONCE = 64  # samples fetched together
LONGEST = 255  # characters of a name's ending
TOLD = 300  # characters of what is wrong with a text


def parse(content: bytes, origin: str, limits: Limits = LIMITS) -> Sample:
    """The sample in a run of tar members of the shard `origin`. DataError names the key and what is wrong."""
    key, members = None, {}
    try:
        for name, file in tar.files(content):
            found, ending = tar.split(name)
            if len(ending) > LONGEST or not ending.isprintable():
                raise DataError(f"a file named {name[:100]!r}; rename it to KEY.NUMBER.png, .jpg, ... or KEY.json")
            if found != (key or found):
                raise DataError(f"a file of another sample ({name}); index the set again")
            if ending in members:
                raise DataError(f"two files named {name}; keep one")
            key, members[ending] = found, file
        if key is None:
            raise DataError("holds no file; index the set again")
        return _sample(key, members, origin, limits)
    except DataError as error:
        place = f"{origin}: {key or tar.first_key(content) or 'unknown key'}"
        raise DataError(f"{place}: {error}") from error


def _sample(key: str, members: dict[str, memoryview], origin: str, limits: Limits) -> Sample:
    if "json" not in members:
        raise DataError(f"no {key}.json in the shard; every sample needs one, write the shard again")
    if len(members["json"]) > limits.text_bytes:
        raise DataError(f"{key}.json has {len(members['json']):,} bytes, more than {limits.text_bytes:,}; shorten it")
    numbered = [(ending.partition(".")[0], content) for ending, content in members.items() if ending != "json"]
    images = sorted((int(n), content) for n, content in numbered if n.isascii() and n.isdigit())
    if [n for n, _ in images] != list(range(len(images))):
        raise DataError(f"images numbered {[n for n, _ in images][:9]}; number them 0, 1, 2, ...")
    if len(images) > limits.images:
        raise DataError(f"{len(images)} images, more than {limits.images}; leave some out or raise data.limits.images")
    try:
        text = Text.model_validate_json(bytes(members["json"]))
        return Sample(key=key, text=text, images=tuple(bytes(content) for _, content in images), origin=origin)
    except ValidationError as error:
        raise DataError(f"{_short(brief(error))}; mend {key}.json") from error


def _short(reason: str) -> str:
    """Its beginning and end, without what a terminal would act on: it quotes what the text holds."""
    reason = " ".join(reason.split())
    return shown(reason if len(reason) <= TOLD else f"{reason[: TOLD // 2]} ... {reason[-TOLD // 2 :]}")


def read_set(folder: str | PathLike[str], source: Source | None = None) -> Iterator[Sample]:
    """All samples of a set, shard by shard. DataError at the first that cannot be read."""
    source = source or Source()
    for shard in load_index(fspath(folder), source):
        path = join(folder, shard.shard)
        for content in read_contents(fspath(folder), shard, source):
            yield parse(content, path)


def read_contents(folder: str, shard: Shard, source: Source) -> Iterator[bytes]:
    """The samples of one shard in order, not looked into: a run of tar members each."""
    path, offsets = join(folder, shard.shard), read_offsets(folder, shard, source).tolist()
    for first in range(0, shard.samples, AT_ONCE):
        bounds = offsets[first : first + AT_ONCE + 1]
        span = source.span(path, bounds[0], bounds[-1])
        for start, end in itertools.pairwise(bounds):
            yield span.read(start, end)
