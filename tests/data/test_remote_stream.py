"""A stream from afar: whatever the network does, every sample comes once, whole and in order, or the run ends."""

import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data import shards
from data.failures import MissingError
from data.loader import Loader
from data.reader import Raw
from data.sample import DataError, Sample, Text
from data.shards import WriteOptions, load_index
from data.shards.index import read_offsets
from data.source import Source, SourceConfig, SourceError
from data.stream import DataConfig, Stream
from tests.data import faulty_server as faulty
from tests.data.faulty_server import FaultyServer
from tests.refusal import refusal

ROOT = Path(__file__).parents[2]
SAMPLES, LANES = 60, 6  # so that all lanes end an epoch together
TEXT = Text(question="Which?", answer="This.", task="t", source="s")
PATIENT = SourceConfig(attempts=20, wait=0.01, longest_wait=0.02, timeout=0.5)
FAULTS = ["500", "503", "429", faulty.RESET, faulty.CUT]
Result = tuple[str, int]


class Digest:
    """What tells a sample's bytes from any others, and its epoch."""

    def __call__(self, raw: Raw) -> Result:
        return hashlib.sha256(raw.content).hexdigest(), raw.epoch

    def lost(self, raw: Raw, why: str) -> Result:
        return why, raw.epoch


class Place(NamedTuple):
    """The set on a server."""

    folder: str
    server: FaultyServer

    def ranges(self) -> list[str]:
        return [f"{request.path} {request.range}" for request in self.server.requests if request.range]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples with no, one or two pictures in 9 shards."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("remote") / "set"

    def picture() -> bytes:
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "png")
        return file.getvalue()

    made = (Sample(key=str(n), text=TEXT, images=tuple(picture() for _ in range(n % 3))) for n in range(SAMPLES))
    assert len(shards.write(made, folder, WriteOptions(per_shard=7))) == 9
    return folder


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[Place]:
    server = faulty.serve_folder(folder.parent, stall=1)
    yield Place(f"{server.url}/set", server)
    server.close()


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[Place]:
    contents = {f"set/{path.name}": path.read_bytes() for path in folder.iterdir()}
    with faulty.bucket(contents, stall=1) as server:
        yield Place("s3://bucket/set", server)


def place_of(request: pytest.FixtureRequest, name: str) -> Place:
    place = request.getfixturevalue("web" if name == "http" else "bucket")
    place.server.fail()
    return place


