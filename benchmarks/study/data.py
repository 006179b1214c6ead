"""The study's shard sets and its untrained backbone: generated puzzles of two kinds, with right and with noisy answers.

A noisy answer is the right one or, in a share of the samples, a letter drawn from all four: the picture then leaves the
answer open, and a posterior that has seen it knows more than any prior can.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from data import puzzles, shards
from data.sample import LETTERS, Sample
from data.shards import WriteOptions, read_set
from model.backbones import tiny

KINDS = ("counting", "relative_position")
HELDOUT = 512
TRAIN = 6000  # by default
SEED = 7  # other puzzles than the quickstart's
SHARDS = 16
CLEAN, DRAWN = "clean", "drawn"
NOISE = {CLEAN: 0.0, "noisy": 0.5, "hidden": 0.3, DRAWN: 0.9}  # share of the answers that are drawn, by set
UNTRAINED = "untrained"
SHAPE = {"width": 64, "layers": 3, "vision_layers": 1}  # of the backbone


def noisy(sample: Sample, share: float) -> Sample:
    """The sample with its answer drawn anew with that probability; the same for the same key."""
    rng = random.Random(f"{SEED}/{share}/{sample.key}")
    if rng.random() >= share:
        return sample
    assert sample.text.choices
    letter = rng.choice(LETTERS[: len(sample.text.choices)])
    return sample.model_copy(update={"text": sample.text.model_copy(update={"answer": letter})})


def build(out: Path, train: int = TRAIN) -> None:
    """Write the sets (out/NAME/train, out/NAME/heldout) and a backbone of random weights, those not there yet."""
    for split, count in {"train": train, "heldout": min(HELDOUT, train)}.items():
        drawn: list[Sample] = []
        for name, share in NOISE.items():
            folder = out / name / split
            if (folder / shards.INDEX).exists():
                continue
            drawn = drawn or list(_drawn(split, count))
            answered = [noisy(sample, share) for sample in drawn]
            shards.write(answered, folder, WriteOptions(per_shard=-(-count // SHARDS)))
    if not (out / UNTRAINED / "config.json").exists():
        tiny.build(list(read_set(str(out / CLEAN / "train"))), out / UNTRAINED, vocabulary=320, shape=SHAPE)


def _drawn(split: str, count: int) -> Iterator[Sample]:
    """Puzzles of all kinds in random order."""
    samples = list(puzzles.stream(KINDS, split, count, sizes=(64,), difficulties=(1,), seed=SEED))
    random.Random(SEED).shuffle(samples)
    yield from samples
