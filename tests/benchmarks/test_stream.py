"""The stream benchmark runs, on small sets; it refuses to time loaders that hand out something else."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import peers, stream
from data import tar
from data.shards import load_index, read_set
from data.source import Source

ROW = ["case", "ours", "peer", "peer_name", "ratio", "unit"]
PEERS = [name for name in peers.WAYS if name != "ours"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("small")
    stream.write_set(stream.KINDS["small"], found, 24)
    return found


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_it_decodes(capsys: pytest.CaptureFixture[str]) -> None:
    """With the check of an epoch's pixels, in as many processes as loaders are installed."""
    stream.main(["--cases=decode", "--kinds=small", "--workers=1", "--samples=24", "--repeats=1"])
    rows = rows_of(capsys)
    decoded = {row["peer_name"]: row for row in rows if row["case"] == "decode small, 1 workers"}
    assert list(decoded) == PEERS
    for name, row in decoded.items():
        assert row["ours"] > 0
        if why := peers.missing(name):
            assert row["note"] == why and row["peer"] is row["ratio"] is None
        else:
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    held = [row for row in rows if row["case"].startswith("memory of ")]
    assert len(held) == 2 * sum(not peers.missing(name) for name in PEERS)
    assert all(list(row) == ROW and row["ours"] > 10 and row["peer"] > 10 and row["unit"] == "MB" for row in held)


def test_it_reads_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--workers=0", "--samples=9", "--large=20500", "--repeats=1"]
    stream.main(["--cases", "raw", "resume", "--kinds", "photos", *sizes])
    raw, *resumed = rows_of(capsys)
    assert raw["unit"] == "MB/s" and raw["ratio"] == pytest.approx(raw["ours"] / raw["peer"])
    assert len(resumed) == 5
    assert all(list(row) == ROW and row["ours"] > 0 and row["unit"] == "s" and row["peer"] is None for row in resumed)


@pytest.mark.parametrize("name", PEERS)
def test_without_workers_the_samples_are_ours(name: str, folder: Path) -> None:
    if why := peers.missing(name):
        pytest.skip(why)
    wanted = {done.key: stream.digest(done) for done in peers.ours(folder, 0, 4, 1)}
    found = [(done.key, stream.digest(done)) for done in peers.WAYS[name].open(folder, 0, 4, 1)]
    assert len(found) == len(wanted) == 24
    assert dict(found) == wanted


@pytest.mark.parametrize("name", list(peers.WAYS))
def test_a_loader_does_not_end_where_no_epochs_are_asked_for(name: str, folder: Path) -> None:
    if why := peers.missing(name):
        pytest.skip(why)
    assert len(list(itertools.islice(peers.WAYS[name].open(folder, 0, 4, None), 60))) == 60


def test_nothing_is_timed_where_pixels_differ() -> None:
    class Fixed:
        def __init__(self, found: dict[str, str]) -> None:
            self.found = found

        def ask(self, *_: object) -> dict[str, str]:
            return self.found

    with pytest.raises(RuntimeError, match="not the same samples, nothing was timed: other differs in 1 of 2"):
        stream.check({"ours": Fixed({"a": "1", "b": "2"}), "other": Fixed({"a": "1", "b": "3"})}, Path(), 0, 1)  # type: ignore[dict-item]


def test_a_missing_peer_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.WAYS, "datasets", peers.Way("no-such-package", peers.datasets))
    assert peers.missing("datasets") == "no-such-package is not installed: pip install amvl[peers]"


def test_the_large_set_is_a_sound_one(tmp_path: Path) -> None:
    stream.write_large(tmp_path, stream.PER_SHARD + 12)
    assert [shard.samples for shard in load_index(str(tmp_path), Source())] == [stream.PER_SHARD, 12]
    keys = [sample.key for sample in read_set(tmp_path)]
    assert keys == [f"{n:09d}" for n in range(stream.PER_SHARD + 12)]
    extents = list(tar.scan((tmp_path / "000001.tar").open("rb")))
    assert [(extent.start, extent.end) for extent in extents] == [(n * 1024, (n + 1) * 1024) for n in range(12)]
