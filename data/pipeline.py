"""The whole way from shard sets to packs, put together."""

from collections.abc import Callable
from pathlib import Path

from data.bad import Quarantine
from data.loader import Loader
from data.pack import Packs, Prompts
from data.prepare import Prepare
from data.processor import Encoded
from data.stream import DataConfig, Stream


def packs_of(
    config: DataConfig,
    encode: Callable[..., Encoded],
    cost: Callable[[Encoded], int],
    budget: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    quarantine: Path | None = None,
) -> Packs:
    """The packs of one rank. `encode` and `cost` go to worker processes and must be picklable.

    `quarantine`: the folder for the file that names this rank's bad samples.
    """
    prepare = Prepare(encode, cost, budget, config.oversize, config.limits)
    loader = Loader(Stream(config, rank, ranks, seed), prepare, config.workers)
    return Packs(loader, budget, config.window, _named(config, quarantine, rank))


def prompts_of(
    config: DataConfig,
    encode: Callable[..., Encoded],
    cost: Callable[[Encoded], int],
    budget: int,
    count: int,
    seed: int,
    rank: int,
    ranks: int,
    quarantine: Path,
) -> Prompts:
    """The same in lists of `count` samples, which keep the bytes of their pictures."""
    prepare = Prepare(encode, cost, budget, config.oversize, config.limits, pictures=True)
    loader = Loader(Stream(config, rank, ranks, seed), prepare, config.workers)
    return Prompts(loader, budget, count, _named(config, quarantine, rank))


def _named(config: DataConfig, quarantine: Path | None, rank: int) -> Quarantine:
    return Quarantine(config.bad, quarantine / f"rank_{rank}.jsonl" if quarantine else None)
