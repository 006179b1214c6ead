"""The end of a run: export of the last checkpoint, and the run's own part of summary.json."""

import json
from pathlib import Path

from model.export import export
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.tracking import Tracker, store_uri


def export_folder(config: Config) -> Path:
    return config.run.path / "export" / f"step_{config.train.steps}"


def is_exported(config: Config) -> bool:
    return export_folder(config).is_dir()


def finish(config: Config, progress: Progress, tracker: Tracker, ranks: int) -> None:
    """Export and write summary.json, rank 0 only; the evaluator adds its scores to it."""
    checkpoint = config.run.path / "checkpoints" / f"step_{progress.step}"
    exported = export(checkpoint, config.model_dump(mode="json"), export_folder(config))
    stage = json.loads(config.deepspeed.read_text()).get("zero_optimization", {}).get("stage", 0)
    summary = {
        "steps": progress.step,
        "samples": progress.samples,
        "ranks": ranks,
        "zero_stage": stage,
        "train_seconds": round(progress.seconds, 1),
        "checkpoint": str(checkpoint),
        "export": str(exported),
        "mlflow_run_id": tracker.run_id,
        "mlflow_uri": store_uri(config.tracking, config.run.folder),
    }
    (config.run.path / "summary.json").write_text(json.dumps(summary, indent=1))
    tracker.finish()
