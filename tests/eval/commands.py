"""The commands of the evaluator in this process, on small benchmarks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.eval.benchmarks.layouts import Record, jpeg, write_tsv

FILES = {"predictions.jsonl", "results.jsonl", "scores.json", "scores.md", "report.html"}
TASKS = {"Counting": 8, "Jigsaw": 8, "Relative_Reflectance": 6}  # of BLINK, and their items


def call(main: Callable[[], None], *arguments: object) -> int:
    """A command with these arguments. Returns its exit code."""
    with mock.patch.object(sys, "argv", ["command", *map(str, arguments)]):
        try:
            main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[], None], *arguments: object) -> str:
    """The one line that a command ends with, with exit code 2 and nothing on stdout but warnings of the data."""
    capsys.readouterr()
    assert call(main, *arguments) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "Loading weights" not in line]
    assert all(other.startswith("warning: ") for other in said.out.splitlines()) and line.startswith("error: ")
    return line.removeprefix("error: ")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]


def scores_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return found


def check(out: Path, n: int) -> dict[str, Any]:
    """All files are there and agree with each other. Returns the scores."""
    assert {path.name for path in out.iterdir()} - {"judge.jsonl"} == FILES
    results, scores = lines_of(out / "results.jsonl"), scores_of(out)
    assert len(results) == len({r["key"] for r in results}) == scores["n"] == n
    said: dict[str, list[dict[str, Any]]] = {}
    for prediction in lines_of(out / "predictions.jsonl"):
        said.setdefault(prediction["key"], []).append(prediction)
    for result in results:
        found = [(p.get("replies", []), p.get("finish", []), p.get("scores")) for p in said[result["key"]]]
        assert (result["replies"], result["finish"], result["scores"]) in found
        assert result["correct"] is (result["answer"] == result["label"])
    for name, task in scores["tasks"].items():
        group = [r for r in results if r["task"] == name]
        assert (task["n"], task["correct"]) == (len(group), sum(r["correct"] for r in group))
        assert 0 <= task["low"] <= task["accuracy"] <= task["high"] <= 1
    assert sum(task["n"] for task in scores["tasks"].values()) == n
    assert scores["micro"]["value"] == pytest.approx(sum(r["correct"] for r in results) / n)
    page, table = (out / "report.html").read_text(), (out / "scores.md").read_text()
    assert all(name in page and f"| {name} |" in table for name in scores["tasks"])
    return scores


def small_tsv(file: Path, n: int = 12) -> Path:
    """A TSV of multiple choice, its last row an open question."""
    import base64

    rows: list[Record] = [
        {
            "index": number,
            "image": base64.b64encode(jpeg(48, 32, number)).decode(),
            "question": f"Which one is it in {number}?",
            **{letter: f"{letter.lower()} thing" if number < n - 1 else "" for letter in "ABCD"},
            "answer": "ABCD"[number % 4] if number < n - 1 else "two",
            "category": ("left", "right")[number % 2],
        }
        for number in range(n)
    ]
    return write_tsv(file, rows)
