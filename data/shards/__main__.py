"""Shard sets: write them, index and check what others wrote, look at them.

python -m data.shards write INPUT --out FOLDER            INPUT: rows as JSON lines, or a set to write anew
python -m data.shards index FOLDER                        an index for tars from elsewhere
python -m data.shards lint FOLDER                         names everything that is wrong
python -m data.shards preview FOLDER --out page.html      samples to look at (.html or .png)
python -m data.shards stats FOLDER --out stats.png        distributions (.png or .html)

FOLDER is a path or a URL (http, https, s3), but for what is written.
"""

import argparse
import json
import sys
from pathlib import Path

from data.sample import DataError, UserError
from data.shards.write import add_arguments, options_of, write
from data.source import Source, is_remote

# What only one command needs is imported by it: help should come at once.


def main() -> int:
    """Command line of this package."""
    arguments = _parser().parse_args()
    try:
        return int(globals()[f"run_{arguments.command}"](arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"error: {error.filename or arguments.command}: {error.strerror or error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    written = commands.add_parser("write", help="rows or another set to a set; goes on where it was killed")
    written.add_argument("input", metavar="INPUT", help="JSON lines (fields of KEY.json, images, key), or a shard set")
    written.add_argument(
        "--images", type=Path, metavar="FOLDER", help="what image paths begin at, if not at INPUT's folder"
    )
    add_arguments(written)
    indexed = commands.add_parser("index", help="write the index of tars made elsewhere; exit code 1 for damage")
    indexed.add_argument("--out", type=Path, metavar="DIR", help="where the index goes, if not to FOLDER")
    indexed.add_argument("--only-new", action="store_true", help="keep the entries of tars whose size is the same")
    linted = commands.add_parser("lint", help="name every fault; exit code 1 when there is one")
    linted.add_argument("--json", action="store_true", help="faults as JSON lines")
    linted.add_argument("--tokens", type=_count, metavar="N", help="with --model: name samples of more tokens")
    previewed = commands.add_parser("preview", help="a contact sheet or page of samples")
    previewed.add_argument("--count", type=_count, default=24, metavar="N", help="samples (24)")
    previewed.add_argument("--random", type=int, metavar="SEED", help="random ones, not the first")
    counted = commands.add_parser("stats", help="lengths, sizes, answers, tokens: a table and a figure")
    counted.add_argument("--count", type=_count, default=10_000, metavar="N", help="random samples to look at (10000)")
    for command in (indexed, linted, previewed, counted):
        command.add_argument("folder", metavar="FOLDER")
    for command in (indexed, linted):
        command.add_argument(
            "--workers", type=int, default=0, metavar="N", help="processes, each with a shard (0: none)"
        )
    for command in (linted, counted):
        command.add_argument("--model", metavar="FOLDER", help="Hugging Face folder whose processor counts the tokens")
        command.add_argument("--max-pixels", type=_count, metavar="N", help="its limit for images")
    for command in (previewed, counted):
        command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .html")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


def run_write(arguments: argparse.Namespace) -> int:
    """JSON lines or a set to a set."""
    from data.convert.row import load
    from data.shards.items import pieces, read, rows

    options = options_of(arguments)
    if is_remote(arguments.input) or Path(arguments.input).is_dir():
        shards = write(pieces(arguments.input, Source()), arguments.out, options, prepare=read)
    else:
        path = Path(arguments.input)
        shards = write(rows(path, arguments.images or path.parent), arguments.out, options, prepare=load)
    print(f"{arguments.out}: {sum(shard.samples for shard in shards):,} samples in {len(shards):,} shards")
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """Tars from elsewhere to a set."""
    from data.shards.foreign import index
    from data.shards.index import load_index

    if arguments.out is None and is_remote(arguments.folder):
        raise DataError(f"{arguments.folder}: cannot be written to; give a folder with --out and copy it to the tars")
    out, damage = arguments.out or Path(arguments.folder), 0
    for fault in index(arguments.folder, Source(), out, arguments.workers, arguments.only_new):
        print(fault, flush=True)
        damage += 1
    shards = load_index(str(out), Source())
    print(f"{out}: {sum(shard.samples for shard in shards):,} samples in {len(shards):,} shards, {damage:,} faults")
    return int(damage > 0)


def run_lint(arguments: argparse.Namespace) -> int:
    """Every fault of a set."""
    from data.shards.lint import Budget, lint

    if (arguments.tokens is None) != (arguments.model is None):
        raise DataError("--tokens and --model belong together; give both or none")
    budget = Budget(arguments.model, arguments.tokens, arguments.max_pixels) if arguments.model else None
    faults = samples = shards = 0
    for one in lint(arguments.folder, Source(), arguments.workers, budget):
        for fault in one.faults:
            print(json.dumps(fault._asdict()) if arguments.json else fault, flush=True)
        faults, samples, shards = faults + len(one.faults), samples + len(one.keys), shards + bool(one.keys)
    summary = f"{arguments.folder}: {samples:,} samples in {shards:,} shards, {faults:,} faults"
    print(summary, file=sys.stderr if arguments.json else sys.stdout)
    return int(faults > 0)


def run_preview(arguments: argparse.Namespace) -> int:
    """Samples to look at."""
    from data.shards.preview import preview

    for fault in preview(arguments.folder, arguments.out, Source(), arguments.count, arguments.random):
        print(f"left out: {fault}", file=sys.stderr)
    return 0


def run_stats(arguments: argparse.Namespace) -> int:
    """Numbers of a set."""
    from data.shards import figure
    from data.shards.stats import collect

    stats, total = collect(arguments.folder, Source(), arguments.count, arguments.model, arguments.max_pixels)
    seen, left_out = stats.samples, len(stats.faults)
    title = f"{arguments.folder}: {seen:,} of {total:,} samples" + f", {left_out:,} cannot be read" * bool(left_out)
    print(f"{title}\n{stats.summary()}")
    figure.write(arguments.out, stats, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
