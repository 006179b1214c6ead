"""A sample as the tar members that a shard holds, checked before it gets there."""

import tarfile
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from data import tar
from data.pictures import LIMITS, header
from data.sample import DataError, Sample


class Item(Protocol):
    """What a sample is made of; light, and picklable where there are workers."""

    @property
    def key(self) -> str:
        """The sample's."""


ItemT = TypeVar("ItemT", bound=Item)


class Packed(NamedTuple):
    """The tar members of one sample, or why it cannot be written."""

    key: str
    content: bytes = b""
    fault: str = ""


def pack(prepare: Callable[[ItemT], Sample], item: ItemT) -> Packed:
    """What an item becomes in a shard."""
    try:
        sample = prepare(item)
        if sample.key != item.key:
            raise ValueError(f"the item {item.key!r} was prepared as the sample {sample.key!r}; keys must stay")
        return Packed(item.key, members(sample))
    except DataError as error:
        return Packed(item.key, fault=str(error))


def members(sample: Sample) -> bytes:
    """`KEY.0.png`, ..., `KEY.json`. The same sample makes the same bytes. DataError when they could not be read."""
    if tar.split(f"{sample.key}.json") != (sample.key, "json") or "/" in sample.key:
        raise DataError(f"{sample.key[:100]!r}: a key is part of a file name; take out its . and /")
    text = sample.text.model_dump_json().encode()
    sizes = {
        "images": (len(sample.images), LIMITS.images),
        "bytes of text": (len(text), LIMITS.text_bytes),
        "bytes": (len(text) + sum(map(len, sample.images)), LIMITS.sample_bytes * 9 // 10),  # tar takes some as well
    }
    for what, (there, most) in sizes.items():
        if there > most:
            raise DataError(f"{sample.key}: {there:,} {what}, more than {most:,}; shrink it or leave it out")
    parts = []
    for number, content in enumerate(sample.images):
        ending = (header(content, f"{sample.key}.{number}").format or "").lower()
        parts.append(_member(f"{sample.key}.{number}.{ending}", content))
    return b"".join([*parts, _member(f"{sample.key}.json", text)])


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # no time, no user
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tar.BLOCK)
