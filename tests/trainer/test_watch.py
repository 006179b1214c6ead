"""Three real ranks that wait for each other: who is named when one fails or stands still, and that all end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.zygote import ROOT, free_port
from trainer.monitor import Rank, suspects

WAITING = {"MainThread": '  File ".../torch/distributed/distributed_c10d.py", line 1, in barrier\n    work.wait()\n'}
WORKING = {"MainThread": '  File ".../data/pack.py", line 1, in __next__\n    self._draw()\n'}


def ranks(how: str, folder: Path) -> tuple[list[int], list[str]]:
    """(exit codes, outputs) of three of them."""
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_SIZE": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.watched", how, str(folder)],
            cwd=ROOT,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def test_a_rank_that_fails_is_named_and_the_others_end(tmp_path: Path):
    codes, outputs = ranks("fails", tmp_path)
    assert codes == [1, 1, 1]
    assert "the run ends: rank 2 (" in outputs[0] and "failed: ValueError: this one is to blame" in outputs[0]


@pytest.mark.parametrize(
    ("how", "words"), [("data", "is still at step 7, data"), ("sleeps", "is not in a collective, as the others are")]
)
def test_a_rank_that_stands_still_is_named_with_the_stacks_of_all(tmp_path: Path, how: str, words: str):
    codes, outputs = ranks(how, tmp_path)
    assert codes == [1, 1, 1]
    assert "watch: no rank got further for 2 s; rank 1 (" in outputs[0] and words in outputs[0]
    stacks = (tmp_path / "step_7.txt").read_text()
    assert stacks.count("===== ") == 2, "ranks 0 and 2 wait at the same place"
    assert "time.sleep(60)" in stacks and "barrier" in stacks


def test_a_long_save_is_no_stall(tmp_path: Path):
    codes, outputs = ranks("saves", tmp_path)
    assert codes == [0, 0, 0]
    assert all("watch: " not in output and "well" in output for output in outputs)


def test_a_long_rollout_is_no_stall_and_a_stop_reaches_all_ranks(tmp_path: Path):
    """Token by token it gets further; then one rank is told to stop."""
    codes, outputs = ranks("draws", tmp_path)
    assert codes == [0, 0, 0]
    assert all("watch: " not in output and "stops and well" in output.replace("\n", " and ") for output in outputs)


def test_a_rollout_that_stands_still_is_named(tmp_path: Path):
    codes, outputs = ranks("rollout", tmp_path)
    assert codes == [1, 1, 1]
    assert "watch: no rank got further for 2 s; rank 1 (" in outputs[0] and "is still at step 7, rollout" in outputs[0]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Rank(1, "b", 2, (5, "step", 0), stacks={}), "does not answer"),
        (Rank(1, "b", 2, (4, "save", 0), stacks=WORKING), "is still at step 4, save"),
        (Rank(1, "b", 2, (5, "step", 0), stacks=WORKING), "is not in a collective"),
        (Rank(1, "b", 2, (5, "step", -1), stacks=WORKING), "is not in a collective"),  # ranks draw at their own pace
    ],
)
def test_who_keeps_the_others_waiting(second: Rank, words: str):
    others = [Rank(number, "a", 1, (5, "step", 0), stacks=WAITING) for number in (0, 2)]
    late, why = suspects([others[0], second, others[1]])
    assert late == [second] and words in why
    assert suspects(others) == (others, "are all at the same place")
