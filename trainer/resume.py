"""Where a run goes on: its newest whole checkpoint, unless the config or the ranks have changed in what matters."""

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO, Any

import deepspeed.comm as dist
import torch
import yaml
from deepspeed import DeepSpeedEngine

from data.pack import Packs
from trainer import checkpoint, elastic
from trainer.config import BATCH, Config, ConfigError

log = logging.getLogger(__name__)
# What a run may go on with another value of without being told: it changes no sample and no step.
FREE = (
    "run.folder", "run.accept", "data.workers", "data.bad", "data.source", "tracking", "watch", "health",
    "train.log_every", "train.save_every", "train.keep_last", "train.keep_every", "train.save_in_background",
    "train.profile", "train.record", "rl.pages",
)  # fmt: skip
PATIENCE = 120.0  # seconds that a run waits for the one before it to end
LOCK = "lock"


def lock(run: Path, patience: float = PATIENCE) -> IO[str] | None:
    """Keep other processes from training in this folder for as long as the file returned is open. Rank 0 only.

    A rank that outlived its launcher may still be saving: it is waited for. None where the file system has no locks.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "w")
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(f"{run}: another process trains here; end it, or name another run.name") from None
            if not said:
                print(
                    f"{run}: another process still trains here; waiting up to {patience:.0f} s for its end", flush=True
                )
                said = True
            time.sleep(0.5)
        except OSError as error:
            log.warning("%s: cannot be locked (%s); see to it that no other process trains here", run, error)
            return None


def newest(run: Path) -> Path | None:
    """The newest checkpoint that is whole, as all ranks agree; ConfigError when there are some and none is."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    # As rank 0 sees them, so that a slow file system cannot part the ranks.
    found = [checkpoint.complete(run) if rank == 0 else None]
    torch.distributed.broadcast_object_list(found)
    for one in found[0] or ():
        faults: list[str | None] = [None] * ranks
        torch.distributed.all_gather_object(faults, checkpoint.fault(one, rank, ranks))
        why = next(filter(None, faults), None)
        if why is None:
            return one
        if rank == 0:
            log.warning("%s; going on from an older checkpoint", why)
    if found[0]:
        raise ConfigError(
            f"{run}: of its checkpoints ({len(found[0])}) none is whole ({why}); delete {run / 'checkpoints'}"
        )
    return None


def refuse_change(config: Config, last: Path | None, ranks: int) -> list[str]:
    """ConfigError when the run folder is of another config, in what matters. Returns the changes that are accepted."""
    if last is None:
        if left := [p for p in (config.run.path / "export", config.run.path / "summary.json") if p.exists()]:
            raise ConfigError(f"{left[0]}: left from an earlier run; name another run.name or delete {config.run.path}")
        return []
    there = _flat(yaml.safe_load((last / "config.yaml").read_text()))
    here = _flat(yaml.safe_load(config.to_yaml()))
    batches = [
        value.pop("train.accumulation", 1) * (1 if config.rl else n)  # a rollout has as many prompts whatever the ranks
        for value, n in ((there, checkpoint.facts_of(last)["ranks"]), (here, ranks))
    ]
    there[BATCH], here[BATCH] = batches
    changed = [key for key in {**there, **here} if there.get(key) != here.get(key) and not _is(key, FREE)]
    refused = [key for key in changed if not _is(key, config.run.accept)]
    if refused:
        key = refused[0]
        means = f" micro-steps of {config.train.tokens} tokens over all ranks" if key == BATCH else ""
        mend = f"run.accept=[{','.join(changed)}]"
        raise ConfigError(
            f"{config.run.path}: {key} is {there.get(key)!r} in {last.name} and {here.get(key)!r} here{means}"
            f"{f', and {len(refused) - 1} more' if refused[1:] else ''}; go on with the change by {mend}, "
            f"or name another run.name"
        )
    return [f"{key} {there.get(key)!r} -> {here.get(key)!r}" for key in changed]


def restore_stream(last: Path, packs: Packs) -> None:
    """Put this rank's stream to where the checkpoint was written, by whatever number of ranks."""
    states = [checkpoint.of_rank(last, rank)["stream"] for rank in range(checkpoint.facts_of(last)["ranks"])]
    packs.restore(states, dist.get_rank(), dist.get_world_size())


def other_ranks(last: Path | None) -> bool:
    """Whether it was written by another number of ranks."""
    return last is not None and checkpoint.facts_of(last)["ranks"] != dist.get_world_size()


def prepare(last: Path | None) -> None:
    """Have the checkpoint in a form that these ranks can load."""
    if last and other_ranks(last):
        elastic.convert(last) if dist.get_rank() == 0 else elastic.wait_for(last)


def restore_engine(last: Path, engine: DeepSpeedEngine) -> None:
    """Put weights, optimizer, schedule and random states back to the checkpoint's."""
    if other_ranks(last):
        loaded: Any = elastic.load(last, engine)
    else:
        loaded, _ = engine.load_checkpoint(str(last.parent), tag=last.name)
        own = last / f"random_{dist.get_rank()}.pt"
        checkpoint.set_random_state(torch.load(own, weights_only=False))
    if not loaded:
        raise ConfigError(f"{last}: DeepSpeed found nothing to load; delete it to resume from an older one")


def is_claimed(run: Path) -> bool:
    """Whether a process has trained in this folder."""
    return (run / LOCK).exists()


def claim(config: Config, held: IO[str] | None, last: Path | None) -> IO[str] | None:
    """Take the run folder: lock it, write the config, clear away what no run goes on from. Rank 0 only."""
    held = held or lock(config.run.path)
    if last is None and checkpoint.complete(config.run.path):
        raise ConfigError(
            f"{config.run.path}: another process has trained here meanwhile; start again to go on from it"
        )
    (config.run.path / "config.yaml").write_text(config.to_yaml())
    checkpoint.clear(config.run.path, last)
    return held


def _is(key: str, of: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in of)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
