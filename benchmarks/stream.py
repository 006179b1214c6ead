"""Samples a second from shards, against webdataset, Megatron-Energon and datasets; raw bytes; start anywhere; memory.

    OMP_NUM_THREADS=1 python -m benchmarks.stream [--save]

`decode` rows: every loader (benchmarks/peers.py) reads the same shards, shuffles, parses the text and decodes the
pictures by the same call, with as many workers. That an epoch of each holds the same pixels is checked first. Each
lives in a process of its own; they take turns, and a turn begins after what was ready before it is used up.
`raw` rows: headers parsed and files found, nothing decoded, against reading the shards from end to end; both find them
in the page cache. `resume` rows: seconds until the first samples are there, at several positions of a large set.
`memory` rows: the most that the processes of the `decode` rows held. One JSON object a line, `ratio` = ours / peer;
figures are medians. Peers: pip install amvl[peers]; without one, its rows say so.
"""

import argparse
import contextlib
import gc
import hashlib
import io
import itertools
import multiprocessing
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from benchmarks.peers import AHEAD, WAYS, Done, missing, tars
from benchmarks.record import RESULTS, Row, emit, row
from data import shards, tar
from data.loader import Loader
from data.reader import Raw, Reader
from data.sample import Sample, Text
from data.shards import WriteOptions
from data.shards.index import OFFSET, OFFSETS, Shard, dump_index
from data.shards.read import parse
from data.stream import DataConfig, Position, Stream

SHARDS = 8
DISTINCT = 128  # pictures; samples take them in turn, under keys of their own
FIRST = 64  # samples to wait for when a run goes on
PER_SHARD = 10_000  # of the large set
TEXT = Text(question="Which colour is the upper half?", answer="green", task="t", source="s")


class Kind(NamedTuple):
    """Pictures of a set."""

    form: str
    sizes: tuple[tuple[int, int], ...]
    turn: float  # samples of a turn, in parts of the set
    group: int  # samples that leave a peer's worker together


KINDS = {
    # COCO's usual sizes; about 115 KB each
    "photos": Kind("JPEG", ((640, 480), (480, 640), (640, 427), (612, 612)), 1 / 8, 4),
    # 3 megapixels; about 1 MB each
    "large": Kind("JPEG", ((2016, 1512), (1512, 2016)), 1 / 16, 2),
    "small": Kind("PNG", ((64, 64),), 2, 32),
}


