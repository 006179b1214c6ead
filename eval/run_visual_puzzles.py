"""Evaluate a checkpoint on VisualPuzzles (arXiv 2504.10342), 1,168 puzzles of five kinds:

    python eval/run_visual_puzzles.py --checkpoint runs/NAME --data VisualPuzzles [--prompt direct]

`--data` is the data set as downloaded from Hugging Face (neulab/VisualPuzzles), a folder of `save_to_disk`, or
VLMEvalKit's VisualPuzzles.tsv. Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
The paper prints the better of the prompts `cot` and `direct` for each model: run both to compare with it.
"""

import argparse
from typing import TYPE_CHECKING

from eval import cli

if TYPE_CHECKING:
    from eval.benchmarks.item import Benchmark
    from eval.models import Model
    from eval.request import Request

MOST_TOKENS = 4096  # of a reply, as in the benchmark's own code


def asked(arguments: argparse.Namespace) -> "tuple[Benchmark, Model, Request]":
    """What the arguments ask for."""
    from eval.benchmarks import visual_puzzles

    benchmark = visual_puzzles.read(arguments.data)
    return benchmark, cli.found(arguments), cli.request(arguments, benchmark, max_new_tokens=MOST_TOKENS)


def parser() -> argparse.ArgumentParser:
    text = "folder of VisualPuzzles, or VisualPuzzles.tsv"
    return cli.parser("run_visual_puzzles", "evaluate a checkpoint on VisualPuzzles", text)


def main() -> None:
    cli.main(parser().parse_args(), asked)


if __name__ == "__main__":
    main()
