"""The command, from a file of a source to a set of shards."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import shards
from data.convert.__main__ import SOURCES
from tests.data.convert.support import array, folder_of


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_is_quick_and_names_all_sources() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = cli("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0 and all(name in done.stdout for name in SOURCES)
    assert min(times) < 1


def test_help_imports_no_library() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['x', '-h']\n"
        "try: runpy.run_module('data.convert', run_name='__main__')\n"
        "except SystemExit: print(*[m for m in ('torch', 'numpy', 'PIL', 'pydantic', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_no_source() -> None:
    assert cli().returncode == 2 and cli("unknown").returncode == 2


@pytest.mark.parametrize("source", SOURCES)
def test_help_of_a_source(source: str) -> None:
    done = cli(source, "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--out" in done.stdout


def talk(image: str, answer: str) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def test_from_a_file_to_shards(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", *(f"{n}.png" for n in range(20)))
    path = array(tmp_path / "vqa.json", *(talk(f"{n}.png", str(n)) for n in range(20)))
    done = cli("llava", path, "--images", images, "--out", tmp_path / "set")
    assert (done.returncode, done.stderr) == (0, "") and "20 samples" in done.stdout
    samples = list(shards.read_set(tmp_path / "set"))
    assert sorted(s.key for s in samples) == [f"vqa-{n:09d}" for n in range(20)]
    assert {s.text.answer: s.images[0] for s in samples} == {
        str(n): (images / f"{n}.png").read_bytes() for n in range(20)
    }


def test_a_broken_row_ends_it_in_one_line(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", "0.png")
    path = array(tmp_path / "vqa.json", talk("0.png", "a"), talk("1.png", "b"))
    done = cli("llava", path, "--images", images, "--out", tmp_path / "set")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and f"{path}: row 2: no picture '1.png'" in line