def picture(kind: Kind, number: int) -> bytes:
    """Smooth patches of colour with coarse noise: as photographs, neither empty nor incompressible."""
    rng = np.random.default_rng(number)
    width, height = kind.sizes[number % len(kind.sizes)]
    coarse = Image.fromarray(rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8))
    noise = Image.fromarray(rng.normal(128, 20, (height // 2, width // 2)).clip(0, 255).astype(np.uint8))
    grain = np.asarray(noise.resize((width, height))).astype(np.int16)[..., None] - 128
    pixels = (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + grain).clip(0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, kind.form, quality=90)
    return out.getvalue()


def write_set(kind: Kind, folder: Path, samples: int) -> None:
    """A shard set of one picture a sample."""
    contents = [picture(kind, n) for n in range(min(DISTINCT, samples))]
    made = (Sample(key=f"{n:08d}", text=TEXT, images=(contents[n % len(contents)],)) for n in range(samples))
    shards.write(made, folder, WriteOptions(per_shard=-(-samples // SHARDS)))


class Contender:
    """A loader in its own process, which keeps it ready between its turns."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, other))
        self._process.start()
        other.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        """What one of `_serve`'s commands returns."""
        self._pipe.send((command, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()


def _serve(name: str, pipe: Connection) -> None:
    """The process of a contender."""
    opened: Iterator[Done] = iter(())

    def open_(folder: Path, workers: int, group: int) -> None:
        nonlocal opened
        opened = iter(())  # ends those before
        gc.collect()
        opened = WAYS[name].open(folder, workers, group, None)
        next(opened)

    def turn(before: int, count: int) -> float:
        """Seconds of `count` samples after `before` others."""
        for _ in itertools.islice(opened, before):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(opened, count):
            pass
        return time.perf_counter() - start

    def epoch(folder: Path, workers: int, group: int) -> dict[str, str]:
        return {done.key: digest(done) for done in WAYS[name].open(folder, workers, group, 1)}

    commands: dict[str, Callable[..., Any]] = {"open": open_, "turn": turn, "epoch": epoch, "memory": peaks}
    with contextlib.suppress(EOFError), contextlib.redirect_stdout(sys.stderr):  # Energon prints
        while True:
            command, arguments = pipe.recv()
            try:
                answer = commands[command](*arguments)
            except Exception as error:
                answer = RuntimeError(f"{name}: {type(error).__name__}: {error}")
            pipe.send(answer)


def digest(done: Done) -> str:
    """Of all pixels and the text."""
    found = hashlib.sha256(done.text["question"].encode())
    for pixels in done.pictures:
        array = np.asarray(pixels)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def peaks() -> tuple[float, float]:
    """The most MB that this process and the largest of its descendants held."""
    own = psutil.Process()
    return _peak(own.pid), max((_peak(other.pid) for other in own.children(recursive=True)), default=0.0)


def _peak(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
    return 0.0


def decode(kind: str, folder: Path, samples: int, workers: list[int], repeats: int) -> list[Row]:
    """Rows of samples a second and of memory."""
    rows: list[Row] = []
    group = KINDS[kind].group
    names = [name for name in WAYS if not missing(name)]
    for count in workers:
        case, contenders = f"decode {kind}, {count} workers", {name: Contender(name) for name in names}
        try:
            check(contenders, folder, count, group)
            for contender in contenders.values():
                contender.ask("open", folder, count, group)
            before = 2 * AHEAD * group * count + 1
            size = max(1, int(samples * KINDS[kind].turn))
            times: dict[str, list[float]] = {name: [] for name in names}
            for number in range(repeats):
                for name in names if number % 2 else reversed(names):
                    times[name].append(contenders[name].ask("turn", before, size))
            rate = {name: size / statistics.median(taken) for name, taken in times.items()}
            held = {name: contender.ask("memory") for name, contender in contenders.items()}
        finally:
            for contender in contenders.values():
                contender.end()
        for name in [name for name in WAYS if name != "ours"]:
            if name not in names:
                rows.append(row(case, rate["ours"], None, name, "samples/s", note=missing(name)))
                continue
            rows.append(row(case, rate["ours"], rate[name], name, "samples/s"))
            for number, process in enumerate(["rank", "worker"][: 1 + bool(count)]):
                what = f"memory of {process}, {kind}, {count} workers"
                rows.append(row(what, held["ours"][number], held[name][number], name, "MB"))
    return rows


def check(contenders: dict[str, Contender], folder: Path, workers: int, group: int) -> None:
    """All of them hand out the same samples in an epoch, once each."""
    wanted: dict[str, str] | None = None
    for name, contender in contenders.items():
        found = contender.ask("epoch", folder, workers, group)
        wanted = found if wanted is None else wanted
        if found != wanted:
            other = sum(found.get(key) != value for key, value in wanted.items())
            raise RuntimeError(f"not the same samples, nothing was timed: {name} differs in {other} of {len(wanted)}")


def raw(folder: Path, repeats: int) -> list[Row]:
    """MB/s of the stream's bytes, with headers parsed, against plain reading."""
    paths = tars(folder)
    total = sum(Path(path).stat().st_size for path in paths)
    stream = Stream(DataConfig(train=str(folder)), 0, 1, 0)
    reader = Reader(stream.sets, stream.source, stream.limits.sample_bytes)

    def ours() -> int:
        size = 0
        for ref in itertools.islice(stream, stream.sets[0].samples):
            content = reader.later(ref)().content
            size += len(content)
            for _ in tar.files(content):
                pass
        return size

    def plain(piece: int) -> int:
        size = 0
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while content := file.read(piece):
                    size += len(content)
        return size

    ways: dict[str, Callable[[], int]] = {"ours": ours, "plain reads of 1 MiB": lambda: plain(2**20)}
    ways["plain reads of whole files"] = lambda: plain(-1)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name in ways if number % 2 else reversed(ways):
            start = time.perf_counter()
            size = ways[name]()
            rates[name].extend([size / 1e6 / (time.perf_counter() - start)] * (number > 0))  # the first warms up
    found = {name: statistics.median(values) for name, values in rates.items()}
    best = max(list(ways)[1:], key=lambda name: found[name])
    case = f"raw, {total / stream.sets[0].samples / 1000:.0f} KB a sample"
    return [row(case, found["ours"], found[best], best, "MB/s")]


class Keys:
    """Work that is none: the key of a sample."""

    def __call__(self, raw: Raw) -> str:
        return parse(raw.content, raw.shard).key

    def lost(self, raw: Raw, why: str) -> str:
        raise RuntimeError(f"{raw.place}: {why}")


def write_large(folder: Path, samples: int) -> None:
    """A set of tiny samples: 1 KB each, written as one array per shard."""
    text = TEXT.model_dump_json().encode()
    block = tar.BLOCK
    header = np.frombuffer(_header("0" * 9 + ".json", len(text)), np.uint8)
    one = np.concatenate([header, np.frombuffer(text.ljust(block, b"\0"), np.uint8)])
    found = []
    for first in range(0, samples, PER_SHARD):
        count = min(PER_SHARD, samples - first)
        digits = np.arange(first, first + count)[:, None] // 10 ** np.arange(8, -1, -1) % 10
        content = np.tile(one, (count, 1))
        content[:, :9] += digits.astype(np.uint8)
        sums = int(header[:148].sum()) + int(header[156:].sum()) + 8 * 32 + digits.sum(1)
        content[:, 148:154] = ord("0") + sums[:, None] // 8 ** np.arange(5, -1, -1) % 8
        content[:, 154:156] = (0, ord(" "))
        name = f"{first // PER_SHARD:06d}.tar"
        whole = content.tobytes() + bytes(2 * block)
        (folder / name).write_bytes(whole)
        (np.arange(count + 1) * 2 * block).astype(OFFSET).tofile(folder / f"{name}{OFFSETS}")
        digest = hashlib.sha256(whole).hexdigest()
        found.append(Shard(shard=name, samples=count, bytes=len(whole), sha256=digest))
    (folder / shards.INDEX).write_bytes(dump_index(found))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def start(folder: str, workers: int, drawn: int) -> float:
    """Seconds until the first samples after so many others are there."""
    began = time.perf_counter()
    stream = Stream(DataConfig(train=folder), 0, 1, 0)
    loader = Loader(stream, Keys(), workers)
    if drawn:
        lanes, each = stream.lanes[0], divmod(drawn, len(stream.lanes[0]))
        turns = {lane.number: each[0] + (n < each[1]) for n, lane in enumerate(lanes)}
        loader.restore([stream.state(Position(turns, [drawn]))])
    keys = [key for _, key in itertools.islice(loader, FIRST)]
    taken = time.perf_counter() - began
    loader.close()
    if len(set(keys)) != len(keys) and drawn % stream.sets[0].samples + FIRST < stream.sets[0].samples:
        raise RuntimeError(f"samples twice within an epoch: {keys}")
    return taken


def resume(samples: int, workers: list[int], repeats: int) -> list[Row]:
    """Seconds to the first samples, at several positions of a large set."""
    places = {"the start": 0, "the middle": samples // 2, "the last sample of an epoch": samples - 1}
    places["the middle of epoch 3"] = samples * 5 // 2
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_large(Path(name), samples)
        for count in workers:
            start(name, count, 0)  # warms up; the server that workers are forked from goes on running
            for place, drawn in places.items():
                taken = statistics.median(start(name, count, drawn) for _ in range(repeats))
                rows.append(row(f"resume at {place} of {samples:,}, {count} workers", taken, None, None, "s"))
            own = f"from benchmarks.stream import start; start({name!r}, {count}, {places['the middle']})"
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", own], check=True)
            what = f"resume in a new process, imports included, {count} workers"
            rows.append(row(what, time.perf_counter() - began, None, None, "s"))
    return rows


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/stream.jsonl")
    parser.add_argument("--cases", nargs="+", default=["decode", "raw", "resume"], help="groups of rows")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="pictures to decode")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that decode")
    parser.add_argument("--samples", type=int, default=2048, help="of a set of pictures")
    parser.add_argument("--large", type=int, default=1_000_000, help="samples of the set to go on in")
    parser.add_argument("--repeats", type=int, default=9, help="turns; 3 at most of `resume`")
    arguments = parser.parse_args(given)
    rows: list[Row] = []

    def add(more: list[Row]) -> None:
        rows.extend(more)
        emit("stream", rows, RESULTS if arguments.save else None, len(rows) - len(more))

    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as name:
            write_set(KINDS[kind], Path(name), arguments.samples)
            if "decode" in arguments.cases:
                for count in arguments.workers:
                    add(decode(kind, Path(name), arguments.samples, [count], arguments.repeats))
            if "raw" in arguments.cases and kind != "small":
                add(raw(Path(name), arguments.repeats))
    if "resume" in arguments.cases:
        add(resume(arguments.large, [n for n in arguments.workers if n != 1], min(3, arguments.repeats)))


if __name__ == "__main__":
    main()
