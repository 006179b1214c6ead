"""Time of a training step while MLflow is dead, against tracking switched off.

    OMP_NUM_THREADS=1 python -m benchmarks.tracking [--save]

Steps of a small model on as many tokens as in the quickstart (forward, backward, AdamW; one rank), with 30 metrics
after every step, ten times as often as by default. `refuses`: nothing listens where the server should be; `hangs`: a
server takes requests and never answers. The cases take turns in blocks of steps in one process. Every block has a
tracker of its own, so that it sees the first tries to reach the server, which come most often. Figures are medians over
the blocks' medians; `work_ratio` is that of the processor time of all threads, on which other programs have little
influence; `call` is what a call of `metrics` takes. After a block all its events must be in the journal. One JSON
object a line, `ratio` = ours / peer.
"""

import argparse
import logging
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.record import RESULTS, Row, emit, row
from benchmarks.step import equal, model, steps
from model.latent_vlm import LatentVLM
from trainer.journal import Journal
from trainer.tracking import Tracker, TrackingConfig

PROMPT, ANSWER, SLOTS, WIDTH = 112, 16, 4, 128
METRICS = {f"group/metric_{number}": number / 7 for number in range(30)}
OFF = "tracking off"


def training_step(tokens: int) -> Callable[[], None]:
    """One step of a small LatentVLM."""
    built: LatentVLM = model("amvl", SLOTS, width=WIDTH)
    items = equal(max(1, tokens // (PROMPT + ANSWER)), PROMPT, ANSWER)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-5)
    backward = steps({"amvl": built}, [items])["amvl"]

    def step() -> None:
        backward()
        optimizer.step()

    return step


def block(
    config: TrackingConfig, run: Path, step: Callable[[], None], count: int
) -> tuple[list[float], list[float], float]:
    """Seconds of each step, in each call, and of all threads' work. RuntimeError when the journal lacks an event."""
    tracker = Tracker(config, run.parent, run.name, run)
    tracker.begin({"host": "here"}, same=False, step=0)
    whole, calls, before = [], [], time.process_time()
    for number in range(count):
        start = time.perf_counter()
        step()
        called = time.perf_counter()
        tracker.metrics(METRICS, number)
        end = time.perf_counter()
        whole.append(end - start)
        calls.append(end - called)
    work = time.process_time() - before
    tracker.finish()
    if config.enabled:
        journal = Journal(run / "tracking")
        size = journal.path.stat().st_size if journal.path.is_file() else 0
        events = [event for event, _ in journal.read(0, size)] if size else []
        kept = [event["step"] for event in events if event.get("values", {}).keys() == METRICS.keys()]
        if kept != list(range(count)) or events[-1]["kind"] != "finish" or journal.waiting() != len(events):
            raise RuntimeError(f"{journal.path}: of {count} steps it has {len(kept)}")
    return whole, calls, work


def measure(step: Callable[[], None], count: int, repeats: int, folder: Path) -> list[Row]:
    """Both rows."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        refused = f"http://127.0.0.1:{free.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as deaf:  # the system accepts for it
        configs = {
            OFF: TrackingConfig(enabled=False),
            "server refuses": TrackingConfig(uri=refused, patience=1),
            "server hangs": TrackingConfig(uri=f"http://127.0.0.1:{deaf.getsockname()[1]}", patience=1),
        }
        whole: dict[str, list[list[float]]] = {name: [] for name in configs}
        calls: dict[str, list[float]] = {name: [] for name in configs}
        work = dict.fromkeys(configs, 0.0)
        for turn in range(repeats + 1):  # the first warms up
            for name in configs if turn % 2 else reversed(configs):
                taken, called, worked = block(configs[name], folder / f"{name} {turn}", step, count)
                if turn:
                    whole[name].append(taken)
                    calls[name] += called
                    work[name] += worked
    middle = {name: statistics.median(map(statistics.median, blocks)) for name, blocks in whole.items()}
    return [
        row(
            f"{name}, {repeats} x {count} steps",
            *(middle[name], middle[OFF], OFF, "s"),
            work_ratio=work[name] / work[OFF],
            call=statistics.median(calls[name]),
        )
        for name in configs
        if name != OFF
    ]


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/tracking.jsonl")
    parser.add_argument("--steps", type=int, default=40, help="of a block")
    parser.add_argument("--repeats", type=int, default=10, help="blocks of each case")
    parser.add_argument("--tokens", type=int, default=2000, help="of a step")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(training_step(arguments.tokens), arguments.steps, arguments.repeats, Path(folder))
    emit("tracking", rows, RESULTS if arguments.save else None)


if __name__ == "__main__":
    logging.getLogger("trainer").setLevel(logging.ERROR)  # that the server cannot be reached is known
    main()
