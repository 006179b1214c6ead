"""The quickstart's shard sets: easy-vqa and generated puzzles, mixed, with held-out items of both.

    python -m data.quickstart --out runs/embedded [--puzzles]

With --puzzles those of its reinforcement learning instead: other puzzles of three kinds, which the quickstart has begun
to learn and not finished.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data import puzzles, shards
from data.convert import easy_vqa
from data.convert.easy_vqa import Split
from data.sample import Sample, UserError
from data.source import Source

KINDS = tuple(puzzles.KINDS)
TRAIN = {"easy_vqa": 26_000, "puzzles": 30_000}
HELDOUT = {"easy_vqa": 1_200, "puzzles": 900}
PRACTICE = ("analogy", "pattern", "rotation")  # kinds of puzzles to reinforce
PRACTICE_SETS: dict[Split, int] = {"train": 15_000, "heldout": 900}
PRACTICE_SEED = 1  # other puzzles than those of the mix, by its seed 0
SHARDS = 64  # as many as there are lanes by default


def mixed(split: Split, counts: dict[str, int], seed: int = 0) -> list[Sample]:
    """A seeded mix of both sources in random order."""
    rng = random.Random(f"{seed}/{split}")
    real = rng.sample(list(easy_vqa.read(split)), counts["easy_vqa"])
    drawn = puzzles.stream(KINDS, split, counts["puzzles"], sizes=(64,), difficulties=(1,), seed=seed)
    samples = [*real, *drawn]
    rng.shuffle(samples)
    return samples


def practice(split: Split, count: int) -> list[Sample]:
    """Puzzles to reinforce, in random order."""
    drawn = list(puzzles.stream(PRACTICE, split, count, sizes=(64,), difficulties=(1,), seed=PRACTICE_SEED))
    random.Random(f"{PRACTICE_SEED}/{split}").shuffle(drawn)
    return drawn


def build(out: Path, only_puzzles: bool = False) -> Iterator[tuple[str, int, int]]:
    """Write the sets that are not there yet. Yields (name, samples, shards) of each."""
    makers: dict[str, Callable[[], list[Sample]]] = {
        "train": partial(mixed, "train", TRAIN),
        "heldout": partial(mixed, "heldout", HELDOUT),
    }
    if only_puzzles:
        makers = {f"puzzles_{split}": partial(practice, split, count) for split, count in PRACTICE_SETS.items()}
    for name, make in makers.items():
        folder = out / name
        if not (folder / shards.INDEX).exists():
            samples = make()
            shards.write(samples, folder, shards.WriteOptions(per_shard=-(-len(samples) // SHARDS)))
        index = shards.load_index(str(folder), Source())
        yield name, sum(s.samples for s in index), len(index)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m data.quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets")
    parser.add_argument(
        "--puzzles", action="store_true", help="puzzles_train/ and puzzles_heldout/ in place of the mix"
    )
    arguments = parser.parse_args()
    try:
        for name, samples, count in build(arguments.out, arguments.puzzles):
            print(f"{name}: {samples} samples in {count} shards")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
