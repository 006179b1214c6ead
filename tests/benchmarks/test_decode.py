"""The benchmark of reading pictures runs, on small ones; both sides do the same where the rules ask for no more."""

import json

import numpy as np
import pytest

from benchmarks import decode

ROW = ["case", "ours", "peer", "peer_name", "ratio", "unit"]


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main(["--sides", "32", "48", "--repeats", "1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [list(row) for row in rows] == [ROW] * (2 * 2 * len(decode.FORMS))
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) and row["ours"] > 0 for row in rows)
    assert rows[0]["case"].startswith("read JPEG, 32 x 32, ") and rows[1]["case"].startswith("encode JPEG, 32 x 32, ")


@pytest.mark.parametrize("form", decode.FORMS)
def test_both_sides_read_the_same_picture(form: str) -> None:
    content = decode.encoded(form, 40)
    ours, plain = np.asarray(decode.decode(content, "")), np.asarray(decode.plain(content))
    if form == "JPEG, turned":
        plain = np.rot90(plain, -1)
    assert np.array_equal(ours, plain) == (form != "PNG, alpha")


def test_medians_are_of_one_call() -> None:
    calls: list[str] = []
    times = decode.milliseconds([lambda: calls.append("ours"), lambda: calls.append("peer")], calls=2, repeats=3)
    there, back = ["ours", "ours", "peer", "peer"], ["peer", "peer", "ours", "ours"]
    assert calls == [*back, *there] * 2  # the first turn warms up
    assert all(0 < time < 100 for time in times)
