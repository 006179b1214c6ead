"""The quickstart's shard sets: easy-vqa and generated puzzles, mixed, with held-out items of both.

python -m data.quickstart --out runs/embedded
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from data import puzzles, shards
from data.convert import easy_vqa
from data.convert.easy_vqa import Split
from data.sample import Sample, UserError
from data.source import Source

KINDS = tuple(puzzles.KINDS)
TRAIN = {"easy_vqa": 26_000, "puzzles": 30_000}
HELDOUT = {"easy_vqa": 1_200, "puzzles": 900}
SHARDS = 64  # as many as there are lanes by default


def mixed(split: Split, counts: dict[str, int], seed: int = 0) -> list[Sample]:
    """A seeded mix of both sources in random order."""
    rng = random.Random(f"{seed}/{split}")
    real = rng.sample(list(easy_vqa.read(split)), counts["easy_vqa"])
    drawn = puzzles.stream(KINDS, split, counts["puzzles"], sizes=(64,), difficulties=(1,), seed=seed)
    samples = [*real, *drawn]
    rng.shuffle(samples)
    return samples


def build(out: Path) -> Iterator[tuple[str, int, int]]:
    """Write the sets that are not there yet. Yields (split, samples, shards) of each."""
    sets: tuple[tuple[Split, dict[str, int]], ...] = (("train", TRAIN), ("heldout", HELDOUT))
    for split, counts in sets:
        folder = out / split
        if not (folder / shards.INDEX).exists():
            samples = mixed(split, counts)
            shards.write(samples, folder, shards.WriteOptions(per_shard=-(-len(samples) // SHARDS)))
        index = shards.load_index(str(folder), Source())
        yield split, sum(s.samples for s in index), len(index)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m data.quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets train/ and heldout/")
    try:
        for split, samples, count in build(parser.parse_args().out):
            print(f"{split}: {samples} samples in {count} shards")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
