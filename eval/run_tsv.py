"""Evaluate a checkpoint on any multiple-choice TSV of VLMEvalKit (MMVP, V*, CV-Bench, HRBench, ...):

    python eval/run_tsv.py --checkpoint runs/NAME --data MMVP.tsv

Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval import cli

if TYPE_CHECKING:
    from eval.benchmarks.item import Benchmark
    from eval.models import Model
    from eval.request import Request


def asked(arguments: argparse.Namespace) -> "tuple[Benchmark, Model, Request]":
    """What the arguments ask for."""
    from eval.benchmarks import tsv

    benchmark = tsv.read(arguments.data, arguments.images, arguments.split)
    return benchmark, cli.found(arguments), cli.request(arguments, benchmark)


def parser() -> argparse.ArgumentParser:
    parser = cli.parser("run_tsv", "evaluate a checkpoint on a TSV of VLMEvalKit", "the TSV file")
    parser.add_argument("--images", type=Path, help="folder that the paths in image_path begin in")
    parser.add_argument("--split", help="take only the rows whose split is this")
    return parser


def main() -> None:
    cli.main(parser().parse_args(), asked)


if __name__ == "__main__":
    main()
