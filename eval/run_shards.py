"""Evaluate a checkpoint on a held-out shard set, beside what the text alone gives away:

    python eval/run_shards.py --checkpoint runs/quickstart --data runs/embedded/heldout

Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html, and adds the scores to the run's
summary.json and to its MLflow run.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from eval import cli

if TYPE_CHECKING:
    from eval.benchmarks.item import Benchmark, Item
    from eval.models import Model
    from eval.request import Request
    from eval.scores import Scores

MOST_TOKENS = 32  # of a reply


def asked(arguments: argparse.Namespace) -> "tuple[Benchmark, Model, Request]":
    """What the arguments ask for."""
    from data.shards import read_set
    from eval.benchmarks import shards
    from eval.text_baseline import TextBaseline

    model = cli.found(arguments)
    train = arguments.train or [one["folder"] for one in model.data("train")]
    benchmark = shards.read(arguments.data or model.data("heldout"))
    text = TextBaseline(sample.text for folder in train for sample in read_set(folder))

    def baseline(items: "list[Item]") -> tuple[list[bool], dict[str, float]]:
        """Whether it is right of each item, and the chance of open questions by task."""
        right = [text.answer(written) == written.answer for written in map(_text, items)]
        return right, {task: 1 / max(1, count) for task, count in text.answers.items()}

    def summary(scores: "Scores") -> dict[str, Any]:
        wall = {"wall_seconds": round(time.time() - arguments.started, 1)} if arguments.started else {}
        assert scores.text
        chance = scores.chance.micro if scores.chance else None  # not known of open questions unlike any in training
        levels = {"accuracy": scores.micro.value, "blind": scores.text.micro, "chance": chance}
        by_task = {name: one.model_dump(mode="json") for name, one in scores.tasks.items()}
        return levels | {"n": scores.n, "by_task": by_task} | wall

    # The run's own figures are those on its own set.
    own = arguments.data is None or model.has_data("heldout", arguments.data)
    more = {"max_new_tokens": MOST_TOKENS, "text": baseline, "summary": summary if own else lambda scores: {}}
    return benchmark, model, cli.request(arguments, benchmark, **more)


def _text(item: "Item") -> Any:
    from data.sample import Text

    return Text(question=item.question, answer=item.label, choices=item.choices, task=item.task, source=item.key)


def parser() -> argparse.ArgumentParser:
    parser = cli.parser("run_shards", "evaluate a checkpoint on a shard set", None)
    parser.add_argument("--train", nargs="+", help="sets the text baseline learns from; default: the run's own")
    parser.add_argument("--started", type=float, help="when the whole job began (seconds since 1970), for wall_seconds")
    return parser


def main() -> None:
    cli.main(parser().parse_args(), asked)


if __name__ == "__main__":
    main()
