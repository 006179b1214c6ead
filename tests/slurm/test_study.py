"""slurm/study.sh on a real Slurm: preparation, an array of jobs, the report, in this order, whatever stops a job."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT

STAND_IN = '''
"""Stands where the study would: says what it was asked for. The preparation and job 2 stop at their first start, as
before a time limit."""
import json, os, sys
what = sys.argv[1]
if what == "list":
    print("\\n".join(f"{n} job-{n}" for n in (0, 2, 5)))
    sys.exit()
restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
with open("log.jsonl", "a") as log:
    facts = {name: os.environ[name] for name in ("SLURM_JOB_ID", "OMP_NUM_THREADS", "MASTER_PORT")}
    log.write(json.dumps({"arguments": sys.argv[1:], "restarts": restarts} | facts) + "\\n")
sys.exit(75 if (what == "prepare" or sys.argv[1:3] == ["job", "2"]) and not restarts else 0)
'''


@pytest.fixture
def place(slurm: Cluster, tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    study = tmp_path / "benchmarks" / "study"
    study.mkdir(parents=True)
    (study / "__main__.py").write_text(STAND_IN)
    for folder in (study, study.parent):
        (folder / "__init__.py").touch()
    return tmp_path


def said(place: Path) -> list[dict[str, Any]]:
    log = place / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_all_of_it_in_order(slurm: Cluster, place: Path):
    """What was stopped runs again, each step waits for the one before, and a preparation has the GPU to itself."""
    words = ["slurm/study.sh", "--cpus-per-task=2", "--", "--out", "runs/elsewhere"]
    answer = subprocess.run(words, cwd=place, env=slurm.environment, capture_output=True, text=True, check=True).stdout
    assert "(0,2,5)" in answer
    report = answer.split("report ")[1].strip()
    output = "".join(path.read_text() for path in place.glob("slurm-*.out"))
    assert slurm.ended(report)["JobState"] == "COMPLETED", output
    starts = said(place)
    asked = [start["arguments"] for start in starts]
    assert asked[:2] == [["prepare", "--parallel", "1", "--out", "runs/elsewhere"]] * 2
    assert asked[-1] == ["report", "--out", "runs/elsewhere"] and "error" not in output
    jobs = sorted((a[1], start["restarts"]) for a, start in zip(asked, starts, strict=True) if a[0] == "job")
    assert jobs == [("0", 0), ("2", 0), ("2", 1), ("5", 0)]
    assert all(a[2:] == ["--out", "runs/elsewhere"] for a in asked if a[0] == "job")
    assert {start["OMP_NUM_THREADS"] for start in starts} == {"2"}
    ports = [start["MASTER_PORT"] for start in starts if start["restarts"] == 0]
    assert len(set(ports)) == len(ports), "jobs that share a node must not meet"


def test_away_from_the_repository(slurm: Cluster, tmp_path: Path):
    script = shutil.copy(ROOT / "slurm" / "study.sh", tmp_path / "study.sh")
    job = slurm.submit(tmp_path, "sbatch", "--parsable", "--array=0-0", os.fspath(script))
    slurm.ended(job)
    output = "".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
    assert "is not the repository: submit from its root" in output
