"""Evaluate a checkpoint on a held-out shard set:

    python eval/run_shards.py --checkpoint runs/quickstart --data runs/embedded/heldout

Writes predictions.jsonl, scores.json and report.html, adds the scores to the run's summary.json and to its
MLflow run, and prints a table.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval/run_shards.py", description="evaluate a checkpoint on a shard set")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder (its newest export) or an export")
    parser.add_argument("--data", type=Path, required=True, help="shard set of held-out items")
    parser.add_argument("--train", type=Path, help="shard set the blind baseline learns from; default: the run's own")
    parser.add_argument("--out", type=Path, help="default: eval/ in the run folder, or in the export")
    parser.add_argument("--tokens", type=int, default=8000, help="tokens per batch")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--started", type=float, help="when the whole job began (seconds since 1970), for wall_seconds")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    from data.sample import DataError
    from model.build import ModelError

    try:
        evaluate(arguments)
    except (DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def evaluate(arguments: argparse.Namespace) -> None:
    """The whole evaluation."""
    from data.shards import read_set
    from eval.answer import Answerer, predict
    from eval.report import write_report
    from eval.scores import Blind, by_task, table

    export, run = _resolve(arguments.checkpoint)
    train = arguments.train or _train_set(run, export)
    out = arguments.out or (run or export) / "eval" / export.name
    samples = list(read_set(arguments.data))
    answerer = Answerer(export, arguments.tokens, arguments.max_new_tokens)
    predictions = predict(answerer, samples, out / "predictions.jsonl")
    texts = [sample.text for sample in samples]
    scores = by_task(predictions, texts, Blind(sample.text for sample in read_set(train)))
    found = {name: asdict(score) for name, score in scores.items()}
    (out / "scores.json").write_text(json.dumps(found, indent=1))
    report = write_report(out / "report.html", str(export), scores, samples, predictions)
    if run:
        _summarise(run, found, arguments.started, [out / "scores.json", report])
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


def _train_set(run: Path | None, export: Path) -> Path:
    import yaml

    from data.sample import DataError

    if run is None:
        raise DataError(f"{export}: stands outside a run, so its training set is not known; name it with --train")
    return Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["train"])


def _summarise(run: Path, scores: dict, started: float | None, files: list[Path]) -> None:
    """Scores into summary.json and onto the MLflow run that trained the checkpoint."""
    path = run / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    whole = scores["all"]
    summary |= {name: whole[name] for name in ("accuracy", "blind", "chance", "n")}
    summary["by_task"] = {name: score for name, score in scores.items() if name != "all"}
    if started:
        summary["wall_seconds"] = round(time.time() - started, 1)
    path.write_text(json.dumps(summary, indent=1))
    if "mlflow_run_id" not in summary:
        return
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client, now = MlflowClient(summary["mlflow_uri"]), int(time.time() * 1000)
    values = {f"eval/{task}/{name}": score[name] for task, score in scores.items() for name in ("accuracy", "blind")}
    metrics = [Metric(name, value, now, summary.get("steps", 0)) for name, value in values.items()]
    client.log_batch(summary["mlflow_run_id"], metrics=metrics)
    for file in [*files, path]:
        client.log_artifact(summary["mlflow_run_id"], str(file), "eval")
    print(f"MLflow: mlflow ui --backend-store-uri {summary['mlflow_uri']}")


if __name__ == "__main__":
    main()
