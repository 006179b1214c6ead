"""Evaluate a checkpoint on any multiple-choice TSV of VLMEvalKit (MMVP, V*, CV-Bench, HRBench, ...):

    python eval/run_tsv.py --checkpoint runs/NAME --data MMVP.tsv

Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
"""

import argparse
from pathlib import Path

from eval import cli


def run(arguments: argparse.Namespace) -> None:
    """The whole evaluation."""
    from eval.benchmarks import tsv
    from eval.evaluate import evaluate

    benchmark = tsv.read(arguments.data, arguments.images, arguments.split)
    evaluate(benchmark, cli.found(arguments), cli.request(arguments, benchmark))


def main() -> None:
    parser = cli.parser("run_tsv", "evaluate a checkpoint on a TSV of VLMEvalKit", "the TSV file")
    parser.add_argument("--images", type=Path, help="folder that the paths in image_path begin in")
    parser.add_argument("--split", help="take only the rows whose split is this")
    cli.main(parser.parse_args(), run)


if __name__ == "__main__":
    main()
