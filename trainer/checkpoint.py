"""Checkpoints of a run: complete or absent, found without a pointer file, and checked before they are trusted.

runs/NAME/checkpoints/step_N.part/   while it is written
runs/NAME/checkpoints/step_N/        complete:
    *_optim_states.pt, *_model_states.pt   DeepSpeed's, one of each per rank
    random_R.pt     random states of rank R
    rollout_R.pt    of reinforcement learning: what rank R has not learned from yet
    rank_R.json     of rank R: its stream's state with a checksum, and the sizes of its files; written after them
    config.yaml     the run's configuration
    complete.json   the mark, written last: step, ranks, progress, MLflow run
    universal/      made when another number of ranks goes on from it (trainer/elastic.py)
"""

import json
import os
import random
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

MARK = "complete.json"
PART, DAMAGED = ".part", ".damaged"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    samples: int = 0
    tokens: int = 0  # through the language model, all rounds
    skipped: int = 0  # steps whose gradient was not finite, so that they changed nothing
    seconds: float = 0.0  # spent in steps
    rollouts: int = 0  # of reinforcement learning, gone through to the end


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run folder that bear a mark, the newest first."""
    found = [mark.parent for mark in run.glob(f"checkpoints/step_*/{MARK}") if not mark.parent.suffix]
    return sorted(found, key=step_of, reverse=True)


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What the completion mark holds."""
    facts: dict[str, Any] = json.loads((checkpoint / MARK).read_text())
    return facts


def of_rank(checkpoint: Path, rank: int) -> dict[str, Any]:
    """A rank's stream state and file sizes."""
    found: dict[str, Any] = json.loads((checkpoint / f"rank_{rank}.json").read_text())
    return found


def fault(checkpoint: Path, rank: int, ranks: int) -> str | None:
    """What is wrong with the files that this rank is to check, or None. It reads them whole.

    Rank r of n checks the files of the writing ranks r, r + n, ...: their sizes, and the checksums that torch.save
    leaves in them but torch.load does not look at.
    """
    try:
        for writer in range(rank, facts_of(checkpoint)["ranks"], ranks):
            said = of_rank(checkpoint, writer)
            if said["sum"] != _sum(said["stream"]):
                return f"{checkpoint}/rank_{writer}.json is damaged"
            for name, size in said["files"].items():
                path = checkpoint / name
                if path.stat().st_size != size:
                    return f"{path} has {path.stat().st_size} bytes, not the {size} written"
                if bad := zipfile.ZipFile(path).testzip():
                    return f"{path} is damaged at {bad}"
    except Exception as error:  # damage has many faces: names, lengths and methods of a file that make no sense
        return f"{checkpoint} is damaged ({type(error).__name__}: {error})"
    return None


def write_files(folder: Path, files: dict[str, Any], rank: int, stream: dict[str, Any]) -> None:
    """Write a rank's files, and what the rank says of them, and wait until all are on the disk."""
    sizes = {}
    for name, content in files.items():
        torch.save(content, folder / name)
        sizes[name] = sync(folder / name)
    own = folder / f"rank_{rank}.json"
    own.write_text(json.dumps({"stream": stream, "sum": _sum(stream), "files": sizes}))
    sync(own)
    sync(folder)


def mark(folder: Path, facts: dict[str, Any]) -> Path:
    """Make the folder, which all ranks have written, a checkpoint. Returns its name as such."""
    (folder / MARK).write_text(json.dumps(facts, indent=1))
    sync(folder / MARK)
    final = folder.with_name(folder.name.removesuffix(PART))
    remove(final)  # one of this step that could not be used
    folder.rename(final)
    sync(final.parent)
    return final


def sync(path: Path) -> int:
    """Have a file or folder on the disk. Returns its size."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; broken off in the middle, what is left does not pass for one."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _sum(stream: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(stream).encode())


def superfluous(run: Path, last: int, every: int | None) -> list[Path]:
    """The checkpoints that are neither among the `last` newest nor of a step that `every` divides."""
    return [one for one in complete(run)[last:] if not every or step_of(one) % every]


def clear(run: Path, last: Path | None) -> None:
    """Of a run that goes on from `last`: put damaged newer checkpoints aside, delete what was never finished."""
    whole = complete(run)
    for one in run.glob("checkpoints/step_*"):
        if one in whole and (last is None or step_of(one) > step_of(last)):
            remove(one.with_suffix(DAMAGED))
            one.rename(one.with_suffix(DAMAGED))
        elif one not in whole and one.suffix != DAMAGED:
            remove(one)


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
