"""Another number of ranks than wrote a checkpoint: DeepSpeed's universal form of it, made once and loaded by all.

The form holds every weight and its optimizer state as a whole, in files of their own; each rank takes its share.
"""

import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine

from data.sample import UserError
from data.worker import ignore_signals
from trainer.checkpoint import PART, sync

FORM = "universal"
PROCESSES = 8  # that convert; each holds the shards of one rank in memory
POLL = 1.0  # seconds


class ConvertError(UserError):
    """A checkpoint that could not be brought into the universal form."""


def convert(checkpoint: Path) -> None:
    """Make `checkpoint/universal`, unless it is there. For one rank; ConvertError when DeepSpeed cannot."""
    final = checkpoint / FORM
    if final.is_dir():
        return
    for left in checkpoint.glob(f"{FORM}.*{PART}"):
        shutil.rmtree(left, ignore_errors=True)
    # Of its own: a converter that outlived its rank may still write to another.
    part = checkpoint / f"{FORM}.{uuid.uuid4().hex}{PART}"
    workers = str(min(PROCESSES, os.cpu_count() or 1))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint), "--output_folder", str(part)]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    print(f"{checkpoint}: written by another number of ranks; converting it, once", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=ignore_signals)
    if done.returncode:
        shutil.rmtree(part, ignore_errors=True)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConvertError(f"{checkpoint}: not converted ({last}); free disk space, or start as many ranks as wrote it")
    for path in part.rglob("*"):
        sync(path)
    (checkpoint / f"latest_{FORM}").unlink(missing_ok=True)  # DeepSpeed's pointer file, which nothing reads
    part.rename(final)


def wait_for(checkpoint: Path) -> None:
    """Until another rank has made the universal form. If that one fails, its end ends this rank."""
    while not (checkpoint / FORM).is_dir():
        time.sleep(POLL)


def load(checkpoint: Path, engine: DeepSpeedEngine) -> bool:
    """Load the universal form into an engine that was built with `load_universal`. Whether there was anything.

    DeepSpeed (0.19) gives all parameter groups the first one's settings, and all optimizer states one and the same
    tensor for their step count, which each of them would then advance; both are put right here.
    """
    groups = engine.optimizer.param_groups
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    loaded, _ = engine.load_checkpoint(str(checkpoint), tag=FORM)
    if loaded is None:
        return False
    for group, settings, rate in zip(groups, own, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(settings | {"lr": rate})
    states: dict[Any, dict[str, Any]] = engine.optimizer.optimizer.state
    for state in states.values():
        if isinstance(state["step"], torch.Tensor):
            state["step"] = state["step"].clone()
    return True
