"""MLflow tracking of a run: parameters, versions, metrics, scores. Rank 0 only; a SQLite file by default."""

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PACKAGES = ("torch", "transformers", "deepspeed", "pillow", "mlflow")


class TrackingConfig(BaseModel):
    """Where MLflow keeps the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(None, description="MLflow tracking URI; default: a SQLite file in run.folder")
    experiment: str = Field("amvl", min_length=1)


def store_uri(config: TrackingConfig, runs: Path) -> str:
    """The tracking URI in use."""
    return config.uri or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


class Tracker:
    """One MLflow run. Opened again by its id it goes on where it was."""

    def __init__(self, config: TrackingConfig, runs: Path, name: str, run_id: str | None = None) -> None:
        from mlflow import MlflowClient

        runs.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(store_uri(config, runs))
        experiment = self.client.get_experiment_by_name(config.experiment)
        if experiment is None:
            place = None if config.uri else (runs / "mlflow").resolve().as_uri()
            experiment_id = self.client.create_experiment(config.experiment, artifact_location=place)
        else:
            experiment_id = experiment.experiment_id
        if run_id is None:
            run_id = self.client.create_run(experiment_id, run_name=name, tags=_provenance()).info.run_id
        else:
            self.client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def parameters(self, values: dict[str, Any], files: list[Path]) -> None:
        """Nested settings as dotted parameters, and files as artifacts."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        new = {key: str(value)[:6000] for key, value in _flatten(values).items() if key not in known}
        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in new.items()])
        for file in files:
            self.client.log_artifact(self.run_id, str(file))

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Numbers at a step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run with a status of MLflow's."""
        self.client.set_terminated(self.run_id, status)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _provenance() -> dict[str, str]:
    """Versions of what matters, and the git revision where there is one."""
    tags = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        revision = ""
    return tags | {"git": revision or "unknown"}
