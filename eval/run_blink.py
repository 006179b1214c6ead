"""Evaluate a checkpoint on BLINK (arXiv 2404.12390), 14 sub-tasks of multiple choice:

    python eval/run_blink.py --checkpoint runs/NAME --data BLINK

`--data` is the data set as downloaded from Hugging Face (BLINK-Benchmark/BLINK), a folder of `save_to_disk`, or
VLMEvalKit's BLINK.tsv. Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
"""

import argparse
from typing import TYPE_CHECKING

from eval import cli

if TYPE_CHECKING:
    from eval.benchmarks.item import Benchmark
    from eval.models import Model
    from eval.request import Request


def asked(arguments: argparse.Namespace) -> "tuple[Benchmark, Model, Request]":
    """What the arguments ask for."""
    from eval.benchmarks import blink

    benchmark = blink.read(arguments.data, arguments.split)
    return benchmark, cli.found(arguments), cli.request(arguments, benchmark)


def parser() -> argparse.ArgumentParser:
    parser = cli.parser("run_blink", "evaluate a checkpoint on BLINK", "folder of BLINK, or BLINK.tsv")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="the answers of test are not public")
    return parser


def main() -> None:
    cli.main(parser().parse_args(), asked)


if __name__ == "__main__":
    main()
