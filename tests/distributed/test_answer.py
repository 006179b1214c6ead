"""Two ranks that share one model under ZeRO-3 answer as one process does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import puzzles, shards
from data.shards import WriteOptions
from eval import run_interventions
from eval.intervention_table import ARMS
from eval.models import find_model
from eval.predictions import unpack
from eval.results import read_results
from eval.workers import Workers
from tests.distributed.answer_ranks import CASES, ITEMS, plan, todo_of
from tests.distributed.zygote import free_port
from tests.eval.commands import call, small_tsv

ROOT = Path(__file__).parents[2]


def launch(*command: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    deepspeed = [
        str(Path(sys.executable).with_name("deepspeed")),
        f"--num_gpus={ranks}",
        f"--master_port={free_port()}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*deepspeed, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def shared(
    export_of: Callable[[str], Path], tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What two ranks found, by case."""
    out = tmp_path_factory.mktemp("answers") / "out.json"
    done = launch("--module", "tests.distributed.answer_ranks", out, tiny_shards, export_of("amvl"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_ranks_answer_as_one_process(case: str, shared, export_of: Callable[[str], Path], tiny_shards: Path) -> None:
    model = find_model(export_of("amvl"))
    settings, batches = plan(model, str(tiny_shards), case)
    todo = todo_of(batches)
    assert len(todo) > 4
    alone = {p.id: p for found in Workers(model, settings).run(batches, todo) for p in found}
    assert set(shared[case]) == set(alone) == {job.id for number in todo for job in batches[number]}
    failed = 0
    for name, one in alone.items():
        other = shared[case][name]
        assert (other["replies"], other["finish"], other["failed"]) == (list(one.replies), list(one.finish), one.failed)
        failed += one.failed is not None
        if one.scores is not None:
            assert other["scores"] == pytest.approx(one.scores, abs=1e-5, rel=1e-6)
        assert (other["prior"] is None) == (one.prior is None)
        if one.prior is not None:
            assert unpack(other["prior"], model.slots).allclose(unpack(one.prior, model.slots), atol=1e-5)
    assert failed == 1
    assert len({(*p.replies, *(p.scores or ()), p.prior) for p in alone.values()}) > ITEMS / 3


def test_interventions_under_the_launcher(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    """All ranks make the same latents of the same means; one table, that of one process."""
    data = small_tsv(tmp_path / "small.tsv", 7)
    own = ["eval/run_interventions.py", "tsv", "--checkpoint", export_of("amvl"), "--data", data, "--max-new-tokens", 3]
    done = launch(*own, "--out", tmp_path / "two", "--tokens", 300, "--zero3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report: ") == done.stdout.count("kept: ") == 1
    assert call(run_interventions.main, *own[1:], "--out", tmp_path / "one") == 0
    for arm in ARMS:
        results = [read_results(tmp_path / name / arm / "results.jsonl") for name in ("two", "one")]
        assert results[0] == results[1] and len(results[0]) == 7


def test_all_ranks_are_refused_what_the_first_is(shared: dict[str, Any]) -> None:
    assert shared["refused"] == ["nothing there; look elsewhere"] * 2


def test_the_command_under_the_launcher(export_of: Callable[[str], Path], tiny_shards: Path, tmp_path: Path) -> None:
    """One table, one page, the results of one process; and a mistake is said once."""
    items = puzzles.stream(("counting", "jigsaw"), "heldout", 12)
    shards.write(items, tmp_path / "set", WriteOptions(per_shard=6))
    own = ["eval/run_shards.py", "--checkpoint", export_of("amvl"), "--data", tmp_path / "set", "--train", tiny_shards]
    done = launch(*own, "--out", tmp_path / "two", "--tokens", 300, "--zero3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("micro (official)") == done.stdout.count("report: ") == 1
    alone = subprocess.run([sys.executable, *map(str, own), "--out", tmp_path / "one"], cwd=ROOT, capture_output=True)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert read_results(tmp_path / "two" / "results.jsonl") == read_results(tmp_path / "one" / "results.jsonl")
    wrong = launch(*own, "--zero3", "--processes", 2)
    assert wrong.returncode != 0
    assert wrong.stderr.count("error: zero3 runs in the ranks that deepspeed started; leave out processes") == 1


def test_without_the_launcher(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "eval/run_shards.py", "--checkpoint", export_of("amvl"), "--data", tmp_path, "--zero3"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "error: --zero3: no ranks; start it with deepspeed, e.g. deepspeed eval/run_blink.py --zero3 ..." in done.stderr
    )
