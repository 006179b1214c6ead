"""The benchmark of reinforcement learning runs, on small shapes; it refuses to time updates that are not the same."""

import json

import pytest

from benchmarks import rl


def test_every_way_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    rl.main(["--prompt", "40", "--answer", "5", "--completions", "3", "--slots", "2", "--repeats", "1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["peer_name"] for row in rows] == ["separate sequences", "transformers", "one by one", "transformers"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) and row["ours"] > 0 for row in rows)
    assert all(row["gradients"] <= 1e-5 for row in rows[:2])


def test_other_updates_are_not_timed() -> None:
    """Weights that differ between the ways would make the figures meaningless."""
    model = rl.shapes.model("amvl", 2, width=128, kind=rl.Policy)
    ways = rl.updates(model, rl.groups(1, 20, 2, 4))
    assert rl.check(ways) <= 1e-5
    ways["ours"].args[0].prior.outer.bias.data.add_(0.1)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="not the same update"):
        rl.check(ways)
