"""The end of a run: export of the last checkpoint, and the run's own part of summary.json."""

import json
from pathlib import Path

from model.export import export
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.tracking import Tracker, store_uri
from trainer.zero import settings


def export_folder(config: Config) -> Path:
    return config.run.path / "export" / f"step_{config.train.steps}"


def is_finished(config: Config) -> bool:
    """Whether a run of this config has come to its end, export and summary included."""
    path = config.run.path / "summary.json"
    return path.is_file() and json.loads(path.read_text()).get("export") == str(export_folder(config))


def finish(config: Config, progress: Progress, tracker: Tracker, ranks: int) -> None:
    """Export and write summary.json, rank 0 only; the evaluator adds its scores to it."""
    checkpoint = config.run.path / "checkpoints" / f"step_{progress.step}"
    exported = export(checkpoint, config.model_dump(mode="json"), export_folder(config))
    tracker.finish()  # so that a server that is late has told the run's id
    summary = {
        "steps": progress.step,
        "samples": progress.samples,
        "ranks": ranks,
        "zero_stage": settings(config)["zero_optimization"]["stage"],
        "train_seconds": round(progress.seconds, 1),
        "checkpoint": str(checkpoint),
        "export": str(exported),
        "mlflow_run_id": tracker.run_id,
        "mlflow_uri": store_uri(config.tracking, config.run.folder),
    }
    part = config.run.path / "summary.json.part"
    part.write_text(json.dumps(summary, indent=1))
    part.rename(config.run.path / "summary.json")
