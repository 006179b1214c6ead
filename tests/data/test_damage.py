"""Whatever is wrong with a sample, it alone is left out, named with a reason, and training goes on."""

import copy
import itertools
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import puzzles, shards
from data.bad import BadConfig, LeftOut
from data.pack import Packs
from data.pictures import LIMITS, Limits, pictures
from data.pipeline import packs_of
from data.prepare import Prepare
from data.processor import Encoded, Processor
from data.reader import Reader
from data.sample import DataError, Sample, Text
from data.shards.foreign import index
from data.source import Source
from data.stream import DataConfig, Stream
from model.batch import cost
from model.objective import RECIPES
from tests.data import damage
from tests.data.damage import BLOCK, KINDS, Case, original

SOURCE = Source()
GOOD = tuple(f"good{n}" for n in range(4))
EPOCHS = 2
MOST = 300 * 2**20  # bytes of memory on top of what there was: a picture may have 100,000,000 pixels
price = partial(cost, recipe=RECIPES["amvl"], slots=3)
LAX = BadConfig(share=1, in_a_row=10**6)
Delivered = Counter[tuple[str, str, int]]  # shard, key, epoch


def write(folder: Path, cases: dict[str, Case]) -> dict[str, list[str]]:
    """A set of damaged shards by their names, and a good one. Returns what indexing told of each."""
    for name, case in cases.items():
        (folder / name).write_bytes(case.content)
    (folder / "good.tar").write_bytes(b"".join(map(damage.sample, GOOD)) + damage.END)
    told: dict[str, list[str]] = {}
    for fault in index(str(folder), SOURCE, folder):
        told.setdefault(fault.shard, []).append(str(fault))
    for name, case in cases.items():
        for path, edit in ((folder / name, case.after), (folder / f"{name}.idx", case.offsets)):
            if edit:
                path.write_bytes(edit(path.read_bytes()))
    return told


def packs_from(folder: Path, processor: Processor, limits: Limits = LIMITS, workers: int = 0) -> Packs:
    config = DataConfig(train=folder, lanes=1, piece=2, shuffle=4, workers=workers, window=4, bad=LAX, limits=limits)
    limited = copy.copy(processor)
    limited.limits = limits
    return packs_of(config, limited.encode, price, 2000, seed=0, quarantine=folder / "bad")


def draw(packs: Packs, processor: Processor, cases: dict[str, Case]) -> Delivered:
    """The samples of the first epochs, each of which is what it was before any damage."""
    (lane,) = packs.loader.stream.lanes[0]
    wanted: dict[Sample, Encoded] = {}
    found = Delivered()
    while min((turn for *_, turn in packs._waiting), default=0) < EPOCHS * lane.size:
        for item in next(packs):
            shard, key = Path(item.sample.origin).name, item.sample.key
            sample = (cases[shard].others if shard in cases else {}).get(key) or original(key)
            if sample not in wanted:
                wanted[sample] = processor.encode(sample)
            for part in ("prompt", "answer", "pixels", "grids"):
                assert torch.equal(getattr(item, part), getattr(wanted[sample], part)), (shard, key)
            assert item.sample.text == sample.text
            found[shard, key, item.sample.epoch] += 1
    packs.loader.close()
    return found


def expected(cases: dict[str, Case]) -> Delivered:
    keys = [("good.tar", key) for key in GOOD] + [(name, key) for name, case in cases.items() for key in case.whole]
    return Delivered((*place, epoch) for place in keys for epoch in range(EPOCHS))


def records(folder: Path) -> list[dict[str, Any]]:
    """Of the quarantine file, by shard, sample and epoch."""
    path = folder / "bad" / "rank_0.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(found, key=lambda one: (one["shard"], one["sample"], one["epoch"]))


