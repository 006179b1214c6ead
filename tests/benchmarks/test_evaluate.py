"""The benchmarks of the evaluator run, on few items and a small model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_answers_are_those_of_transformers(export_of: Callable[[str], Path]) -> None:
    """It ends in an error where they are not."""
    few = ("--items", 9, "--long", 5, "--some", 3, "--repeats", 1)
    rows = rows_of("benchmarks.evaluate", "--checkpoint", export_of("amvl"), *few)
    cases = [row["case"] for row in rows]
    for latents in ("off", "mean"):
        assert sum(case.startswith(f"generate, latents {latents}, natural replies") for case in cases) == 2
        assert f"generate, latents {latents}, long replies of 5 tokens, one process" in cases
        assert f"score of 4 options, latents {latents}, the model alone" in cases
    assert cases.count("score, latents mean") == 2
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) and row["ours"] > 0 for row in rows)


def test_that_of_the_gpu_runs_on_a_cpu() -> None:
    rows = rows_of("benchmarks.gpu_evaluate", "--tiny", "--items", 4, "--reply", 3)
    agreed = next(row for row in rows if row["case"].startswith("two layers, fp32"))
    assert agreed["ratio"] < 1
    assert sum(row["ours"] is not None for row in rows) == 7
