"""Draw a sheet of generated puzzles: `python -m data.puzzles --sheet OUT.png`."""

import argparse
from pathlib import Path

from data.puzzles.registry import DIFFICULTIES, KINDS, SIZES, generate
from data.sheet import write_sheet

EACH = 2  # samples of a kind and difficulty


def main() -> None:
    """Read the arguments and write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m data.puzzles", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--size", type=int, choices=SIZES, default=128, help="side of a picture in pixels")
    kinds = list(KINDS)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="only these kinds")
    options = parser.parse_args()
    groups = (
        [generate(kind, seed, options.size, level) for level in DIFFICULTIES for seed in range(EACH)]
        for kind in options.kinds
    )
    write_sheet(options.sheet, groups)


if __name__ == "__main__":
    main()