def check(folder: Path, cases: dict[str, Case], told: dict[str, list[str]], delivered: Delivered) -> None:
    """Every sample was delivered once an epoch, or named."""
    assert Delivered({place: count for place, count in delivered.items() if place[2] < EPOCHS}) == expected(cases)
    named = [one for one in records(folder) if one["epoch"] < EPOCHS]
    refused = [
        (str(folder / name), number, epoch, one)
        for name, case in sorted(cases.items())
        for number, one in sorted(case.refused.items())
        for epoch in range(EPOCHS)
    ]
    assert [(one["shard"], one["sample"], one["epoch"]) for one in named] == [one[:3] for one in refused]
    for one, (shard, number, _, (key, words)) in zip(named, refused, strict=True):
        assert (one["kind"], one["key"]) == ("bad", key), one
        reason = one["reason"]
        assert reason.startswith(f"{shard}: ") and words in reason, reason
        assert (key or "unknown key") in reason or f"sample {number}" in reason
        assert reason.isprintable() and len(reason) < 800, reason
    for name, case in cases.items():
        lines = told.get(name, [])
        assert all(line.startswith(f"{name}: ") and line.isprintable() for line in lines)
        assert any(case.told in line for line in lines) if case.told else not lines, lines


class Memory:
    """The most memory that this process took while it was measured."""

    def __enter__(self) -> "Memory":
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
        self.before = self._now("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = self._now("VmHWM") - self.before

    def _now(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 150


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_damage(tmp_path: Path, processor: Processor, kind: str) -> None:
    cases = {"bad.tar": KINDS[kind]}
    with Memory() as memory:
        told = write(tmp_path, cases)
        packs = packs_from(tmp_path, processor, Limits.model_validate(KINDS[kind].limits))
        delivered = draw(packs, processor, cases)
    check(tmp_path, cases, told, delivered)
    assert memory.taken < MOST
    assert packs.quarantine.bad == len(records(tmp_path)) and packs.quarantine.dropped == 0


@pytest.mark.timeout(120)
def test_all_damage_at_once(tmp_path: Path, processor: Processor) -> None:
    """In one set, and with workers: the same is delivered, and the same is named."""
    cases = {f"{number:03d}.tar": case for number, case in enumerate(KINDS.values()) if not case.limits}
    found = []
    for workers in (0, 2):
        folder = tmp_path / "set"
        folder.mkdir()
        told = write(folder, cases)
        packs = packs_from(folder, processor, workers=workers)
        delivered = draw(packs, processor, cases)
        check(folder, cases, told, delivered)
        found.append((delivered, records(folder), packs.state()))
        shutil.rmtree(folder)
    assert found[0] == found[1]


INDEX = "index.json"
UNUSABLE: dict[str, tuple[str, bytes | None]] = {
    "no index": (INDEX, None),
    "an empty index": (INDEX, b""),
    "an index of noise": (INDEX, damage.NOISE),
    "an index cut off": (INDEX, b'[{"shard": "good.tar", "samples": 4'),
    "an index that is an object": (INDEX, b"{}"),
    "an index of numbers": (INDEX, b"[1]"),
    "an index nested deep": (INDEX, damage.DEEP),
    "an index of nothing": (INDEX, b"[]"),
    "no offsets": ("good.tar.idx", None),
    "no bytes of offsets": ("good.tar.idx", b""),
    "offsets cut off": ("good.tar.idx", bytes(39)),
    "offsets of noise": ("good.tar.idx", b"\xc3" * 40),
    "offsets of zeros": ("good.tar.idx", bytes(40)),
    "an offset too few": ("good.tar.idx", np.arange(4, dtype="<u8").tobytes()),
    "an offset too many": ("good.tar.idx", np.arange(6, dtype="<u8").tobytes()),
    "offsets that fall": ("good.tar.idx", np.arange(5, dtype="<u8")[::-1].tobytes()),
    "negative offsets": ("good.tar.idx", np.arange(-2, 3, dtype="<i8").tobytes()),
    "offsets beyond all files": ("good.tar.idx", np.arange(2**63, 2**63 + 5, dtype="<u8").tobytes()),
    "no shard": ("good.tar", None),
}
FIELDS: dict[str, dict[str, object]] = {
    "more samples than there are": {"samples": 5},
    "fewer samples than there are": {"samples": 3},
    "no samples": {"samples": 0},
    "-1 samples": {"samples": -1},
    "samples that are text": {"samples": "many"},
    "samples that are no number": {"samples": float("nan")},
    "a shard outside": {"shard": "../good.tar"},
    "a shard that is not there": {"shard": "other.tar"},
    "a shard of many lines": {"shard": "good.tar\nerror: all is lost"},
    "a field too many": {"more": 1},
}


@pytest.mark.parametrize("kind", [*UNUSABLE, *FIELDS, "a shard twice"])
def test_an_unusable_index_is_one_line(tmp_path: Path, processor: Processor, kind: str) -> None:
    write(tmp_path, {})
    if kind in UNUSABLE:
        name, content = UNUSABLE[kind]
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    else:
        (entry,) = json.loads((tmp_path / INDEX).read_text())
        entries = [entry, entry] if kind == "a shard twice" else [entry | FIELDS[kind]]
        (tmp_path / INDEX).write_text(json.dumps(entries))
    with pytest.raises(DataError) as caught:
        next(packs_from(tmp_path, processor))
    text = str(caught.value)
    assert str(tmp_path) in text and text.isprintable() and len(text) < 400
    assert "index" in text or "write the set again" in text or "fetch it again" in text, text


class Edits(NamedTuple):
    """What is done to a shard: bytes changed, put in and taken out, and an early end."""

    steps: list[tuple[str, float, bytes]]

    def __call__(self, content: bytes) -> bytes:
        for what, place, new in self.steps:
            at = int(place * len(content))
            at -= at % BLOCK if len(new) == BLOCK else 0
            if what == "end":
                content = content[:at]
            else:
                left_out = 0 if what == "insert" else len(new)
                content = content[:at] + (b"" if what == "remove" else new) + content[at + left_out :]
        return content


places = st.floats(0, 1, exclude_max=True)
steps = st.tuples(st.sampled_from(["change", "change", "change", "insert", "remove"]), places, st.binary(max_size=9))
ends = st.tuples(st.just("end"), places, st.just(b""))
blocks = st.tuples(st.sampled_from(["change", "insert", "remove"]), places, st.just(bytes(BLOCK)))
edits = st.builds(Edits, st.lists(steps | steps | blocks | ends, min_size=1, max_size=4))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of one shard: samples with none to three pictures, under plain and under long names."""
    folder = tmp_path_factory.mktemp("small")
    samples = puzzles.stream(("jigsaw", "correspondence"), "train", 4, sizes=(64,))
    text = Text(question="?", answer="!", task="t", source="s")
    shards.write([*samples, Sample(key="none", text=text)], folder / "set")
    path = folder / "set" / "000000.tar"
    path.write_bytes(path.read_bytes()[: -2 * BLOCK] + damage.LONG + damage.END)
    list(index(str(folder / "set"), SOURCE, folder / "set"))
    return folder / "set"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("again", [False, True], ids=["the old index", "indexed again"])
@given(edit=edits)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage(tmp_path: Path, small: Path, again: bool, edit: Edits) -> None:
    """A sample is what it was, or valid by itself, or refused with a reason; nothing else is ever raised."""
    content = (small / "000000.tar").read_bytes()
    for path in small.iterdir():
        (tmp_path / path.name).write_bytes(edit(content) if path.suffix == ".tar" else path.read_bytes())
    if again:
        (tmp_path / "index.json").unlink()
        try:
            faults = list(index(str(tmp_path), SOURCE, tmp_path))
        except DataError as error:
            assert "no sample" in str(error)
            return
        assert all(str(fault).isprintable() for fault in faults)
    stream = Stream(DataConfig(train=tmp_path, lanes=1), 0, 1, seed=0)
    reader, work = Reader(stream.sets, SOURCE, 2**20), Prepare(decoded, lambda item: 0, 1, "drop")
    wholes = {sample.key: sample for sample in shards.read_set(small)}
    for ref in itertools.islice(stream, stream.lanes[0][0].size):
        raw = reader.later(ref)()
        item = work(raw)
        if isinstance(item, LeftOut):
            assert item.kind == "bad" and item.reason.startswith(f"{tmp_path}/000000.tar: ")
            assert item.reason.isprintable() and len(item.reason) < 1000
            continue
        sample = shards.parse(raw.content, "")
        whole = wholes.get(sample.key)
        if whole is not None and sample.text == whole.text:  # bytes may change within pictures and texts alone
            assert len(sample.images) == len(whole.images)


def decoded(sample: Sample, fewer: int) -> Encoded:
    pictures(sample)
    nothing = torch.zeros(0)
    return Encoded(sample, nothing, nothing, nothing, nothing)
