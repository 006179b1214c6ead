"""The saving benchmark runs, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.saving", "--width", "64", "--layers", "2", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["case"].split(",")[0] for row in rows] == ["in the background", "at once"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)
    assert rows[0]["ours"] <= rows[0]["until_complete"]
