"""Checkpoints of a run: complete or absent, found without a pointer file.

runs/NAME/checkpoints/step_N/   DeepSpeed's shards, stream_R.json per rank, and complete.json, last
"""

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch
import yaml
from deepspeed import DeepSpeedEngine

from data.pack import Packs
from trainer.config import Config, ConfigError

MARK = "complete.json"
FREE = ("workers", "bad", "source")  # of data


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0  # spent in steps


def agreed(run: Path) -> Path | None:
    """The newest complete checkpoint as rank 0 sees it, so that a slow file system cannot part the ranks."""
    found = [newest(run) if dist.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    complete = [p.parent for p in run.glob(f"checkpoints/step_*/{MARK}")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What the completion mark holds."""
    facts: dict[str, Any] = json.loads((checkpoint / MARK).read_text())
    return facts


def save(run: Path, step: int, engine: DeepSpeedEngine, stream: dict[str, Any], facts: dict[str, Any]) -> Path:
    """Write a checkpoint with the stream's state; every rank must call it.

    The mark is written when all ranks have theirs on disk.
    """
    folder = run / "checkpoints" / f"step_{step}"
    if dist.get_rank() == 0 and folder.exists():
        shutil.rmtree(folder)  # one that was never finished
    dist.barrier()
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    (folder / f"stream_{dist.get_rank()}.json").write_text(json.dumps(stream))
    dist.barrier()
    if dist.get_rank() == 0:
        part = folder / (MARK + ".part")
        with part.open("w") as file:
            json.dump(facts | {"step": step, "ranks": dist.get_world_size()}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / MARK)
    dist.barrier()
    return folder


def restore_stream(checkpoint: Path, packs: Packs) -> None:
    """Put the stream back to where the checkpoint was written, by as many ranks."""
    ranks = facts_of(checkpoint)["ranks"]
    if ranks != dist.get_world_size():
        raise ConfigError(
            f"{checkpoint}: written by {ranks} ranks, not {dist.get_world_size()}; start with {ranks} ranks"
        )
    states = [json.loads((checkpoint / f"stream_{rank}.json").read_text()) for rank in range(ranks)]
    packs.restore(states, dist.get_rank(), dist.get_world_size())


def restore_engine(checkpoint: Path, engine: DeepSpeedEngine) -> None:
    """Put weights, optimizer and schedule back to the checkpoint's."""
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if loaded is None:
        raise ConfigError(f"{checkpoint}: DeepSpeed found nothing to load; delete it to resume from an older one")


def refuse_other(config: Config) -> None:
    """ConfigError when the run folder holds checkpoints of another config."""
    path = config.run.path / "config.yaml"
    last = newest(config.run.path)
    if last is None:
        if left := [p for p in (config.run.path / "export", config.run.path / "summary.json") if p.exists()]:
            raise ConfigError(f"{left[0]}: left from an earlier run; name another run.name or delete {config.run.path}")
        return
    theirs = path.read_text() if path.is_file() else ""
    for here, there in itertools.zip_longest(_fixed(config.to_yaml()), _fixed(theirs), fillvalue=""):
        if here != there:
            raise ConfigError(
                f"{path}: {last.name} is of another config ({there.strip()!r} there, {here.strip()!r} here); "
                f"name another run.name or delete {config.run.path}"
            )


def _fixed(text: str) -> list[str]:
    """Lines of a config without what a run may be resumed with another value of: it changes no sample and no step."""
    values = yaml.safe_load(text) or {}
    for name in FREE:
        values.get("data", {}).pop(name, None)
    return yaml.safe_dump(values, sort_keys=False).splitlines()


def claim(config: Config) -> None:
    """Write the config into the run folder. Rank 0 only, after `refuse_other`."""
    config.run.path.mkdir(parents=True, exist_ok=True)
    (config.run.path / "config.yaml").write_text(config.to_yaml())
