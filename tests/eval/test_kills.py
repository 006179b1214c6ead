"""An evaluation killed again and again, and gone on with by one process or two: the same predictions."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.results import read_results
from tests.eval.benchmarks.layouts import write_blink
from tests.processes import gone

ROOT = Path(__file__).parents[2]
FEW = {"Counting": 120, "Jigsaw": 150, "Multi-view_Reasoning": 130}


class Evaluation:
    """One command on one set, with a folder of its own."""

    def __init__(self, checkpoint: Path, data: Path, out: Path) -> None:
        self.command = [sys.executable, "eval/run_blink.py", "--checkpoint", checkpoint, "--data", data, "--out", out]
        self.command += ["--prompt", "amvl", "--max-new-tokens", 4, "--tokens", 2000]
        self.out, self.predictions = out, out / "predictions.jsonl"

    def start(self, processes: int | None) -> subprocess.Popen:
        more = ["--processes", processes] if processes else []
        log = (self.out.parent / f"{self.out.name}.log").open("ab")
        command = [str(part) for part in [*self.command, *more]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self, processes: int | None) -> None:
        assert self.start(processes).wait(300) == 0, (self.out.parent / f"{self.out.name}.log").read_text()[-3000:]

    def lines(self) -> list[bytes]:
        """Whole ones."""
        content = self.predictions.read_bytes() if self.predictions.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines()

    def kill(self, processes: int | None, items: int, moment: float) -> int:
        """Start, and kill after so many more items and a moment in seconds. How many items there are then."""
        wanted, program = len(self.lines()) + items, self.start(processes)
        children: list[int] = []
        while len(self.lines()) < wanted and program.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        task = Path(f"/proc/{program.pid}/task/{program.pid}/children")
        if task.exists():
            children = [int(pid) for pid in task.read_text().split()]
        program.kill()  # the program alone: its processes have to see to themselves
        program.wait()
        assert gone(children, 20)
        return len(self.lines())


def check(checkpoint: Path, folder: Path, sizes: dict[str, int] | None, items: int, kills: int) -> None:
    """Kill as often, by one process in this program, one and two of its own in turn; then finish and compare."""
    data = write_blink(folder / "BLINK", "configs", sizes, picture=(40, 30))
    whole, disturbed = (Evaluation(checkpoint, data, folder / name) for name in ("whole", "disturbed"))
    whole.finish(None)
    assert len(whole.lines()) == items
    assert len({json.loads(line)["replies"][0] for line in whole.lines()}) > 20
    rng = random.Random(kills)
    counts = [
        disturbed.kill((2, None, 1)[number % 3], rng.randint(0, items * 4 // 3 // kills), rng.uniform(0, 0.3))
        for number in range(kills)
    ]
    print(f"items after each kill: {counts}")
    assert counts == sorted(counts), "none was lost"
    assert any(0 < count < items for count in counts)
    disturbed.finish(2)
    ids = Counter(json.loads(line)["id"] for line in disturbed.lines())
    assert max(ids.values()) == 1, "none was repeated"
    assert sorted(disturbed.lines()) == sorted(whole.lines())
    assert read_results(disturbed.out / "results.jsonl") == read_results(whole.out / "results.jsonl")


def test_two_kills(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    check(export_of("amvl"), tmp_path, FEW, sum(FEW.values()), kills=2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_kills_of_a_whole_blink(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    check(export_of("amvl"), tmp_path, None, 1901, kills=20)
