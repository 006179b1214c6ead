"""Scores where they are looked for: in the run's summary.json and on the MLflow run that trained the checkpoint."""

import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from eval.models import Model
from eval.results import write_whole
from eval.scores import Scores


def summarise(model: Model, name: str, scores: Scores, more: dict[str, Any]) -> None:
    """Add an evaluation, `more` beside it, to the summary of the run, if it is of the run's last export.

    All or nothing.
    """
    summary = _summary(model)
    if model.run is None or Path(summary.get("export", "")).name != model.folder.name:
        return
    official = scores.macro if scores.official == "macro" else scores.micro
    facts = {
        "n": scores.n,
        "mean": scores.official,
        "accuracy": official.value,
        "low": official.low,
        "high": official.high,
    }
    first = {name: summary[name] for name in ("wall_seconds",) if name in summary}  # of the whole job, not of this
    summary |= more | first
    summary["eval"] = summary.get("eval", {}) | {name: facts}
    write_whole(model.run / "summary.json", json.dumps(summary, indent=1))


def _summary(model: Model) -> dict[str, Any]:
    """That of the run; empty where there is none."""
    path = model.run / "summary.json" if model.run else None
    summary: dict[str, Any] = json.loads(path.read_text()) if path and path.is_file() else {}
    return summary


def tracked(run: Path, summary: dict[str, Any]) -> tuple[str, str | None] | None:
    """MLflow's URI and the run's id there (None: it was never reached), also of a run that has not ended; None: not
    tracked."""
    run_id, uri, state = summary.get("mlflow_run_id"), summary.get("mlflow_uri"), run / "tracking" / "state.json"
    if state.is_file():  # the server may have come back after the run's end
        run_id = json.loads(state.read_text())["run_id"] or run_id
    if uri is None and run_id is not None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        uri = config.get("tracking", {}).get("uri") or f"sqlite:///{(run.parent / 'mlflow.db').resolve()}"
    return None if uri is None else (uri, run_id)


def track(model: Model, name: str, values: dict[str, float], files: list[Path]) -> None:
    """Metrics and files onto the MLflow run of the training, if it is known. An MLflow that is down is told of."""
    where = tracked(model.run, _summary(model)) if model.run and model.step is not None else None
    if where is None or model.step is None:
        return
    uri, run_id = where
    # Where the user has not set them: an evaluation does not wait for minutes for a server that is down.
    for key, value in {"MAX_RETRIES": "1", "TIMEOUT": "20"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it would print a traceback of what is told below
    now = int(time.time() * 1000)
    entities = [Metric(key, value, now, model.step) for key, value in values.items()]
    try:
        if run_id is None:
            raise ConnectionError("nor could it during training")
        client = MlflowClient(uri)
        for first in range(0, len(entities), 1000):  # as many as a server takes at once
            client.log_batch(run_id, metrics=entities[first : first + 1000])
        for file in files:
            client.log_artifact(run_id, str(file), f"eval/{model.folder.name}/{name}")
        print(f"MLflow: mlflow ui --backend-store-uri {uri}")
    except Exception as error:  # of MLflow, requests, a database: none is worth the evaluation
        why = " ".join(str(error).split())
        print(f"MLflow at {uri} could not be reached ({why}): the scores are in {files[0]}", file=sys.stderr)


def metrics(scores: Scores) -> dict[str, float]:
    """For MLflow, by names such as eval/blink/task/Jigsaw."""
    means = {"macro": scores.macro, "micro": scores.micro}
    found = {name: mean.value for name, mean in means.items()}
    found |= {f"{name}_se": mean.se for name, mean in means.items()}
    for name in ("chance", "majority", "blind", "text"):
        if level := getattr(scores, name):
            found |= {f"{name}/macro": level.macro, f"{name}/micro": level.micro}
    for name, apart in scores.apart.items():
        found |= {f"without/{name}/macro": apart.macro.value, f"without/{name}/micro": apart.micro.value}
    found |= {name: float(getattr(scores, name)) for name in ("unresolved", "failed", "cut")}
    found |= {f"task/{name}": s.accuracy for name, s in scores.tasks.items()}
    found |= {f"group/{kind}/{name}": s.accuracy for kind, group in scores.groups.items() for name, s in group.items()}
    metric: dict[str, float] = {}
    for name, value in found.items():
        allowed = metric_name(f"eval/{scores.benchmark}/{name}")
        while allowed in metric:  # of two names that differ in other characters alone
            allowed += "_"
        metric[allowed] = value
    return metric


def metric_name(name: str) -> str:
    """What MLflow takes: letters, digits and `_-. /`, at most 250 of them, and no path that could be shortened."""
    parts = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:240].split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)
