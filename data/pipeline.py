"""The whole way from shard sets to packs, put together."""

from collections.abc import Callable
from pathlib import Path

from data.bad import Quarantine
from data.loader import Loader
from data.pack import Packs
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
    stream = Stream(config, rank, ranks, seed)
    loader = Loader(stream, Prepare(encode, cost, budget, config.oversize, config.limits), config.workers)
    named = Quarantine(config.bad, quarantine / f"rank_{rank}.jsonl" if quarantine else None)
    return Packs(loader, budget, config.window, named)
