"""The cache of remote ranges: what comes out is what went in, in bounds, whoever else uses the folder or dies in it."""

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data import cache as module
from data.cache import STALE, Cache
from data.source import Source, SourceConfig, SourceError
from tests.data import faulty_server as faulty
from tests.data.faulty_server import FaultyServer
from tests.refusal import refusal

CONTENT = random.Random(0).randbytes(100_000)


def ranges(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.range"))


def stored(folder: Path) -> int:
    """Bytes of ranges and parts, as the disk sees them."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size if entry.name != "total" else 0
        except FileNotFoundError:
            continue
    return total


def kept(cache: Cache, key: str, size: int) -> bytes | None:
    file = cache.get(key, size)
    return None if file is None else os.pread(file.number, 2 * size, 0)


def counted(folder: Path) -> int:
    return int((folder / "total").read_text())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.tar").write_bytes(CONTENT)
    server = faulty.serve_folder(tmp_path / "web")
    yield server
    server.close()


@pytest.fixture
def config(tmp_path: Path) -> SourceConfig:
    return SourceConfig(cache=tmp_path / "deep" / "cache", cache_bytes=1_000_000, attempts=2, wait=0.01)


def fetched(server: FaultyServer) -> list[str]:
    return [request.range for request in server.requests if request.range]


def test_a_range_is_fetched_once(web: FaultyServer, config: SourceConfig) -> None:
    url = f"{web.url}/a.tar"
    source = Source(config)
    for user in (source, source, Source(config)):
        span = user.span(url, 1000, 90_000)
        assert span.read(1000, 90_000) == CONTENT[1000:90_000] and span.read(5000, 5010) == CONTENT[5000:5010]
    assert fetched(web) == ["bytes=1000-89999"]
    assert len(web.requests) == 3  # and its version twice: by the first source, and by the second
    assert source.span(url, 1000, 1500).read(1100, 1500) == CONTENT[1100:1500]
    assert sorted(path.stat().st_size for path in ranges(config.cache)) == [500, 89_000]
    with pytest.raises(ValueError, match="of a span"):
        span.read(0, 1001)


def test_a_changed_shard_is_fetched_anew(web: FaultyServer, config: SourceConfig, tmp_path: Path) -> None:
    url = f"{web.url}/a.tar"
    Source(config).span(url, 0, 500)
    (tmp_path / "web" / "a.tar").write_bytes(CONTENT[::-1])
    assert Source(config).span(url, 0, 500).read(0, 500) == CONTENT[::-1][:500]


def test_a_shard_that_ends_early_is_not_kept(web: FaultyServer, config: SourceConfig) -> None:
    span = Source(config).span(f"{web.url}/a.tar", 99_000, 101_000)
    assert span.read(99_500, 101_000) == CONTENT[99_500:]
    assert not ranges(config.cache)


def test_nothing_of_a_failed_fetch_is_kept(web: FaultyServer, config: SourceConfig) -> None:
    web.choose = lambda method, path: method == "GET"
    web.fail(always=faulty.CUT)
    with pytest.raises(SourceError, match="failed 2 times"):
        Source(config).span(f"{web.url}/a.tar", 0, 5000)
    assert [path.name for path in config.cache.iterdir()] == ["total"]


@pytest.mark.parametrize("size", [0, 499, 501])
def test_a_damaged_range_is_fetched_anew(web: FaultyServer, config: SourceConfig, size: int) -> None:
    url = f"{web.url}/a.tar"
    Source(config).span(url, 0, 500)
    (path,) = ranges(config.cache)
    path.write_bytes(bytes(size))
    for _ in range(2):
        assert Source(config).span(url, 0, 500).read(0, 500) == CONTENT[:500]
        assert path.read_bytes() == CONTENT[:500] and counted(config.cache) == 500
    assert len(fetched(web)) == 2


def test_the_one_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4000)
    files = {}
    for key in "abcd":
        files[key] = cache.put(key, key.encode() * 1000)
        time.sleep(0.02)
    assert kept(cache, "a", 1000) == b"a" * 1000
    time.sleep(0.02)
    assert kept(Cache(tmp_path, 4000), "b", 1000) == b"b" * 1000
    time.sleep(0.02)
    cache.put("e", b"e" * 1000)
    assert [key for key in "abcde" if cache.get(key, 1000)] == ["a", "b", "d", "e"]
    assert files["c"] is not None and os.pread(files["c"].number, 2000, 0) == b"c" * 1000  # still held
    assert stored(tmp_path) == counted(tmp_path) == 4000


def test_what_is_larger_than_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    assert cache.put("a", bytes(900)) and cache.put("b", bytes(1001)) is None
    assert cache.get("a", 900) and not cache.get("b", 1001)  # nothing was dropped for it
    assert cache.put("c", bytes(1000)) and not cache.get("a", 900)


def test_the_folder_is_listed_only_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, listings, scandir = Cache(tmp_path, 100_000), [], os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda path: (listings.append(path), scandir(path))[1])
    for number in range(100):
        assert cache.put(str(number), bytes(1000)) and cache.get(str(number), 1000)
    assert not listings
    for number in range(100, 200):
        assert cache.put(str(number), bytes(1000))
        assert stored(tmp_path) <= 100_000
    listings = [path for path in listings if path == cache.folder]
    assert 1 <= len(listings) - 100 <= 10  # a hundred are this test's own


@pytest.mark.parametrize("text", [None, "", "-5", "\0" * 20])
def test_a_count_that_is_lost(tmp_path: Path, text: str | None) -> None:
    cache = Cache(tmp_path, 1000)
    assert cache.put("a", bytes(700))
    (tmp_path / "total").unlink() if text is None else (tmp_path / "total").write_text(text)
    assert cache.put("b", bytes(600)) and not cache.get("a", 700)
    assert counted(tmp_path) == stored(tmp_path) == 600


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.part").write_bytes(bytes(5000))
    (tmp_path / "photo.range").write_bytes(bytes(5000))
    cache = Cache(tmp_path, 1000)
    for key in "abc":
        assert cache.put(key, bytes(600))
    assert (tmp_path / "notes.part").exists() and (tmp_path / "photo.range").exists()
    assert len(ranges(tmp_path)) == 2


def test_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    def child() -> None:
        write = os.write

        def die(number: int, content: memoryview) -> int:
            write(number, content[:300])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        module.os.write = die
        Cache(tmp_path, 1000).put("a", bytes(700))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    (part,) = tmp_path.glob("*.part")
    assert part.stat().st_size == 300 and counted(tmp_path) == 700
    cache = Cache(tmp_path, 1000)
    assert cache.get("a", 700) is None
    assert cache.put("b", bytes(400)) is None and part.exists()  # it may still be written
    assert cache.put("b", bytes(300))
    os.utime(part, (0, time.time() - STALE - 10))
    assert cache.put("c", bytes(600)) and not part.exists()
    assert counted(tmp_path) == stored(tmp_path) == 900


def test_a_full_disk_is_told_once(
    web: FaultyServer, config: SourceConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, url, write = Source(config), f"{web.url}/a.tar", os.write
    source.span(url, 0, 500)

    def full(number: int, content: memoryview) -> int:
        if len(content) <= 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, content[:1000])

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", full)
        for start in (0, 10_000, 20_000):
            span = source.span(url, start, start + 5000)
            assert span.read(start, start + 5000) == CONTENT[start : start + 5000]
    (text,) = caplog.messages
    assert text.startswith(f"{config.cache}: ") and "No space left" in text and "free space" in text
    assert stored(config.cache) == counted(config.cache) == 500  # nothing of it stays
    requests = len(web.requests)
    assert source.span(url, 0, 500).read(0, 500) == CONTENT[:500] and len(web.requests) == requests  # still used


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """The kernel's own refusal, in another process."""

    def child() -> None:
        import resource

        cache = Cache(tmp_path, 10**6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        assert cache.put("a", bytes(4000)) and cache.put("b", bytes(6000)) is None
        assert cache.put("c", bytes(10)) is None and cache.get("a", 4000)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert stored(tmp_path) == counted(tmp_path) == 4000


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal(lambda: Source(SourceConfig(cache=tmp_path / "file")), SourceError)
    assert str(tmp_path / "file") in text and "choose another cache folder" in text


LIMIT, KEYS = 60_000, 40


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(500 + 97 * number)


def hammer(folder: Path, seed: int, rounds: int) -> None:
    """Read at random; the process ends in an error where a content is not the key's."""
    pread = os.pread

    def slow(number: int, size: int, place: int) -> bytes:
        content = pread(number, size, place)
        if size == 20:  # the count: time for others to change it, if they could
            time.sleep(1e-4)
        return content

    module.os.pread = slow
    cache, draw = Cache(folder, LIMIT), random.Random(seed)
    contents = [content_of(number) for number in range(KEYS)]
    held, found = [], 0
    for _ in range(rounds):
        number = draw.randrange(KEYS)
        content = contents[number]
        file = cache.get(str(number), len(content))
        found += file is not None
        file = file or cache.put(str(number), content)
        if file is not None:
            assert os.pread(file.number, 10**6, 0) == content
            held = [*held[-20:], (file, content)]
    for file, content in held:  # many of them dropped since
        assert os.pread(file.number, 10**6, 0) == content
    assert rounds / 10 < found < rounds


def test_processes_that_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hammer, args=(tmp_path, seed, 1000)) for seed in range(3)]
    Cache(tmp_path, LIMIT).put("first", b"")
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        with (tmp_path / "total").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # or a range may be seen under both its names
            most = max(most, stored(tmp_path))
        time.sleep(0.001)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert LIMIT / 2 < most <= LIMIT
    assert counted(tmp_path) == stored(tmp_path) and not list(tmp_path.glob("*.part"))
