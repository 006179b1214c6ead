"""Held-out shard sets: beside what the text gives away, into the run's summary and onto its MLflow run."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from data import puzzles, shards
from data.shards import WriteOptions
from eval import run_interventions
from eval.models import find_model
from eval.record import metrics
from eval.run_shards import main
from eval.scores import read_scores
from tests.conftest import sums
from tests.data.faulty_server import serve_folder
from tests.eval.commands import FILES, call, check, lines_of, refused, scores_of
from trainer.tracking import Tracker, TrackingConfig, store_uri

ITEMS = 24
SHORT = ("--max-new-tokens", 2)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out puzzles of three kinds, one of which is not in the small training set."""
    folder = tmp_path_factory.mktemp("heldout") / "shards"
    drawn = puzzles.stream(("counting", "jigsaw", "rotation"), "heldout", ITEMS)
    shards.write(drawn, folder, WriteOptions(per_shard=10))
    return folder


@pytest.fixture
def trained(export_of, tiny_shards: Path, heldout: Path, tmp_path: Path) -> Path:
    """A run folder with two exports, as training leaves it."""
    folder = tmp_path / "runs" / "one"
    (folder / "export").mkdir(parents=True)
    for step, objective in ((900, "sft"), (1000, "amvl")):
        (folder / "export" / f"step_{step}").symlink_to(export_of(objective))
    config = f"data:\n  train: [{{folder: {tiny_shards}}}]\n  heldout: {heldout}\ntracking:\n  uri: null\n"
    (folder / "config.yaml").write_text(config)
    tracker = Tracker(TrackingConfig(patience=60), tmp_path / "runs", "one", folder)
    tracker.finish()
    uri = store_uri(TrackingConfig(), tmp_path / "runs")
    export = str(folder / "export" / "step_1000")
    summary = {"steps": 1000, "export": export, "mlflow_run_id": tracker.run_id, "mlflow_uri": uri}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def client_of(summary: dict[str, Any]):
    from mlflow import MlflowClient

    return MlflowClient(summary["mlflow_uri"])


def test_a_run(trained: Path, heldout: Path, tiny_shards: Path) -> None:
    """Its newest export, its own sets, its summary and its MLflow run."""
    before = summary_of(trained)
    assert call(main, "--checkpoint", trained, "--started", 1.0) == 0
    out = trained / "eval/step_1000/shards"
    scores = check(out, ITEMS)
    samples = {s.key: s.text for s in shards.read_set(heldout)}
    assert {r["key"]: r["label"] for r in lines_of(out / "results.jsonl")} == {k: t.answer for k, t in samples.items()}
    assert scores["tasks"]["jigsaw"]["chance"] == 0.5 and scores["tasks"]["counting"]["chance"] == 0.25
    facts = scores["settings"]
    assert (facts["step"], facts["max_new_tokens"], facts["prompt"]) == (1000, 32, "shards/amvl-1")
    assert facts["model_id"] == find_model(trained).id
    # What the text alone gives away, by the answers of training.
    known: dict[str, list[str]] = {}
    for sample in shards.read_set(tiny_shards):
        known.setdefault(sample.text.task, []).append(sample.text.answer)
    commonest = {task: min(a, key=lambda x: (-a.count(x), x)) for task, a in known.items()}
    asked = {s.text.question + str(s.text.choices) for s in shards.read_set(tiny_shards)}
    unseen = [t for t in samples.values() if t.question + str(t.choices) not in asked and t.task == "rotation"]
    assert unseen and "rotation" not in commonest
    assert scores["tasks"]["rotation"]["text"] == 0
    assert scores["gain_over_text"]["value"] == pytest.approx(scores["micro"]["value"] - scores["text"]["micro"])

    summary = summary_of(trained)
    assert before.items() <= summary.items()
    levels = {"accuracy": scores["micro"]["value"], "blind": scores["text"]["micro"]}
    levels |= {"chance": scores["chance"]["micro"], "n": ITEMS, "by_task": scores["tasks"]}
    assert levels.items() <= summary.items() and summary["wall_seconds"] > 1e9
    micro = scores["micro"]
    entry = {"n": ITEMS, "mean": "micro", "accuracy": micro["value"], "low": micro["low"], "high": micro["high"]}
    assert summary["eval"] == {"shards": entry}

    client, run_id = client_of(summary), summary["mlflow_run_id"]
    found = client.get_run(run_id).data.metrics
    assert found == pytest.approx(metrics(read_scores(out / "scores.json")))
    assert found["eval/shards/micro"] == micro["value"] and found["eval/shards/text/micro"] == levels["blind"]
    (history,) = client.get_metric_history(run_id, "eval/shards/micro")
    assert history.step == 1000
    place = "eval/step_1000/shards"
    assert {file.path for file in client.list_artifacts(run_id, place)} == {f"{place}/{name}" for name in FILES}
    copied = Path(client.download_artifacts(run_id, f"{place}/scores.json")).read_bytes()
    assert copied == (out / "scores.json").read_bytes()
    assert call(main, "--checkpoint", trained, "--started", 1000.0) == 0
    assert summary_of(trained) == summary, "the wall time is that of the first time"


