"""Writing: the same bytes with any number of workers, after any kill and on a second run; little memory; faults."""

import filecmp
import itertools
import json
import os
import random
import resource
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
import psutil
import pytest

from data import shards
from data.sample import DataError, Sample, Text
from data.shards import WriteOptions
from data.shards.keys import RECENT, Keys
from data.shards.shuffle import Shuffled, read_packed
from data.source import Source
from tests.data.test_shards import GOOD, cli, picture
from tests.processes import gone
from tests.refusal import refusal

ROOT = Path(__file__).parents[2]
PICTURES = [picture(size) for size in range(8, 40)]


class Item(NamedTuple):
    """Something light that becomes a sample."""

    key: str
    picture: int


def make(item: Item, bad: tuple[str, ...] = ()) -> Sample:
    if item.key in bad:
        raise DataError(f"{item.key} is bad")
    return Sample(key=item.key, text=Text(**GOOD), images=(PICTURES[item.picture],))


def items(count: int, first: int = 0) -> Iterator[Item]:
    return (Item(f"k{n:05d}", n % len(PICTURES)) for n in range(first, count))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(folder: Path) -> list[str]:
    return [sample.key for sample in shards.read_set(folder)]


@pytest.mark.parametrize("options", [{"per_shard": 7}, {"shard_bytes": 9000}, {"per_shard": 7, "shuffle": 5}])
def test_workers_make_the_same_bytes(tmp_path: Path, options: dict[str, int]) -> None:
    sets = []
    for workers in (0, 1, 2):
        chosen = WriteOptions(**options, workers=workers)
        shards.write(items(100), tmp_path / str(workers), chosen, prepare=make)
        sets.append(content(tmp_path / str(workers)))
    assert sets[0] == sets[1] == sets[2]
    assert set(sets[0]) == {
        "index.json",
        *(f"{n:06d}.tar{e}" for n in range((len(sets[0]) - 1) // 2) for e in ("", ".idx")),
    }


def test_shards_are_as_large_as_they_may_be(tmp_path: Path) -> None:
    index = shards.write(items(100), tmp_path, WriteOptions(shard_bytes=20_000), prepare=make)
    sizes = [sample.end - sample.start for sample in spans(tmp_path, index)]
    assert all(shard.bytes <= 20_000 for shard in index)
    done = 0
    for shard in index[:-1]:
        done += shard.samples
        assert shard.bytes + sizes[done] > 20_000
    assert len(shards.write(items(5), tmp_path / "small", WriteOptions(shard_bytes=1), prepare=make)) == 5


class Extent(NamedTuple):
    start: int
    end: int


def spans(folder: Path, index: list[shards.Shard]) -> Iterator[Extent]:
    for shard in index:
        offsets = np.fromfile(folder / f"{shard.shard}.idx", "<u8").tolist()
        yield from map(Extent, offsets[:-1], offsets[1:])


def stop_at(count: int, stop: int) -> Iterator[Item]:
    for number, item in enumerate(items(count)):
        if number == stop:
            raise KeyboardInterrupt
        yield item


@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_write_goes_on(tmp_path: Path, workers: int, shuffle: int | None) -> None:
    """Stopped again and again, with items left out, it ends as one that was not; finished shards are not touched."""
    options = WriteOptions(per_shard=6, workers=workers, left_out=0.1, shuffle=shuffle)
    prepare = partial(make, bad=("k00003", "k00013", "k00029"))
    shards.write(items(40), tmp_path / "whole", options, prepare=prepare)
    before: dict[str, int] = {}
    for stop in (15, 30) if workers else (4, 15, 15, 30, 39):
        with pytest.raises(KeyboardInterrupt):
            shards.write(stop_at(40, stop), tmp_path / "set", options, prepare=prepare)
        there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*.tar")}
        assert before.items() <= there.items() and not list((tmp_path / "set").rglob("*.tar.part"))
        assert "index" in refusal(lambda: shards.load_index(str(tmp_path / "set"), Source()))
        before = there
    shards.write(items(40), tmp_path / "set", options, prepare=prepare)
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    left_out = [json.loads(line) for line in (tmp_path / "set" / "left_out.jsonl").read_text().splitlines()]
    assert [(one["item"], one["key"]) for one in left_out] == [(3, "k00003"), (13, "k00013"), (29, "k00029")]
    assert left_out[0]["reason"] == "k00003 is bad"


@pytest.mark.parametrize("change", ["another key", "fewer", "another order", "options", "shuffled"])
def test_only_the_same_items_go_on(tmp_path: Path, change: str) -> None:
    options = WriteOptions(per_shard=6)
    with pytest.raises(KeyboardInterrupt):
        shards.write(stop_at(40, 20), tmp_path, options, prepare=make)
    before = content(tmp_path)
    other = list(items(40))
    if change == "another key":
        other[8] = Item("other", 0)
    elif change == "fewer":
        other = other[:10]
    elif change == "another order":
        other[0], other[1] = other[1], other[0]
    elif change == "options":
        options = WriteOptions(per_shard=5)
    else:
        options = WriteOptions(per_shard=6, shuffle=1)
    text = refusal(lambda: shards.write(other, tmp_path, options, prepare=make))
    assert ("other items" in text) is (
        change in ("another key", "fewer", "another order")
    ) and "delete the folder" in text
    assert {name: before[name] for name in before if name != "index.part"}.items() <= content(tmp_path).items()


def test_a_record_that_is_not_whole(tmp_path: Path) -> None:
    """Its last line cut, and a finished shard gone: written again from there."""
    shards.write(items(40), tmp_path / "whole", WriteOptions(per_shard=6), prepare=make)
    with pytest.raises(KeyboardInterrupt):
        shards.write(stop_at(40, 30), tmp_path / "set", WriteOptions(per_shard=6), prepare=make)
    record = tmp_path / "set" / "index.part"
    record.write_bytes(record.read_bytes()[:-20])
    (tmp_path / "set" / "000001.tar").unlink()
    shards.write(items(40), tmp_path / "set", WriteOptions(per_shard=6), prepare=make)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_two_writes_to_one_folder(tmp_path: Path) -> None:
    def both() -> Iterator[Item]:
        yield from items(3)
        assert "another process" in refusal(lambda: shards.write(items(9), tmp_path, prepare=make))
        yield from items(9, 3)

    shards.write(both(), tmp_path, prepare=make)
    assert len(keys(tmp_path)) == 9


def test_faults_end_it_or_are_left_out(tmp_path: Path) -> None:
    bad = partial(make, bad=("k00050",))
    text = refusal(lambda: shards.write(items(100), tmp_path / "none", WriteOptions(per_shard=10), prepare=bad))
    assert "k00050 is bad" in text and "--left-out" in text
    assert not (tmp_path / "none" / "left_out.jsonl").exists()
    twice = [*items(100), Item("k00007", 1)]  # in another shard
    shards.write(twice, tmp_path / "some", WriteOptions(per_shard=10, left_out=0.02), prepare=bad)
    assert keys(tmp_path / "some") == [item.key for item in items(100) if item.key != "k00050"]
    lines = (tmp_path / "some" / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == [50, 100] and "earlier" in lines[1]


@pytest.mark.parametrize("sized", [True, False])
def test_too_many_faults_end_it_early(tmp_path: Path, sized: bool) -> None:
    seen = []

    def all_bad(item: Item) -> Sample:
        seen.append(item)
        raise DataError("bad")

    many = list(items(5000)) if sized else items(5000)
    options = WriteOptions(left_out=0.02)
    text = refusal(lambda: shards.write(many, tmp_path / "set", options, prepare=all_bad))
    assert "faulty" in text and "left_out.jsonl" in text and len(seen) == (101 if sized else 511)


def test_the_share_is_judged_at_the_end(tmp_path: Path) -> None:
    """And a larger one lets the same write go on."""
    bad = partial(make, bad=("k00001", "k00002"))
    text = refusal(lambda: shards.write(items(50), tmp_path, WriteOptions(per_shard=7, left_out=0.03), prepare=bad))
    assert "2 of 50 items are faulty, above 0.03" in text and not (tmp_path / "index.json").exists()
    shards.write(items(50), tmp_path, WriteOptions(per_shard=7, left_out=0.04), prepare=bad)
    assert len(keys(tmp_path)) == 48


def dies(item: Item) -> Sample:
    os._exit(3)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="a worker process died") as caught:
        shards.write(items(50), tmp_path, WriteOptions(workers=1), prepare=dies)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*.tar*"))


def test_every_order_is_as_likely(tmp_path: Path) -> None:
    """Also across shards."""
    index = shards.write(items(4), tmp_path, WriteOptions(per_shard=3), prepare=make)
    orders = Counter()
    for seed in range(2400):
        shuffled = Shuffled(tmp_path, index, seed)
        orders[tuple(one.key for one in shuffled)] += 1
    assert len(orders) == 24 and sum((n - 100) ** 2 / 100 for n in orders.values()) < 49.7  # chi-square, 1 in 1000
    contents = [shards.parse(read_packed(one).content, "").key for one in shuffled]
    assert contents == [f"k{int(one.key):05d}" for one in shuffled] == [f"k{n:05d}" for n in orders_of(2399, 4)]


def orders_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).permutation(count).tolist()


def test_a_shuffled_set_is_in_the_order_of_its_seed(tmp_path: Path) -> None:
    shards.write(items(50), tmp_path / "a", WriteOptions(per_shard=9, shuffle=7), prepare=make)
    shards.write(items(50), tmp_path / "b", WriteOptions(per_shard=9, shuffle=7), prepare=make)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert keys(tmp_path / "a") == [f"k{n:05d}" for n in orders_of(7, 50)]


def test_keys_are_told_apart() -> None:
    seen = Keys()
    assert all(seen.add(str(n)) for n in range(3 * RECENT))
    assert not any(seen.add(str(n)) for n in range(0, 3 * RECENT, 7)) and seen.add("new")


def rows(folder: Path, count: int, **more: object) -> Path:
    """A JSON-lines file with a picture per row."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(one)
    lines = [
        json.dumps({**GOOD, "key": f"row-{n}", "images": [f"pictures/{n % len(PICTURES)}.png"], **more})
        for n in range(count)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def test_rows_and_sets_from_the_command_line(tmp_path: Path) -> None:
    made = cli("write", rows(tmp_path / "in", 20), "--out", tmp_path / "a", "--per-shard", 8)
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{tmp_path}/a: 20 samples in 3 shards\n", "")
    assert keys(tmp_path / "a") == [f"row-{n}" for n in range(20)]
    again = cli(
        "write", tmp_path / "a", "--out", tmp_path / "b", "--shard-bytes", "4KB", "--shuffle", 3, "--workers", 1
    )
    assert again.returncode == 0, again.stderr
    one, two = ({s.key: s.model_copy(update={"origin": ""}) for s in shards.read_set(tmp_path / n)} for n in "ab")
    assert one == two and list(one) != list(two)
    bad = cli("write", tmp_path / "a", "--out", tmp_path / "c", "--per-shard", 0)
    assert bad.returncode == 2 and bad.stderr.startswith("error: --per-shard: ") and bad.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": ', "broken JSON"),
        ("[1]", "not an object"),
        ('{"question": "?"}', "mend it or leave the row out"),
        (json.dumps({**GOOD, "images": ["../secret.png"]}), "leads out of"),
        (json.dumps({**GOOD, "images": ["/etc/hostname"]}), "leads out of"),
        (json.dumps({**GOOD, "images": ["link.png"]}), "is a link out of"),
        (json.dumps({**GOOD, "images": ["nowhere.png"]}), "no picture"),
        (json.dumps({**GOOD, "images": "pictures/1.png"}), "not a list of paths"),
        (json.dumps({**GOOD, "images": [7]}), "not a list of paths"),
        (json.dumps({**GOOD, "anser": "3"}), "unknown field 'anser'"),
        (json.dumps({**GOOD, "answer": 3}), "answer"),
        (json.dumps({**GOOD, "key": "a/b"}), "take out its . and /"),
        (json.dumps({**GOOD, "question": "\ud800"}), "question"),
    ],
)
def test_faulty_rows(tmp_path: Path, row: str, words: str) -> None:
    """Named one by one, and left out when that is allowed."""
    path = rows(tmp_path / "in", 9)
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    path.write_text(path.read_text() + row + "\n")
    from data.convert.row import load
    from data.shards import items as inputs

    text = refusal(lambda: shards.write(inputs.rows(path, path.parent), tmp_path / "a", prepare=load))
    assert words in text
    shards.write(inputs.rows(path, path.parent), tmp_path / "b", WriteOptions(left_out=0.1), prepare=load)
    (line,) = (tmp_path / "b" / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["item"] == 9 and words in json.loads(line)["reason"] and len(keys(tmp_path / "b")) == 9


@pytest.mark.parametrize("shuffle", [[], ["--shuffle", "5"]])
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, shuffle: list[str]) -> None:
    """With workers, and whatever it is at then: the same bytes as undisturbed."""
    path, rng, killed = rows(tmp_path / "in", 1000), random.Random(0), 0
    arguments = ["write", str(path), "--per-shard", "40", "--workers", "2", *shuffle, "--out"]
    assert cli(*arguments, tmp_path / "whole").returncode == 0
    command = [sys.executable, "-m", "data.shards", *arguments, str(tmp_path / "set")]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last = len(list(tmp_path.glob("set/**/*.tar"))) + rng.randint(1, 6)
        while len(list(tmp_path.glob("set/**/*.tar"))) < last and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "set" / "index.json").exists() or process.returncode == 0
    assert killed == 3
    assert cli(*arguments, tmp_path / "set").returncode == 0
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize("shuffle", [None, 3])
def test_killed_before_any_change_to_the_folder_it_goes_on(tmp_path: Path, shuffle: int | None) -> None:
    """Before every file that it opens, renames or deletes, one after the other."""
    options = WriteOptions(per_shard=4, left_out=0.5, shuffle=shuffle)

    def run(folder: Path) -> None:
        shards.write(items(10), folder, options, prepare=partial(make, bad=("k00001", "k00009")))

    run(tmp_path / "whole")
    whole, finished = content(tmp_path / "whole"), 0
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        if not (child := os.fork()):
            die_at(last, str(folder))
            run(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        if (folder / "index.json").exists():  # nothing but clearing up was left to do
            finished += 1
            assert "holds a shard set already" in refusal(lambda folder=folder: run(folder))
        else:
            run(folder)
        assert content(folder) == whole, last
    assert last > 20 and finished >= 1


def die_at(last: int, folder: str) -> None:
    """End this process, as a kill does, before its so many-th operation on files of a folder."""
    changes = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
    seen = itertools.count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in changes and str(arguments[0]).startswith(folder) and next(seen) == last:
            os._exit(9)

    sys.addaudithook(hook)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    path = rows(tmp_path / "in", 20_000)
    command = [sys.executable, "-m", "data.shards", "write", str(path), "--workers", "2", "--out", str(tmp_path / "a")]
    process = subprocess.Popen(command, cwd=ROOT)
    mark = str(tmp_path / "a").encode()
    deadline = time.monotonic() + 20
    while not (tmp_path / "a" / "000000.tar.part").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = [one.pid for one in psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3, mark  # two workers and what starts them
    process.kill()
    process.wait()
    assert gone(family, deadline + 10 - time.monotonic())


LARGE = """
import resource, sys
from pathlib import Path
from data import shards
from tests.data.test_shards_write import large, Item

options = shards.WriteOptions(shard_bytes=64 * 2**20, shuffle=int(sys.argv[2]) if len(sys.argv) > 2 else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards.write((Item(f"k{n:06d}", n) for n in range(400)), Path(sys.argv[1]), options, prepare=large)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def large(item: Item) -> Sample:
    """One of a megabyte that does not compress."""
    noise = np.random.default_rng(item.picture).integers(0, 256, 2**20, np.uint8).tobytes()
    return Sample(key=item.key, text=Text(**GOOD), images=(picture() + noise,))


@pytest.mark.parametrize("shuffle", [[], ["1"]])
def test_memory_does_not_grow_with_the_set(tmp_path: Path, shuffle: list[str]) -> None:
    """400 MB in shards of 64 MB: far less than one shard is ever held."""
    command = [sys.executable, "-c", LARGE, str(tmp_path / "set"), *shuffle]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024, done.stdout  # KiB


@pytest.mark.parametrize("limit", [100, 5_000, 60_000, 290_000])
def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, limit: int) -> None:
    """A limit to the size of files stands for it: whatever has its final name is whole, and it goes on with room."""
    path = rows(tmp_path / "in", 300)
    assert cli("write", path, "--out", tmp_path / "whole").returncode == 0
    command = [sys.executable, "-m", "data.shards", "write", str(path), "--out", str(tmp_path / "set")]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(p.suffix == ".part" for p in (tmp_path / "set").iterdir())
    assert cli(*command[3:]).returncode == 0
    names = [p.name for p in (tmp_path / "whole").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "set", tmp_path / "whole", names, shallow=False) == (names, [], [])
