"""The command line without the launcher: help, dry run, and bad input in one line with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import checkpoint

ROOT = Path(__file__).parents[2]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "trainer/main.py", *map(str, arguments)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": path} | environment, timeout=300
    )


def overrides(tmp_path: Path, shards: Path, backbone: Path, **more: object) -> list[str]:
    values = {"run.folder": tmp_path / "runs", "data.train": shards, "model.folder": backbone, "train.steps": 2}
    return [f"{key}={value}" for key, value in (values | more).items()]


def refused(tmp_path: Path, *arguments: object) -> str:
    """The one line of a run that must be refused, having written nothing but the names of bad samples."""
    before = files(tmp_path)
    done = run("configs/quickstart.yaml", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert files(tmp_path) == before
    return lines[0]


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name != "quarantine")


def test_help_answers_at_once():
    start = time.perf_counter()
    done = run("--help")
    assert time.perf_counter() - start < 2
    assert "--dry-run" in done.stdout


def test_help_imports_no_torch():
    check = """
import runpy, sys
sys.argv = ["main.py", "--help"]
try:
    runpy.run_path("trainer/main.py", run_name="__main__")
except SystemExit:
    assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True).returncode == 0


def test_print_config_shows_the_overrides():
    done = run("configs/quickstart.yaml", "train.steps=77", "--print-config")
    assert done.returncode == 0
    assert "steps: 77" in done.stdout


def test_dry_run_prints_sizes_and_writes_nothing(tmp_path: Path, tiny_shards: Path, tiny_backbone: Path):
    done = run("configs/quickstart.yaml", *overrides(tmp_path, tiny_shards, tiny_backbone), "--dry-run")
    assert done.returncode == 0, done.stderr
    config = json.loads((tiny_backbone / "config.json").read_text())
    embedding = config["text_config"]["vocab_size"] * config["text_config"]["hidden_size"]
    parameters = int(done.stdout.split("parameters: ")[1].split()[0].replace(",", ""))
    assert 2 * embedding < parameters < 2_000_000
    for words in ("first batch: ", "memory per rank on one rank on this machine's CPU", "activations", "peak"):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (["--gpus", "0"], "--gpus 0: at least 1"),
        (["--gpu", "h1000"], "--gpu 'h1000': not a known kind; the kinds are a100, h100, h200"),
        (["--memory", "80"], "--memory '80': write a number and GiB, GB, MiB, e.g. 80GiB"),
        (["--gpus", "1", "--memory", "1MiB"], "do not fit into 1 MiB (1 x h100 of 1 MiB)"),
    ],
)
def test_a_dry_run_elsewhere_is_refused(
    tmp_path: Path, tiny_shards: Path, tiny_backbone: Path, target: list[str], words: str
):
    assert words in refused(tmp_path, *overrides(tmp_path, tiny_shards, tiny_backbone), "--dry-run", *target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.train": "no/such/set"}, "no/such/set: no shard set (no index.json)"),
        ({"model.folder": "no/such/model"}, "no/such/model"),
        ({"train.tokens": 20}, "more than the budget of 20"),
        ({"deepspeed.file": "no/such.json"}, "no/such.json"),
        ({"objective.beta": -1}, "objective.beta"),
    ],
)
def test_bad_settings(tmp_path: Path, tiny_shards: Path, tiny_backbone: Path, change: dict[str, object], words: str):
    assert words in refused(tmp_path, *overrides(tmp_path, tiny_shards, tiny_backbone, **change))


def test_a_damaged_shard_is_named(tmp_path: Path, tiny_shards: Path, tiny_backbone: Path):
    damaged = tmp_path / "shards"
    shutil.copytree(tiny_shards, damaged)
    for shard in damaged.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        for start in range(len(content)):
            if content[start : start + 4] == b"IHDR":
                content[start : start + 4] = b"XXXX"
        shard.write_bytes(content)
    message = refused(tmp_path, *overrides(tmp_path, damaged, tiny_backbone))
    assert ".tar: " in message
    assert "not a whole picture" in message


def test_a_folder_of_another_config_is_refused(tmp_path: Path, tiny_shards: Path, tiny_backbone: Path):
    settings = overrides(tmp_path, tiny_shards, tiny_backbone)
    other = run("configs/quickstart.yaml", *settings, "--print-config").stdout.replace("lr: 0.0007", "lr: 0.5", 1)
    part = checkpoint.folder_of(tmp_path / "runs" / "quickstart", 2).with_suffix(checkpoint.PART)
    part.mkdir(parents=True)
    (part / "config.yaml").write_text(other)
    checkpoint.write_files(part, {}, rank=0, stream={})
    checkpoint.mark(part, {"step": 2, "ranks": 1})
    message = refused(tmp_path, *settings)
    assert "train.lr is 0.5 in step_2 and 0.0007 here; go on with the change by run.accept=[train.lr]" in message
    assert "there is no key 'train.lrr'; the nearest is 'train.lr'" in refused(
        tmp_path, *settings, "run.accept=[train.lrr]"
    )
