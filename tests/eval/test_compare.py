"""The command that compares two evaluations: what it prints and writes, and its faults in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.item import Labels
from eval.compare import main
from eval.paired import Comparison, Counts, compare
from eval.results import Result, write_results
from eval.scores import score
from tests.eval.test_paired import runs
from tests.eval.test_scores import benchmark

ROOT = Path(__file__).parents[2]
TASKS = {"easy": Counts(4, 1, 3, 0), "hard|er": Counts(0, 1, 1, 0)}

Run = Callable[..., tuple[int, str, str]]


def evaluation(folder: Path, results: list[Result], told: dict[str, Any] | None = None, **more: Any) -> Path:
    folder.mkdir()
    write_results(folder / "results.jsonl", results)
    scores = score(benchmark(results, **more), results, told or {})
    (folder / "scores.json").write_text(scores.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval/compare.py", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    a, b = runs(TASKS)
    told = {"prompt": "p-1", "dtype": "bfloat16", "latents": 4}
    other = {"prompt": "p-2", "dtype": "bfloat16", "pixels": 256}
    return evaluation(tmp_path / "a", a, told), evaluation(tmp_path / "b", b, other)


def test_as_a_script(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """From another folder, where neither `eval` nor its modules may be mistaken for others."""
    line = [sys.executable, ROOT / "eval/compare.py", *folders, "--json", "found.json", "--draws", "500", "--seed", "3"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = Comparison.model_validate_json((tmp_path / "found.json").read_text())
    assert found == compare(*runs(TASKS), official="macro", draws=500, seed=3)
    assert found.verdict in done.stdout.splitlines() and found.caution in done.stdout.splitlines()


def test_what_is_printed(folders: tuple[Path, Path], command: Run) -> None:
    code, out, _ = command(*folders)
    lines = out.splitlines()
    assert code == 0 and lines[:2] == [f"A: {folders[0]}", f"B: {folders[1]}"]
    assert lines[2:5] == [
        "note: latents differs: A 4, B (not set)",
        "note: pixels differs: A (not set), B 256",
        "note: prompt differs: A p-1, B p-2",
    ]
    cells = [" ".join(line.split()) for line in lines[5:10]]
    assert cells[0] == "points n A B B - A 95 % only A only B p p (Holm) detectable"
    # p: easy 2 (1 + 4) / 2^4, all 2 (1 + 6 + 15) / 2^6;
    # detectable: 2.8 sqrt(4/8 / 8) = 70.0 and 2.8 sqrt(2/2 / 2) = 198.0 points, and 2.8 sqrt(6/10 / 10) = 68.6
    assert cells[1] == "easy 8 62.50 87.50 +25.00 1 3 0.62 1 70.0"
    assert cells[2] == "hard|er 2 50.00 50.00 +0.00 1 1 1 1 198.0"
    assert cells[3].startswith("macro (official) 10 56.25 68.75 +12.50 [")
    assert cells[4].startswith("micro 10 60.00 80.00 +20.00 [") and cells[4].endswith("] 2 4 0.69 68.6")
    assert lines[10] == "both right 4, neither 0"


def test_results_without_scores(folders: tuple[Path, Path], command: Run) -> None:
    """By file, with scores.json beside both used, and without them a note."""
    files = [folder / "results.jsonl" for folder in folders]
    code, out, _ = command(*files)
    assert code == 0 and "note: prompt differs" in out and "macro (official)" in out
    (folders[1] / "scores.json").unlink()
    code, out, _ = command(*files)
    assert code == 0 and "note: no scores.json beside both results" in out and "micro (official)" in out


def test_common(tmp_path: Path, command: Run) -> None:
    a, b = runs(TASKS)
    folders = evaluation(tmp_path / "a", a), evaluation(tmp_path / "b", b[1:])
    code, out, err = command(*folders)
    assert (code, out) == (2, "") and err.startswith("error: A has 1 items that B lacks and B has 0")
    code, out, _ = command(*folders, "--common")
    assert code == 0 and "left out: 1 items that only A has, 0 that only B has" in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "visual_puzzles"}, "benchmark blink, but"),
        ({"split": "test"}, "split val, but"),
        ({"labels": Labels("ba9876543210", "2025-09")}, "label set 0123456789ab, but"),
    ],
)
def test_other_questions_are_refused(tmp_path: Path, command: Run, more: dict[str, Any], said: str) -> None:
    a, b = runs(TASKS)
    code, out, err = command(evaluation(tmp_path / "a", a), evaluation(tmp_path / "b", b, **more))
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and said in err


def test_faults_are_one_line(folders: tuple[Path, Path], tmp_path: Path, command: Run) -> None:
    a, b = folders
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.json").write_text(json.dumps({"all": 1}))
    for arguments, said in (
        ((a, tmp_path / "absent"), "absent: cannot be read"),
        ((a, tmp_path), "scores.json: cannot be read"),
        ((a, tmp_path / "broken"), "not the scores of an evaluation"),
        ((a, b / "scores.json"), "not results of an evaluation"),
        ((a, b, "--json", tmp_path / "no" / "file"), "--json"),
    ):
        code, _, err = command(*arguments)
        assert (code, err.count("\n")) == (2, 1) and err.startswith("error: ") and said in err
    for arguments in ((a, b, "--draws", "99"), (a, b, "--draws", "1000001"), (a, b, "--seed", "-1"), (a,)):
        code, _, err = command(*arguments)
        assert code == 2 and "error: " in err
