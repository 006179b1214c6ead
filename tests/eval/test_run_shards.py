"""The evaluation command: what it writes agrees with itself, and its faults are one line."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data import puzzles, shards
from data.shards import WriteOptions
from eval.run_shards import main
from trainer.tracking import Tracker, TrackingConfig, store_uri

ROOT = Path(__file__).parents[2]
ITEMS = 24


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "eval/run_shards.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out puzzles of three kinds, one of which is not in the small training set."""
    folder = tmp_path_factory.mktemp("heldout") / "shards"
    shards.write(
        puzzles.stream(("counting", "jigsaw", "rotation"), "heldout", ITEMS), folder, WriteOptions(per_shard=10)
    )
    return folder


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process. Returns its exit code."""

    def command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["eval/run_shards.py", *map(str, arguments)])
        try:
            main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    return command


def check(out: Path, folder: Path) -> dict:
    """Predictions, scores and report agree with each other and with the data. Returns the scores."""
    items = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    samples = {s.key: s for s in shards.read_set(folder)}
    assert {item["key"] for item in items} == set(samples) and len(items) == len(samples)
    for item in items:
        assert item["correct"] is (item["reply"] == samples[item["key"]].text.answer)
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores) == {"all"} | {item["task"] for item in items}
    for task, score in scores.items():
        group = [item for item in items if task in ("all", item["task"])]
        assert score["n"] == len(group)
        assert score["accuracy"] == sum(item["correct"] for item in group) / len(group)
        assert score["gain"] == pytest.approx(score["accuracy"] - score["blind"])
        assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
        assert score["gain_low"] <= score["gain"] <= score["gain_high"]
    assert (scores["counting"]["chance"], scores["jigsaw"]["chance"]) == (0.25, 0.5)
    page = (out / "report.html").read_text()
    assert all(f"<h2>{task}</h2>" in page for task in scores if task != "all")
    return scores


def test_command_on_an_export(
    export_of: Callable[[str], Path], heldout: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--checkpoint", export_of("amvl"), "--data", heldout, "--train", tiny_shards, "--out", out]
    first = run(*arguments, "--tokens", 900)
    assert first.returncode == 0, first.stderr
    scores = check(out, heldout)
    lines = first.stdout.splitlines()
    assert lines[0].split()[:3] == ["task", "n", "accuracy"]
    assert [line.split()[:2] for line in lines[1:5]] == [[name, str(s["n"])] for name, s in scores.items()]
    assert lines[5] == f"report: {out / 'report.html'}"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"predictions.jsonl", "scores.json", "report.html"}
    second = run(*arguments, "--tokens", 300)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_missing_checkpoint(tmp_path: Path) -> None:
    done = run("--checkpoint", tmp_path / "nowhere", "--data", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: neither an export nor a run with one; make one with")


@pytest.fixture
def trained(export_of: Callable[[str], Path], tiny_shards: Path, heldout: Path, tmp_path: Path) -> Path:
    """A run folder with two exports, as training leaves it."""
    folder = tmp_path / "runs" / "one"
    (folder / "export").mkdir(parents=True)
    for step, objective in ((900, "sft"), (1000, "amvl")):
        (folder / "export" / f"step_{step}").symlink_to(export_of(objective))
    (folder / "config.yaml").write_text(f"data:\n  train: [{{folder: {tiny_shards}}}]\n  heldout: {heldout}\n")
    tracker = Tracker(TrackingConfig(patience=60), tmp_path / "runs", "one", folder)
    tracker.finish()
    uri = store_uri(TrackingConfig(), tmp_path / "runs")
    export = str(folder / "export" / "step_1000")
    summary = {"steps": 1000, "export": export, "mlflow_run_id": tracker.run_id, "mlflow_uri": uri}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_command_on_a_run(trained: Path, heldout: Path, inside: Callable[..., int]) -> None:
    """Its newest export, its own sets, its summary and its MLflow run."""
    before = json.loads((trained / "summary.json").read_text())
    assert inside("--checkpoint", trained, "--started", 1.0) == 0
    scores = check(trained / "eval" / "step_1000", heldout)
    summary = json.loads((trained / "summary.json").read_text())
    assert before.items() <= summary.items()
    assert {name: summary[name] for name in ("accuracy", "blind", "chance", "n")}.items() <= scores["all"].items()
    assert summary["by_task"] == {name: score for name, score in scores.items() if name != "all"}
    assert summary["wall_seconds"] > 1e9

    from mlflow import MlflowClient

    client = MlflowClient(summary["mlflow_uri"])
    metrics = client.get_run(summary["mlflow_run_id"]).data.metrics
    wanted = {f"eval/{task}/{name}": score[name] for task, score in scores.items() for name in ("accuracy", "blind")}
    assert metrics == pytest.approx(wanted)
    (history,) = client.get_metric_history(summary["mlflow_run_id"], "eval/all/accuracy")
    assert history.step == 1000
    artifacts = {file.path for file in client.list_artifacts(summary["mlflow_run_id"], "eval/step_1000")}
    assert artifacts == {f"eval/step_1000/{name}" for name in ("scores.json", "report.html", "summary.json")}
    wall = summary["wall_seconds"]
    assert inside("--checkpoint", trained, "--started", 1000.0) == 0
    assert json.loads((trained / "summary.json").read_text())["wall_seconds"] == wall, "of the first time"


def test_an_older_export_leaves_the_summary_alone(trained: Path, heldout: Path, inside: Callable[..., int]) -> None:
    """Its scores go beside it and to its own step of the MLflow run."""
    before = (trained / "summary.json").read_text()
    export = trained / "export" / "step_900"
    assert inside("--checkpoint", export, "--data", heldout, "--max-new-tokens", 2) == 0
    check(trained / "eval" / "step_900", heldout)
    assert (trained / "summary.json").read_text() == before

    from mlflow import MlflowClient

    summary = json.loads(before)
    client = MlflowClient(summary["mlflow_uri"])
    (history,) = client.get_metric_history(summary["mlflow_run_id"], "eval/all/accuracy")
    assert history.step == 900


@pytest.mark.parametrize("never", [True, False])
def test_mlflow_that_is_down_takes_nothing_from_an_evaluation(
    trained: Path, heldout: Path, inside: Callable[..., int], capsys: pytest.CaptureFixture[str], never: bool
) -> None:
    """Whether it was down during training already or not: one line says where the scores are."""
    path = trained / "summary.json"
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    (trained / "tracking" / "state.json").unlink()
    changed = {"mlflow_uri": uri} | ({"mlflow_run_id": None} if never else {})
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert inside("--checkpoint", trained, "--max-new-tokens", 2) == 0
    scores = check(trained / "eval" / "step_1000", heldout)
    assert json.loads(path.read_text())["accuracy"] == scores["all"]["accuracy"]
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "MLflow" in line]
    reason = "nor could it during training" if never else "Connection refused"
    assert line.startswith(f"MLflow at {uri} could not be reached (") and reason in line
    assert line.endswith(f"the scores are in {trained / 'eval' / 'step_1000' / 'scores.json'}")
    assert "Traceback" not in said.err and "MLflow" not in said.out


def test_a_run_that_reached_mlflow_after_its_end(trained: Path, inside: Callable[..., int]) -> None:
    """The tracking folder knows it when summary.json does not."""
    path = trained / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"mlflow_run_id": None}))
    assert inside("--checkpoint", trained, "--max-new-tokens", 2) == 0

    from mlflow import MlflowClient

    client = MlflowClient(summary["mlflow_uri"])
    assert "eval/all/accuracy" in client.get_run(summary["mlflow_run_id"]).data.metrics


def fault(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, with nothing on stdout."""
    found = capsys.readouterr()
    (line,) = [line for line in found.err.splitlines() if "Loading weights" not in line]
    assert found.out == "" and line.startswith("error: ")
    return line


def test_export_outside_a_run_needs_the_training_set(
    export_of: Callable[[str], Path], heldout: Path, inside: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("--checkpoint", export_of("sft"), "--data", heldout) == 2
    assert str(export_of("sft")) in (line := fault(capsys)) and "--train" in line


def test_missing_data(
    export_of: Callable[[str], Path],
    tiny_shards: Path,
    tmp_path: Path,
    inside: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = tmp_path / "nowhere"
    assert inside("--checkpoint", export_of("sft"), "--data", missing, "--train", tiny_shards) == 2
    assert str(missing) in fault(capsys)
