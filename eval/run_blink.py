"""Evaluate a checkpoint on BLINK (arXiv 2404.12390), 14 sub-tasks of multiple choice:

    python eval/run_blink.py --checkpoint runs/NAME --data BLINK

`--data` is the data set as downloaded from Hugging Face (BLINK-Benchmark/BLINK), a folder of `save_to_disk`, or
VLMEvalKit's BLINK.tsv. Writes predictions.jsonl, results.jsonl, scores.json, scores.md and report.html.
"""

import argparse

from eval import cli


def run(arguments: argparse.Namespace) -> None:
    """The whole evaluation."""
    from eval.benchmarks import blink
    from eval.evaluate import evaluate

    benchmark = blink.read(arguments.data, arguments.split)
    evaluate(benchmark, cli.found(arguments), cli.request(arguments, benchmark))


def main() -> None:
    parser = cli.parser("run_blink", "evaluate a checkpoint on BLINK", "folder of BLINK, or BLINK.tsv")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="the answers of test are not public")
    cli.main(parser.parse_args(), run)


if __name__ == "__main__":
    main()