@pytest.fixture(params=["http", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    return place_of(request, request.param)


def bad_network(seed: int) -> faulty.Draw:
    """Faults of every third request; a shard may also come short, which only of a range can be seen."""
    rng = random.Random(seed)

    def draw(method: str, path: str) -> str | None:
        chance, ranged = rng.random(), method == "GET" and path.partition("?")[0].endswith(".tar")
        if chance < 0.015:
            return rng.choice([faulty.STALL, faulty.HANG])
        return rng.choice([*FAULTS, faulty.SHORT] if ranged else FAULTS) if chance < 0.33 else None

    return draw


def loader_of(
    folder: str | Path, workers: int = 0, source: SourceConfig = PATIENT, rank: int = 0, ranks: int = 1
) -> Loader[Result]:
    config = DataConfig(train=str(folder), lanes=LANES, piece=4, shuffle=8, source=source)
    return Loader(Stream(config, rank, ranks, seed=3), Digest(), workers)


@pytest.fixture(scope="module")
def digests(folder: Path) -> list[str]:
    """Of all samples, without a loader."""
    found, source = [], Source()
    for shard in load_index(str(folder), source):
        bounds, content = read_offsets(str(folder), shard, source), (folder / shard.shard).read_bytes()
        found += [hashlib.sha256(content[start:end]).hexdigest() for start, end in itertools.pairwise(bounds)]
    assert len(set(found)) == SAMPLES
    return found


@pytest.mark.parametrize(
    ("name", "workers", "cached"), [("http", 0, False), ("http", 2, True), ("s3", 0, True), ("s3", 2, False)]
)
def test_two_epochs_over_a_bad_network(
    folder: Path,
    digests: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    name: str,
    workers: int,
    cached: bool,
) -> None:
    """The samples of the same set on a disk, in the same order; with a cache, none is fetched for another epoch."""
    place = place_of(request, name)
    wanted = list(itertools.islice(loader_of(folder), 3 * SAMPLES))
    assert Counter(result for _, result in wanted) == Counter(itertools.product(digests, range(3)))
    place.server.fail(always=bad_network(7))
    loader = loader_of(place.folder, workers, PATIENT.model_copy(update={"cache": tmp_path / "c" if cached else None}))
    assert list(itertools.islice(loader, 2 * SAMPLES)) == wanted[: 2 * SAMPLES]
    assert len({request.fault for request in place.server.requests}) > 4
    if cached:
        place.server.fail(always="503")
        assert list(itertools.islice(loader, SAMPLES)) == wanted[2 * SAMPLES :]
        assert not place.server.requests
    loader.close()


def test_dealt_out_to_other_ranks_over_a_bad_network(place: Place, digests: list[str], tmp_path: Path) -> None:
    """One rank, then three with a cache, then two: two epochs, nothing lost and nothing twice."""
    place.server.fail(always=bad_network(11))
    used: list[Result] = []
    states: list[dict] = []
    for ranks, count in ((1, 45), (3, 9), (2, 0)):
        source = PATIENT.model_copy(update={"cache": tmp_path if ranks == 3 else None})
        loaders = [loader_of(place.folder, 0, source, rank, ranks) for rank in range(ranks)]
        for rank, loader in enumerate(loaders):
            if states:
                loader.restore(states)
            used += [result for _, result in itertools.islice(loader, count + rank)]
        states = json.loads(json.dumps([loader.stream.state(loader.position) for loader in loaders]))
        if ranks == 2:
            break
        for loader in loaders:
            loader.close()
    for loader in loaders:
        while min(loader.position.lanes.values()) < 2 * SAMPLES // LANES:
            used.append(next(loader)[1])
        loader.close()
    assert Counter(one for one in used if one[1] < 2) == Counter(itertools.product(digests, range(2)))


@pytest.mark.parametrize(
    ("name", "workers", "fault"),
    [("http", 0, faulty.RESET), ("http", 2, "503"), ("s3", 0, "500"), ("s3", 2, faulty.CUT)],
)
def test_a_source_that_is_gone_ends_the_run(
    folder: Path, request: pytest.FixtureRequest, name: str, workers: int, fault: str
) -> None:
    """In one line, with no sample left out: should it come back, the loader goes on where it was."""
    place, found = place_of(request, name), []
    wanted = list(itertools.islice(loader_of(folder), 10 * SAMPLES))
    loader = loader_of(place.folder, workers, SourceConfig(attempts=3, wait=0.01, timeout=5))
    for _ in range(2):  # at the start, and in the middle
        place.server.fail(always=lambda method, path: fault if ".tar" in path else None)
        text = refusal(partial(found.extend, loader), SourceError)
        place.server.fail()
        found += itertools.islice(loader, 13)
    assert text.startswith(f"{place.folder}/") and "failed 3 times, at last with: " in text
    found += itertools.islice(loader, 10 * SAMPLES - len(found))
    assert found == wanted
    loader.close()
    with pytest.raises(SourceError, match="the source was closed"):
        loader.stream.source.read(place.folder + "/000000.tar")


def test_the_index_of_a_remote_set(folder: Path, place: Place) -> None:
    wanted = load_index(str(folder), Source())
    place.server.fail(always=bad_network(5))
    assert load_index(place.folder, Source(PATIENT)) == wanted
    place.server.fail(always=lambda method, path: "404" if "index.json" in path else None)
    text = refusal(lambda: loader_of(place.folder))
    assert text.startswith(f"{place.folder}: no shard set (no index.json); ")
    place.server.fail(always="503")
    text = refusal(lambda: loader_of(place.folder, source=SourceConfig(attempts=2, wait=0.01)), SourceError)
    assert text.startswith(f"{place.folder}/index.json: failed 2 times, at last with: ")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_without_its_offsets(place: Place, workers: int) -> None:
    place.server.fail(always=lambda method, path: "404" if "000003.tar.idx" in path else None)
    loader = loader_of(place.folder, workers)
    text = refusal(lambda: list(itertools.islice(loader, SAMPLES)))
    assert text.startswith(f"{place.folder}/000003.tar.idx: missing; write it with ")
    loader.close()


def test_no_message_holds_a_signature(web: Place) -> None:
    """Of an address that ends in one."""
    web.server.fail()
    signed = f"{web.folder}?X-Amz-Signature=TOPSECRET"
    loader = loader_of(signed)
    loader.work = lambda raw: raw  # type: ignore[assignment]
    raw = next(loader)[1]
    assert raw.shard.startswith(f"{web.folder}/00000") and "TOPSECRET" not in raw.place
    loader.close()
    for part, kind in (("index.json", DataError), (".idx", DataError), (".tar", MissingError)):
        web.server.fail(always=lambda method, path, part=part: "404" if path.split("?")[0].endswith(part) else None)
        text = refusal(lambda: next(loader_of(signed)), kind)
        assert "TOPSECRET" not in text and text.startswith(web.folder)


RANK = """
import signal, sys
from data.source import SourceConfig
from tests.data.test_remote_stream import loader_of

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    loader = loader_of(sys.argv[1], int(sys.argv[2]), SourceConfig(timeout=60, wait=30))
    print("draws", flush=True)
    next(loader)
"""


@pytest.mark.parametrize(
    ("name", "workers", "fault"), [("http", 0, faulty.STALL), ("http", 2, faulty.HANG), ("s3", 0, "503")]
)
def test_no_exit_waits_for_a_server(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, workers: int, fault: str
) -> None:
    """While requests stall, hang or wait for their next attempt."""
    place = place_of(request, name)
    (tmp_path / "rank.py").write_text(RANK)
    rank = subprocess.Popen(
        [sys.executable, str(tmp_path / "rank.py"), place.folder, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.server, "stall", 60)
        place.server.fail(always=lambda method, path: fault if ".tar" in path and ".idx" not in path else None)
        assert rank.stdout and rank.stdout.readline() == "draws\n"
        deadline = time.monotonic() + 40
        while not any(one.fault for one in place.server.requests) and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        rank.send_signal(signal.SIGTERM)
        _, errors = rank.communicate(timeout=40)
    assert time.monotonic() - began < 5
    assert rank.returncode == 3, errors
