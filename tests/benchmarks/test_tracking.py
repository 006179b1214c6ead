"""The tracking benchmark runs, on small shapes, and finds out when an event is lost."""

import json
from pathlib import Path

import pytest

from benchmarks import tracking
from trainer.tracking import TrackingConfig

ROW = ["case", "ours", "peer", "peer_name", "ratio", "unit", "work_ratio", "call"]


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    tracking.main(["--steps", "3", "--repeats", "1", "--tokens", "130"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [list(row) for row in rows] == [ROW] * 2
    assert [row["case"].split(",")[0] for row in rows] == ["server refuses", "server hangs"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)
    assert all(0 < row["call"] < row["ours"] for row in rows)


def test_an_event_that_is_lost_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run" / "tracking" / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="of 2 steps it has 0"):
        tracking.block(TrackingConfig(patience=1), tmp_path / "run", lambda: None, 2)
