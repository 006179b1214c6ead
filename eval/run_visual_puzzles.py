"""Evaluate a checkpoint on VisualPuzzles (arXiv 2504.10342), 1,168 puzzles of five kinds:

    python eval/run_visual_puzzles.py --checkpoint runs/NAME --data VisualPuzzles [--prompt direct]

`--data` is the data set as downloaded from Hugging Face (neulab/VisualPuzzles), a folder of `save_to_disk`, or
VLMEvalKit's VisualPuzzles.tsv. Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
The paper prints the better of the prompts `cot` and `direct` for each model: run both to compare with it.
"""

import argparse

from eval import cli

MOST_TOKENS = 4096  # of a reply, as in the benchmark's own code


def run(arguments: argparse.Namespace) -> None:
    """The whole evaluation."""
    from eval.benchmarks import visual_puzzles
    from eval.evaluate import evaluate

    benchmark = visual_puzzles.read(arguments.data)
    evaluate(benchmark, cli.found(arguments), cli.request(arguments, benchmark, max_new_tokens=MOST_TOKENS))


def main() -> None:
    text = "folder of VisualPuzzles, or VisualPuzzles.tsv"
    cli.main(cli.parser("run_visual_puzzles", "evaluate a checkpoint on VisualPuzzles", text).parse_args(), run)


if __name__ == "__main__":
    main()
