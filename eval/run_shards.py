"""Evaluate a checkpoint on a held-out shard set:

    python eval/run_shards.py --checkpoint runs/quickstart --data runs/embedded/heldout

Writes predictions.jsonl, scores.json and report.html, adds the scores to the run's summary.json and to its
MLflow run, and prints a table.
"""

import argparse
import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval/run_shards.py", description="evaluate a checkpoint on a shard set")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder (its newest export) or an export")
    parser.add_argument("--data", help="shard set of held-out items; default: the run's data.heldout")
    parser.add_argument("--train", nargs="+", help="sets the blind baseline learns from; default: the run's own")
    parser.add_argument("--out", type=Path, help="default: eval/ in the run folder, or in the export")
    parser.add_argument("--tokens", type=int, default=8000, help="tokens per batch")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="a reply is cut there")
    parser.add_argument("--started", type=float, help="when the whole job began (seconds since 1970), for wall_seconds")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    from data.sample import UserError

    try:
        evaluate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def evaluate(arguments: argparse.Namespace) -> None:
    """The whole evaluation."""
    from data.shards import read_set
    from eval.answer import Answerer, predict
    from eval.report import write_report
    from eval.scores import Blind, by_task, table

    export, run = _resolve(arguments.checkpoint)
    train = arguments.train or [one["folder"] for one in _data_of(run, export, "train")]
    heldout = arguments.data or _data_of(run, export, "heldout")
    out = arguments.out or (run or export) / "eval" / export.name
    samples = list(read_set(heldout))
    answerer = Answerer(export, arguments.tokens, arguments.max_new_tokens)
    predictions = predict(answerer, samples, out / "predictions.jsonl")
    texts = [sample.text for sample in samples]
    scores = by_task(predictions, texts, Blind(sample.text for folder in train for sample in read_set(folder)))
    found = {name: asdict(score) for name, score in scores.items()}
    (out / "scores.json").write_text(json.dumps(found, indent=1))
    report = write_report(out / "report.html", str(export), scores, samples, predictions)
    if run:
        _summarise(run, export, found, arguments.started, [out / "scores.json", report])
    print(table(scores))
    print(f"report: {report}")


def _resolve(checkpoint: Path) -> tuple[Path, Path | None]:
    """(export, its run folder if it has one)."""
    from model.build import ModelError

    if (checkpoint / "latent.json").is_file():
        run = checkpoint.parent.parent
        return checkpoint, run if (run / "config.yaml").is_file() else None
    exports = sorted(
        checkpoint.glob("export/step_*/latent.json"), key=lambda p: int(p.parent.name.removeprefix("step_"))
    )
    if not exports:
        raise ModelError(
            f"{checkpoint}: neither an export nor a run with one; make one with python -m model.export RUN"
        )
    return exports[-1].parent, checkpoint


def _data_of(run: Path | None, export: Path, name: str) -> Any:
    """What the run's config names as its training or held-out data."""
    import yaml

    from data.sample import DataError

    flag = {"train": "--train", "heldout": "--data"}[name]
    if run is None:
        raise DataError(f"{export}: stands outside a run, so its data.{name} is not known; name the set with {flag}")
    found = yaml.safe_load((run / "config.yaml").read_text())["data"][name]
    if found is None:
        raise DataError(f"{run / 'config.yaml'}: data.{name} is not set; name the set with {flag}")
    return found


def _summarise(run: Path, export: Path, scores: dict, started: float | None, files: list[Path]) -> None:
    """Scores onto the MLflow run that trained the checkpoint and, for its last export, into summary.json."""
    path = run / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    if Path(summary.get("export", "")).name == export.name:
        summary |= {name: scores["all"][name] for name in ("accuracy", "blind", "chance", "n")}
        summary["by_task"] = {name: score for name, score in scores.items() if name != "all"}
        if started:
            summary.setdefault("wall_seconds", round(time.time() - started, 1))
        part = path.with_name("summary.json.part")
        part.write_text(json.dumps(summary, indent=1))
        part.rename(path)
    if "mlflow_run_id" not in summary:
        return
    uri, run_id = summary["mlflow_uri"], summary["mlflow_run_id"]
    state = run / "tracking" / "state.json"
    if run_id is None and state.is_file():  # the server may have come back after the run's end
        run_id = json.loads(state.read_text())["run_id"]
    # Where the user has not set them: an evaluation does not wait for minutes for a server that is down.
    for name, value in {"MAX_RETRIES": "1", "TIMEOUT": "20"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it would print a traceback of what is told below
    values = {f"eval/{task}/{name}": score[name] for task, score in scores.items() for name in ("accuracy", "blind")}
    now, step = int(time.time() * 1000), int(export.name.removeprefix("step_"))
    try:
        if run_id is None:
            raise ConnectionError("nor could it during training")
        client = MlflowClient(uri)
        client.log_batch(run_id, metrics=[Metric(k, v, now, step) for k, v in values.items()])
        for file in [*files, path]:
            client.log_artifact(run_id, str(file), f"eval/{export.name}")
        print(f"MLflow: mlflow ui --backend-store-uri {uri}")
    except Exception as error:  # of MLflow, requests, a database: none is worth the evaluation
        why = " ".join(str(error).split())
        print(f"MLflow at {uri} could not be reached ({why}): the scores are in {files[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
