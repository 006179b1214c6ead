"""Sources: every read returns exactly the bytes that are there or ends in one line, whatever the servers do."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import fsspec
import pytest
from fsspec.implementations.http import HTTPFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data import source as module
from data.failures import MissingError
from data.source import Source, SourceConfig, SourceError, is_remote, join, public
from tests.data import faulty_server as faulty
from tests.data.faulty_server import FaultyServer
from tests.processes import open_files
from tests.refusal import refusal

CONTENT = random.Random(0).randbytes(300_000)
NAMES = ["000000.tar", "empty", "odd name & #1%.tar"]
SLOW = {faulty.STALL, faulty.HANG}
QUICK = SourceConfig(attempts=4, wait=0.01, longest_wait=0.04, timeout=1)
RANGES = [(0, 1), (0, 512), (100, 100), (1000, 250_000), (0, 300_000), (299_999, 300_000)]
PAST = [(299_000, 300_001), (0, 10**9), (300_000, 300_001), (400_000, 500_000)]


class Place(NamedTuple):
    """A folder with the files NAMES and `sub/inner`, and the server before it."""

    folder: str
    server: FaultyServer

    @property
    def shard(self) -> str:
        return join(self.folder, NAMES[0])

    def reads(self) -> list[faulty.Request]:
        return [r for r in self.server.requests if r.method == "GET" and r.range]


@lru_cache(None)
def connected(place: Place, attempts: int = QUICK.attempts, timeout: float = 5) -> Source:
    """A source that has its connection, as making one may take longer than a quick attempt."""
    place.server.fail()
    source = Source(QUICK.model_copy(update={"attempts": attempts, "timeout": timeout}))
    for _ in range(2):
        with contextlib.suppress(SourceError):
            source.size(place.shard)
    return source


def fill(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for name, content in zip(NAMES, (CONTENT, b"", b"odd"), strict=True):
        (folder / name).write_bytes(content)
    (folder / "sub" / "inner").write_bytes(b"inner")
    return folder


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    server = faulty.serve_folder(fill(tmp_path_factory.mktemp("web") / "set").parent, stall=5)
    yield Place(f"{server.url}/set", server)
    server.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Place]:
    contents = dict(zip(NAMES, (CONTENT, b"", b"odd"), strict=True)) | {"": b"", "sub/inner": b"inner"}
    with faulty.bucket({f"set/{name}": content for name, content in contents.items()}, stall=5) as server:
        yield Place("s3://bucket/set", server)


@pytest.fixture(params=["http", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    place = request.getfixturevalue("web" if request.param == "http" else "bucket")
    place.server.fail()
    place.server.choose = lambda method, path: True
    return place


@pytest.fixture(params=["local", "http", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(fill(tmp_path / "set"))
    place = request.getfixturevalue("web" if request.param == "http" else "bucket")
    place.server.fail()
    return place.folder


def test_ranges(folder: str) -> None:
    source, shard = Source(QUICK), join(folder, NAMES[0])
    assert source.read(shard) == CONTENT
    assert source.read(shard, 299_000) == CONTENT[299_000:]
    for start, end in RANGES + PAST:
        assert source.read(shard, start, end) == CONTENT[start:end]
        assert source.span(shard, start, end).read(start, end) == CONTENT[start:end]
    assert source.read(join(folder, "empty")) == source.read(join(folder, "empty"), 0, 512) == b""
    assert source.read(join(folder, NAMES[2])) == b"odd"


def test_pieces_of_a_span_in_any_order(folder: str) -> None:
    shard, draw = join(folder, NAMES[0]), random.Random(1)
    span = Source(QUICK).span(shard, 5000, 310_000)  # 10 000 bytes more than there are
    for _ in range(200):
        start, end = sorted(draw.randint(5000, 310_000) for _ in "ab")
        assert span.read(start, end) == CONTENT[start:end]
    for start, end in ((4999, 5010), (6000, 310_001), (6000, 5999)):
        with pytest.raises(ValueError, match="of a span from 5000 to 310000"):
            span.read(start, end)
    for action in (Source().read, Source().span):
        for start, end in ((-1, 5), (5, 4)):
            with pytest.raises(ValueError, match="bytes"):
                action(shard, start, end)


def test_folders(folder: str) -> None:
    source = Source(QUICK)
    assert source.names(folder) == source.names(folder + "/") == sorted(NAMES)
    assert [source.size(join(folder, name)) for name in NAMES] == [300_000, 0, 3]
    assert source.read(join(join(folder, "sub"), "inner")) == b"inner"


def test_what_is_missing(folder: str) -> None:
    source, nothing = Source(QUICK), join(folder, "nothing")
    actions: list[Callable[[], object]] = [
        lambda: source.read(nothing),
        lambda: source.read(nothing, 5, 9),
        lambda: source.span(nothing, 5, 9),
        lambda: source.size(nothing),
        lambda: source.names(nothing),
    ]
    for action in actions:
        assert refusal(action, MissingError).startswith(nothing)


def test_a_bucket_that_is_missing(bucket: Place) -> None:
    bucket.server.fail()
    assert "not there" in refusal(lambda: Source(QUICK).read("s3://nowhere/a", 0, 9), MissingError)
    assert "s3://a b: cannot be read" in refusal(lambda: Source(QUICK).names("s3://a b"), SourceError)
    assert len(bucket.server.requests) == 1  # the second is not even asked for


@pytest.mark.parametrize("fault", faulty.FAULTS)
def test_one_failure(place: Place, fault: str) -> None:
    source = connected(place, timeout=0.5)
    place.server.fail(fault)
    assert source.read(place.shard, 1000, 90_000) == CONTENT[1000:90_000]
    assert [r.range for r in place.reads()] == ["bytes=1000-89999"] * 2
    assert [r.fault for r in place.reads()] == [fault, None]


@pytest.mark.parametrize("fault", faulty.FAULTS)
def test_failure_without_end(place: Place, fault: str) -> None:
    source = connected(place, attempts=3, timeout=0.25 if fault in SLOW else 5)
    place.server.fail(always=fault)
    began = time.monotonic()
    text = refusal(lambda: source.read(place.shard, 1000, 90_000), SourceError)
    assert time.monotonic() - began < 4
    assert text.startswith(f"{place.shard}, bytes 1000 to 90000: failed 3 times, at last with: ")
    assert text.endswith("check network and server, or raise `attempts`")
    if fault == faulty.RESET:  # aiohttp itself asks again on a connection it has kept
        assert 3 <= len(place.reads()) <= 6
    else:
        assert len(place.reads()) == 3
    if fault in SLOW:
        assert "no whole answer in 0.25 s" in text


@pytest.mark.parametrize("fault", ["500", faulty.STALL])
@pytest.mark.parametrize("action", ["size", "names"])
def test_questions_are_asked_again_too(place: Place, action: str, fault: str) -> None:
    """A server that fails is not one without the file."""
    source = connected(place, attempts=3, timeout=0.25 if fault == faulty.STALL else 5)
    ask = {"size": source.size, "names": source.names}[action]
    url = place.folder if action == "names" else place.shard
    place.server.fail(always=fault)
    assert f"{url}: failed 3 times" in refusal(lambda: ask(url), SourceError)
    place.server.fail(fault)
    assert ask(url) == {"size": 300_000, "names": sorted(NAMES)}[action]


@pytest.mark.parametrize(("fault", "kind", "part"), [
    ("404", MissingError, "not there"),
    ("403", SourceError, "no access"),
    ("400", SourceError, "cannot be read"),
    ("501", SourceError, "cannot be read"),
    (faulty.DEAF, SourceError, "the server ignores ranges"),
])  # fmt: skip
def test_what_will_not_pass_is_asked_once(place: Place, fault: str, kind: type[SourceError], part: str) -> None:
    source = connected(place)
    place.server.fail(always=fault)
    text = refusal(lambda: source.read(place.shard, 1000, 90_000), kind)
    assert text.startswith(f"{place.shard}, bytes 1000 to 90000: ") and part in text
    assert len(place.server.requests) == 1


def test_a_whole_file_is_not_taken_for_a_range(web: Place) -> None:
    """Of as many bytes as were asked for, but from elsewhere; from the start they are the right ones."""
    web.server.fail(always=faulty.DEAF)
    assert "ignores ranges" in refusal(lambda: Source(QUICK).read(web.shard, 1000, 301_000), SourceError)
    assert Source(QUICK).read(web.shard, 0, 300_000) == Source(QUICK).read(web.shard, 0, 300_001) == CONTENT


def test_a_server_that_answers_no_head(web: Place) -> None:
    web.server.fail(always="405")
    web.server.choose = lambda method, path: method == "HEAD"
    assert Source(QUICK).size(web.shard) == 300_000
    assert Source(QUICK).read(web.shard, 299_000, 300_001) == CONTENT[299_000:]
    web.server.choose = lambda method, path: True


@given(
    st.lists(st.sampled_from([None, *(f for f in faulty.FAULTS if f not in SLOW)]), max_size=6),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(sorted(SLOW))), max_size=1),
    st.tuples(st.integers(0, 310_000), st.integers(1, 100_000)),
)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_failures_end_in_the_right_bytes_or_in_one_line(
    place: Place, faults: list[str | None], slow: list[tuple[int, str]], where: tuple[int, int]
) -> None:
    faults, start, end = list(faults), where[0], where[0] + where[1]
    for position, fault in slow:
        faults.insert(position, fault)
    source = connected(place, timeout=0.4)
    place.server.fail(*faults)
    failures = sum(fault is not None for fault in faults)
    try:
        content = source.read(place.shard, start, end)
    except SourceError as error:
        assert failures >= QUICK.attempts and f"failed {QUICK.attempts} times" in str(error)
        assert "\n" not in str(error)
    else:
        assert content == CONTENT[start:end]
        leading = next((n for n, fault in enumerate(faults) if fault is None), len(faults))
        assert leading < QUICK.attempts or faulty.RESET in faults or faulty.SHORT in faults
    place.server.fail()


def test_waits_double_up_to_the_longest(
    web: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    web.server.fail(always="503")
    waits: list[float] = []
    source = Source(SourceConfig(attempts=6, wait=0.02, longest_wait=0.1))
    monkeypatch.setattr(source._remote._closed, "wait", lambda seconds: (waits.append(seconds), time.sleep(seconds)))
    state = random.getstate()
    refusal(lambda: source.read(web.shard, 0, 9), SourceError)
    assert random.getstate() == state  # a run stays reproducible
    assert len(waits) == 5 and len(set(waits)) == 5
    for wait, most in zip(waits, (0.02, 0.04, 0.08, 0.1, 0.1), strict=True):
        assert most / 2 <= wait <= most
    times = [request.time for request in web.reads()]
    for wait, before, after in zip(waits, times, times[1:], strict=False):
        assert after - before >= wait
    assert [f"attempt {n} of 6" in text for n, text in enumerate(caplog.messages, 1)] == [True] * 5


@pytest.mark.parametrize("fault", [faulty.STALL, faulty.HANG, "503"])
def test_a_closed_source(place: Place, tmp_path: Path, fault: str) -> None:
    """What is underway or waits for its next attempt ends at once, and nothing is asked for again."""
    source = Source(SourceConfig(attempts=5, wait=60, longest_wait=60, timeout=60))
    assert source.read(place.shard) == CONTENT
    place.server.fail(always=fault)
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(source.read, place.shard, start, start + 90) for start in range(4)]
        while len(place.reads()) < 4:
            time.sleep(0.01)
        time.sleep(0.1)
        began = time.monotonic()
        source.close()
        texts = [refusal(read.result, SourceError) for read in reads]
    place.server.fail()
    texts += [
        refusal(lambda: source.size(place.shard), SourceError),
        refusal(lambda: source.read(place.shard, 5, 9), SourceError),
    ]
    assert time.monotonic() - began < 1 and not place.server.requests
    assert all(text.startswith(place.shard) and text.endswith("not read, as the source was closed") for text in texts)
    assert source.read(fill(tmp_path / "set") / NAMES[0]) == pickle.loads(pickle.dumps(source)).read(place.shard)


def test_errors_in_the_program_pass_through(web: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def broken(self: object, *arguments: object, **options: object) -> bytes:
        calls.append(arguments)
        raise TypeError("broken")

    monkeypatch.setattr(HTTPFileSystem, "_cat_file", broken)
    with pytest.raises(TypeError, match="broken"):
        Source(QUICK).read(web.shard, 0, 9)
    assert len(calls) == 1


@pytest.mark.parametrize("fault", ["500", "403", "404", faulty.RESET, faulty.STALL])
def test_no_message_holds_credentials(web: Place, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    url = web.shard.replace("://", "://me:TOPSECRET@") + "?X-Amz-Signature=TOPSECRET"
    source = connected(web, attempts=3, timeout=0.25 if fault == faulty.STALL else 5)
    web.server.fail(always=fault)
    for action in (lambda: source.read(url, 5, 9), lambda: source.size(url), lambda: source.names(url)):
        with pytest.raises(SourceError) as caught:
            action()
        assert "TOPSECRET" not in "".join(traceback.format_exception(caught.value)) + caplog.text
        assert str(caught.value).startswith(web.shard)


def test_addresses_that_are_none() -> None:
    with pytest.raises(SourceError) as caught:
        Source(QUICK).read("http://me:TOP/SECRET@host:80/x")
    assert "TOP" not in "".join(traceback.format_exception(caught.value, limit=0))
    assert public("at 'ftp://a:b@c/d?e=f#g', http://h/i?j k@l") == "at 'ftp://c/d', http://h/i k@l"


def test_no_address_is_run_as_a_command(tmp_path: Path) -> None:
    for url in (f"pipe:touch {tmp_path}/x", f"pipe://touch {tmp_path}/x", "simplecache::http://a/b", "nonsense://a/b"):
        for action in (Source().read, Source().size, Source().names):
            assert url.partition("?")[0] in refusal(lambda action=action, url=url: action(url), SourceError)
        assert "http, https or s3" in refusal(lambda url=url: Source().span(url, 0, 5), SourceError)
    assert not list(tmp_path.iterdir())


def test_without_the_package_for_s3() -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\nfrom data.source import *\n"
        "try: Source().read('s3://bucket/key')\nexcept SourceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    (line,) = done.stdout.splitlines()
    assert line.startswith("s3://bucket/key: ") and line.endswith("pip install amvl[s3]"), done.stderr


def test_any_scheme_of_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/amvl/000000.tar", CONTENT)
    source = Source(QUICK)
    assert source.names("memory://amvl") == ["000000.tar"]
    assert source.span("memory://amvl/000000.tar", 10, 90).read(20, 30) == CONTENT[20:30]
    assert "not there" in refusal(lambda: source.read("memory://amvl/1", 0, 9), MissingError)


def test_joined_names() -> None:
    assert join(Path("a/b"), "c d") == "a/b/c d" and join("s3://b/k/", "c d#%") == "s3://b/k/c d#%"
    assert join("https://h/a?sig=1", "c d#%") == "https://h/a/c%20d%23%25?sig=1"
    assert [is_remote(url) for url in ("/a/b", "a:b", "s3://a", "http://a", "pipe:a")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_settings() -> None:
    assert SourceConfig(cache_bytes="100GB").cache_bytes == SourceConfig().cache_bytes == 10**11
    for wrong in ({"attempts": 0}, {"wait": -1}, {"timeout": 0}, {"retries": 3}, {"cache_bytes": "much"}):
        with pytest.raises(ValidationError):
            SourceConfig(**wrong)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_few_files_are_held_open(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / str(number)).write_bytes(CONTENT[number : number + 50])
    source = Source()
    spans = [source.span(tmp_path / str(number), 0, 50) for number in range(200)]
    assert open_files(f"{tmp_path}/") == 200  # a span keeps its file
    assert [span.read(0, 50) for span in spans] == [CONTENT[number : number + 50] for number in range(200)]
    del spans
    assert open_files(f"{tmp_path}/") == module.OPEN_FILES
    spans = [source.span(tmp_path / "199", 0, 50) for _ in range(100)]
    assert open_files(f"{tmp_path}/") == module.OPEN_FILES  # one for all spans of a shard
    del spans, source
    assert open_files(f"{tmp_path}/") == 0


def test_a_file_that_is_written_anew(tmp_path: Path) -> None:
    source, path = Source(), tmp_path / "a"
    path.write_bytes(b"before")
    old = source.span(path, 0, 6)
    (tmp_path / "b").write_bytes(b"behind")
    os.replace(tmp_path / "b", path)
    assert source.span(path, 0, 6).read(0, 6) == b"behind" and old.read(0, 6) == b"before"
    path.unlink()
    assert old.read(0, 6) == b"before" and "not there" in refusal(lambda: source.span(path, 0, 6), MissingError)


def test_a_disk_that_returns_little_at_a_time_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pread = fill(tmp_path / "set"), os.pread
    span = Source().span(folder / NAMES[0], 0, 310_000)
    monkeypatch.setattr(module.os, "pread", lambda number, size, place: pread(number, min(size, 7000), place))
    assert span.read(1, 310_000) == CONTENT[1:]

    def damaged(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "pread", damaged)
    assert f"{folder / NAMES[0]}: cannot be read (OSError: Input/output error)" in refusal(
        lambda: span.read(1, 2), SourceError
    )


def test_a_span_is_asked_of_the_disk_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(module.os, "posix_fadvise", lambda number, place, size, kind: asked.append((place, size)))
    path = fill(tmp_path / "set") / NAMES[0]
    Source().span(path, 1000, 5000)
    assert asked == []  # just written, so in memory
    for errors in (errno.EAGAIN, errno.EOPNOTSUPP):  # not there, and a file system that cannot tell
        asked.clear()
        monkeypatch.setattr(module.os, "preadv", Mock(side_effect=[1, OSError(errors, "")] * 2))
        Source().span(path, 1000, 5000)
        assert asked == [(1000, 4000)]
        asked.clear()
        Source().span(path, 1000, 10**9)
        assert sum(size for _, size in asked) == 299_000 and len(asked) > 1
        assert [place for place, _ in asked] == [1000, *(place + size for place, size in asked[:-1])]


def test_threads_share_a_source(place: Place) -> None:
    source, draw = Source(QUICK.model_copy(update={"attempts": 12, "timeout": 5})), random.Random(2)
    place.server.fail(*(["503", faulty.CUT, None, None] * 10))
    starts = [draw.randrange(200_000) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        spans = list(pool.map(lambda start: source.span(place.shard, start, start + 9), starts))
    assert [span.read(span.start, span.end) for span in spans] == [CONTENT[start : start + 9] for start in starts]


def test_a_forked_process_and_its_parent(place: Place, tmp_path: Path) -> None:
    """The connections and the thread of the parent are not the child's; open files are."""
    source, path = Source(QUICK.model_copy(update={"timeout": 5})), fill(tmp_path / "set") / NAMES[0]
    spans = [source.span(path, 0, 300_000), source.span(place.shard, 0, 300_000)]

    def child() -> None:
        for number in range(0, 290_000, 1000):
            for span in spans:
                assert span.read(number, number + 5000) == CONTENT[number : number + 5000]
        assert source.read(place.shard, 7, 70) == CONTENT[7:70]

    processes = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    for number in range(0, 290_000, 1000):
        assert spans[0].read(number, number + 5000) == CONTENT[number : number + 5000]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert source.read(place.shard, 7, 70) == CONTENT[7:70]
    assert pickle.loads(pickle.dumps(source)).read(place.shard, 7, 70) == CONTENT[7:70]
