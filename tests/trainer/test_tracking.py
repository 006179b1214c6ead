"""A real MLflow store in a SQLite file: parameters, metrics, artifacts, and a run opened again."""

from pathlib import Path

from mlflow import MlflowClient

from trainer.tracking import PACKAGES, Tracker, TrackingConfig, store_uri


def test_a_run_is_kept_and_continued(tmp_path: Path):
    config, settings = TrackingConfig(), tmp_path / "config.yaml"
    settings.write_text("a: 1")
    tracker = Tracker(config, tmp_path / "runs", "first")
    tracker.parameters({"train": {"lr": 1e-3}, "ranks": 2}, [settings])
    tracker.metrics({"loss/total": 2.0, "weight/beta": 0.5}, step=1)
    tracker.finish()

    again = Tracker(config, tmp_path / "runs", "first", tracker.run_id)
    again.parameters({"train": {"lr": 1e-3}, "ranks": 4}, [])  # MLflow refuses a parameter that changes
    again.metrics({"loss/total": 1.5}, step=2)

    client = MlflowClient(store_uri(config, tmp_path / "runs"))
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"train.lr": "0.001", "ranks": "2"}
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss/total")] == [(1, 2.0), (2, 1.5)]
    assert [a.path for a in client.list_artifacts(tracker.run_id)] == ["config.yaml"]
    assert {f"version.{name}" for name in PACKAGES} | {"git"} <= set(run.data.tags)
    again.finish()
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
