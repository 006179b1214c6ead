"""What a checkpoint's latents are good for: a benchmark with them, without them, and with others in their place:

    python eval/run_interventions.py --checkpoint runs/NAME
    python eval/run_interventions.py blink --checkpoint runs/NAME --data BLINK --mode score

The first word is shards (may be left out), blink, visual_puzzles or tsv; all options are those of that benchmark's own
command, and --arms. Writes a folder for every arm, interventions.json and interventions.md.
"""

import argparse
import importlib
import sys
from functools import partial
from typing import Any

from eval import cli

BENCHMARKS = ("shards", "blink", "visual_puzzles", "tsv")


def chosen(words: list[str]) -> tuple[Any, list[str]]:
    """The module of the benchmark's own command, and the words without its name."""
    at = int(bool(words) and words[0].startswith("--local_rank"))  # the launcher's own comes first
    if at == len(words) or words[at].startswith("-"):
        return importlib.import_module("eval.run_shards"), words
    if words[at] not in BENCHMARKS:
        print(f"error: {words[at]}: not one of {', '.join(BENCHMARKS)}; name one, or none", file=sys.stderr)
        sys.exit(2)
    return importlib.import_module(f"eval.run_{words[at]}"), words[:at] + words[at + 1 :]


def parser(command: Any) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = command.parser()
    found.prog = f"eval/run_interventions.py {command.__name__.removeprefix('eval.run_')}"
    found.description = "the same with latents kept, removed, or replaced"
    found.add_argument(
        "--arms",
        metavar="NAME[,NAME]",
        help="kept, removed, zero, unit_noise, matched_noise, data_mean, first_slot, shuffled, other_item, markers; "
        "default: all that the model can have",
    )
    return found


def main() -> None:
    command, words = chosen(sys.argv[1:])
    arguments = parser(command).parse_args(words)
    from eval.interventions import intervene

    arms = arguments.arms.split(",") if arguments.arms is not None else ()
    cli.main(arguments, command.asked, partial(intervene, arms=arms))


if __name__ == "__main__":
    main()