def test_several_evaluations_stand_side_by_side(trained: Path) -> None:
    """In the summary and in MLflow; one of a part of the items does not take the place of the whole."""
    assert call(main, "--checkpoint", trained, "--mode", "score") == 0
    first = summary_of(trained)
    assert "accuracy" not in first, "the run's own figures are those without anything asked for by hand"
    assert call(main, "--checkpoint", trained, "--mode", "score", "--limit", 5) == 0
    second = summary_of(trained)
    names = ["shards,mode=score", "shards,limit=5,mode=score"]
    assert list(second["eval"]) == names and [second["eval"][name]["n"] for name in names] == [ITEMS, 5]
    found = client_of(second).get_run(second["mlflow_run_id"]).data.metrics
    for name in ("shards_mode_score", "shards_limit_5_mode_score"):
        assert f"eval/{name}/micro" in found


def test_an_older_export_leaves_the_summary_alone(trained: Path) -> None:
    """Its scores go beside it and to its own step of the MLflow run."""
    before = (trained / "summary.json").read_bytes()
    assert call(main, "--checkpoint", trained, "--step", 900, "--mode", "score") == 0
    check(trained / "eval/step_900/shards,mode=score", ITEMS)
    assert (trained / "summary.json").read_bytes() == before
    summary = summary_of(trained)
    (history,) = client_of(summary).get_metric_history(summary["mlflow_run_id"], "eval/shards_mode_score/micro")
    assert history.step == 900


