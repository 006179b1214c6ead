"""Everything that is wrong with a shard set, sample by sample: nothing stops it but a source that cannot be reached."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from data import tar
from data.pictures import LIMITS, decode
from data.sample import DataError, Sample
from data.shards.foreign import Fault, Found, look, opened
from data.shards.index import INDEX, Shard, load_index, read_offsets
from data.shards.keys import Keys
from data.shards.read import parse
from data.shards.workers import spread
from data.shards.write import TWICE
from data.source import Source, SourceError, join


class Budget(NamedTuple):
    """The most tokens a sample may have under a model's processor."""

    model: str
    tokens: int
    max_pixels: int | None = None


class Checked(NamedTuple):
    """One shard, gone through."""

    shard: str
    keys: list[str]  # of its samples, also those with faults
    faults: list[Fault]


def lint(folder: str, source: Source, workers: int = 0, budget: Budget | None = None) -> Iterator[Checked]:
    """Check every shard that the index names or the folder holds, in order of their names."""
    if budget is not None:
        from data.shards.tokens import processor

        processor(budget.model, budget.max_pixels)  # or each sample would say that there is none
    there = {name for name in source.names(folder) if name.endswith(".tar")}
    entries: dict[str, Shard] = {}
    try:
        entries = {shard.shard: shard for shard in load_index(folder, source)}
    except SourceError:
        raise
    except DataError as error:
        yield Checked(INDEX, [], [Fault(INDEX, "", _reason(error, join(folder, INDEX), folder))])
    names = sorted(there | entries.keys())
    work = partial(_check, folder, source, entries, there, budget)
    keys = Keys()
    for one in spread(work, names, workers):
        twice = [Fault(one.shard, key, TWICE) for key in one.keys if not keys.add(key)]
        yield one._replace(faults=[*one.faults, *twice])


def _reason(error: DataError, *places: str) -> str:
    """Its text, without the place that is named anyway."""
    text = str(error)
    for place in places:
        text = text.removeprefix(f"{place}: ")
    return text


def _check(
    folder: str, source: Source, entries: dict[str, Shard], there: set[str], budget: Budget | None, name: str
) -> Checked:
    entry, url = entries.get(name), join(folder, name)
    if name not in there:
        return Checked(name, [], [Fault(name, "", "missing; fetch the shard again")])
    with opened(url, source) as file:
        found = look(file)
        faults = [Fault(name, "", one.reason) for one in found.damage]
        if entry is not None:
            faults += [Fault(name, "", reason) for reason in _against_index(folder, source, entry, found)]
        elif entries:
            faults.append(Fault(name, "", f"not in {INDEX}; delete it, or index the set again"))
        if not found.samples:
            faults.append(Fault(name, "", "no sample; delete it, and index the set again"))
        named = [at for at in found.samples if _is_key(at.key)]  # the others were told of as damage
        for at in named:
            file.seek(at.start)
            content = file.read(min(at.end - at.start, LIMITS.sample_bytes + 1))
            faults += [Fault(name, at.key, reason) for reason in _against_schema(content, url, at, budget)]
    return Checked(name, [at.key for at in named], faults)


def _is_key(key: str) -> bool:
    try:
        return tar.split(f"{key}.json")[0] == key
    except DataError:
        return False


def _against_index(folder: str, source: Source, entry: Shard, found: Found) -> Iterator[str]:
    """What differs from the index."""
    if found.bytes != entry.bytes:
        yield f"{found.bytes:,} bytes, not {entry.bytes:,} as {INDEX} says; fetch the shard again"
    elif found.sha256 != entry.sha256:
        yield f"not what {INDEX} has the sha256 of; fetch the shard again"
    if len(found.samples) != entry.samples:
        yield f"{len(found.samples):,} samples, not {entry.samples:,} as {INDEX} says; fetch the shard again"
    try:
        offsets = read_offsets(folder, entry, source)
    except SourceError:
        raise
    except DataError as error:
        yield str(error).removeprefix(join(folder, ""))
        return
    if found.samples and not np.array_equal(offsets, found.offsets()):
        yield "its samples are not where its offsets say; index the set again"


def _against_schema(content: bytes, url: str, at: tar.Extent, budget: Budget | None) -> Iterator[str]:
    """What is wrong with one sample."""
    if at.end - at.start > LIMITS.sample_bytes:
        yield f"{at.end - at.start:,} bytes, more than {LIMITS.sample_bytes:,}; leave it out"
        return
    try:
        sample = parse(content, url)
    except DataError as error:
        yield _reason(error, url, at.key, "unknown key")
        return
    whole = True
    for number, image in enumerate(sample.images):
        try:
            decode(image, f"picture {number}")
        except DataError as error:
            whole = False
            yield str(error)
    if whole and budget is not None:
        yield from _against_budget(sample, budget)


def _against_budget(sample: Sample, budget: Budget) -> Iterator[str]:
    from data.shards.tokens import tokens

    try:
        count = sum(tokens(sample, budget.model, budget.max_pixels))
    except DataError as error:
        yield _reason(error, sample.origin)
        return
    if count > budget.tokens:
        yield f"{count:,} tokens of prompt and answer, more than {budget.tokens:,}; shorten it or leave it out"
