"""Draw a sheet of generated puzzles: `python -m data.puzzles --sheet OUT.png`."""

import argparse
from pathlib import Path

from data.puzzles.registry import KINDS, SIZES
from data.puzzles.sheet import write_sheet


def main() -> None:
    """Read the arguments and write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m data.puzzles", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--size", type=int, choices=SIZES, default=128, help="side of a picture in pixels")
    kinds = list(KINDS)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="only these kinds")
    options = parser.parse_args()
    write_sheet(options.sheet, options.size, options.kinds)


if __name__ == "__main__":
    main()