@pytest.mark.parametrize("never", [True, False])
def test_mlflow_that_is_down_takes_nothing_from_an_evaluation(trained: Path, capsys, never: bool) -> None:
    """Whether it was down during training already or not: one line says where the scores are."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    (trained / "tracking" / "state.json").unlink()
    changed = {"mlflow_uri": uri} | ({"mlflow_run_id": None} if never else {})
    (trained / "summary.json").write_text(json.dumps(summary_of(trained) | changed))
    assert call(main, "--checkpoint", trained, "--mode", "score") == 0
    out = trained / "eval/step_1000/shards,mode=score"
    assert summary_of(trained)["eval"]["shards,mode=score"]["accuracy"] == check(out, ITEMS)["micro"]["value"]
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "MLflow" in line]
    reason = "nor could it during training" if never else "Connection refused"
    assert line.startswith(f"MLflow at {uri} could not be reached (") and reason in line
    assert line.endswith(f"the scores are in {out / 'scores.json'}")
    assert "Traceback" not in said.err and "MLflow" not in said.out


def test_a_run_that_reached_mlflow_after_its_end(trained: Path) -> None:
    """The tracking folder knows it when summary.json does not."""
    summary = summary_of(trained)
    (trained / "summary.json").write_text(json.dumps(summary | {"mlflow_run_id": None}))
    assert call(main, "--checkpoint", trained, "--mode", "score") == 0
    found = client_of(summary).get_run(summary["mlflow_run_id"]).data.metrics
    assert "eval/shards_mode_score/micro" in found


def test_a_run_that_has_not_ended(trained: Path) -> None:
    """Its checkpoint is evaluated all the same: no summary is made up, and its MLflow run gets the scores."""
    summary = summary_of(trained)
    (trained / "summary.json").unlink()
    assert call(main, "--checkpoint", trained, "--mode", "score") == 0
    check(trained / "eval/step_1000/shards,mode=score", ITEMS)
    assert not (trained / "summary.json").exists()
    found = client_of(summary).get_run(summary["mlflow_run_id"]).data.metrics
    assert "eval/shards_mode_score/micro" in found


def test_a_run_that_is_not_tracked(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "summary.json").unlink()
    (trained / "tracking" / "state.json").unlink()
    assert call(main, "--checkpoint", trained, "--mode", "score") == 0
    assert "MLflow" not in "".join(capsys.readouterr())


def test_an_export_outside_a_run(export_of, heldout: Path, tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--checkpoint", export_of("sft"), "--data", heldout, "--out", out)
    assert call(main, *common, "--train", tiny_shards, tiny_shards, *SHORT) == 0
    assert check(out, ITEMS)["text"]


def test_an_export_outside_a_run_needs_its_sets(export_of, heldout: Path, tiny_shards: Path, capsys) -> None:
    export = export_of("sft")
    text = refused(capsys, main, "--checkpoint", export, "--data", heldout)
    assert text == f"{export}: stands outside a run, so its data.train is not known; name the set with --train"
    text = refused(capsys, main, "--checkpoint", export, "--train", tiny_shards)
    assert text == f"{export}: stands outside a run, so its data.heldout is not known; name the set with --data"


def test_a_run_without_a_held_out_set(trained: Path, tiny_shards: Path, capsys) -> None:
    path = trained / "config.yaml"
    path.write_text(f"data:\n  train: [{{folder: {tiny_shards}}}]\n  heldout: null\n")
    text = refused(capsys, main, "--checkpoint", trained)
    assert text == f"{path}: data.heldout is not set; name the set with --data"


def test_missing_data(export_of, tiny_shards: Path, tmp_path: Path, capsys) -> None:
    missing = tmp_path / "nowhere"
    arguments = ("--checkpoint", export_of("sft"), "--data", missing, "--train", tiny_shards)
    assert refused(capsys, main, *arguments).startswith(str(missing))


def test_open_questions_unlike_any_in_training(trained: Path, heldout: Path, tmp_path: Path) -> None:
    """Their chance is not known, which is said and fails nothing."""
    sample = next(s for s in sums() if not s.text.choices)
    sample = sample.model_copy(update={"text": sample.text.model_copy(update={"task": "new"})})
    data = tmp_path / "mixed"
    shards.write([*shards.read_set(heldout), sample], data, WriteOptions(per_shard=10))
    assert call(main, "--checkpoint", trained, "--data", data, *SHORT) == 0
    scores = scores_of(trained / "eval/step_1000/mixed,max_new_tokens=2")
    assert scores["chance"] is None and scores["tasks"]["new"]["chance"] is None
    assert summary_of(trained)["eval"]["mixed,max_new_tokens=2"]["n"] == ITEMS + 1


def test_other_rules_stand_below_what_was_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the default folder: replies are read anew, none is made anew, and neither result takes the other's place."""
    judge = ("--judge", "http://127.0.0.1:9/v1", "--judge-model", "some/model")
    assert call(main, "--checkpoint", trained, *SHORT) == 0
    folder = trained / "eval/step_1000/shards,max_new_tokens=2"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("eval.answer.Answerer.__init__", never)
    monkeypatch.setattr("eval.judge.Retry", lambda total, **_: 0)  # that judge is not there, and is not waited for
    with pytest.warns(UserWarning, match="3 failures in a row"):
        assert call(main, "--checkpoint", trained, *SHORT, *judge) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert scores_of(folder / "judge=some_model")["settings"]["judge"] == "some/model"


def test_interventions_on_a_run(trained: Path, tiny_shards: Path) -> None:
    """Its own held-out set by default; beside the evaluation, and onto the MLflow run of the training."""
    before = (trained / "summary.json").read_bytes()
    arguments = ("--checkpoint", trained, "--limit", 6, *SHORT, "--arms", "removed,other_item")
    assert call(run_interventions.main, *arguments) == 0
    name = "shards,limit=6,max_new_tokens=2"
    out = trained / f"eval/step_1000/{name},interventions"
    arms = json.loads((out / "interventions.json").read_text())["arms"]
    assert list(arms) == ["kept", "removed", "other_item"]
    for arm in arms:
        assert check(out / arm, 6)["text"]
    assert (trained / "summary.json").read_bytes() == before
    summary = summary_of(trained)
    client, run_id = client_of(summary), summary["mlflow_run_id"]
    found = client.get_run(run_id).data.metrics
    assert found == {
        f"eval/shards_limit_6_max_new_tokens_2/interventions/{arm}/{metric}": arms[arm][metric]["value"]
        for arm in arms
        for metric in ("accuracy", "change", "flips")
        if arm != "kept" or metric == "accuracy"
    }
    place = f"eval/step_1000/{name},interventions"
    files = {file.path for file in client.list_artifacts(run_id, place)}
    assert files == {f"{place}/interventions.json", f"{place}/interventions.md"}


def test_a_set_at_an_address(trained: Path, heldout: Path) -> None:
    """As training reads it: by http; and being another set than the run's own, it does not give the run its figures."""
    with contextlib.closing(serve_folder(heldout.parent)) as server:
        assert call(main, "--checkpoint", trained, "--data", f"{server.url}/{heldout.name}", *SHORT) == 0
    check(trained / f"eval/step_1000/{heldout.name},max_new_tokens=2", ITEMS)
    assert "accuracy" not in summary_of(trained)
