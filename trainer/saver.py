"""Writes checkpoints while training goes on: a step waits for the copy of its state only, not for the disk.

Every rank copies what DeepSpeed would write and a thread writes it. Ranks learn of each other's writing through the
sums that every step takes anyway, so that whatever happens to one, all of them come to the same end: the checkpoint is
marked complete, or it is given up, with a warning, and training goes on.
"""

import copy
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed.comm as dist
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from data.sample import UserError
from data.threads import Threads
from trainer import checkpoint
from trainer.config import Config

log = logging.getLogger(__name__)
SHARED_MEMORY = Path("/dev/shm")
SPARE = 1.02  # room asked for, over what the tensors take


class SaveError(UserError):
    """A run that cannot keep what it has reached."""


class Copy(CheckpointEngine):
    """What DeepSpeed's engine saves, copied to the CPU's memory, by file name. It raises nothing.

    DeepSpeed's ranks meet in barriers on the way through a save: one that broke out of it would leave the others there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Any] = {}
        self.error: Exception | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        try:
            self.files[Path(path).name] = _to_cpu(state_dict)
        except (MemoryError, RuntimeError) as error:
            self.error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


class Writing(NamedTuple):
    """A checkpoint on its way to the disk."""

    folder: Path  # .part
    facts: dict[str, Any]
    mine: Future[None]
    started: float


class Saver:
    """Saves an engine's run. Every rank calls the same methods at the same steps."""

    def __init__(self, config: Config, engine: DeepSpeedEngine) -> None:
        self.config, self.engine = config, engine
        self.seconds: dict[str, float] = {}  # of the last checkpoint: training waited, and it took to be complete
        self.saved: int | None = None  # step of the last one that is complete
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._thread = Threads(1, "saver")
        self._writing: Writing | None = None

    def save(
        self, step: int, stream: dict[str, Any], facts: dict[str, Any], more: dict[str, Any] | None = None
    ) -> None:
        """Take a copy of everything and begin to write it, with the stream's state. An earlier one is finished first.

        `facts` go into the mark, `more` are this rank's other files, which do not change any more.
        """
        started = time.perf_counter()
        self.finish()
        files, error = self._copies()
        files |= {f"random_{self._rank}.pt": checkpoint.random_state()} | (more or {})
        part = checkpoint.folder_of(self.config.run.path, step).with_suffix(checkpoint.PART)
        room = self._make_room(part, files)  # on every rank, as they add up what they need
        problem = error or room
        if self._over_ranks(float(problem is not None)):
            self._give_up(part, problem)
        else:
            write = partial(checkpoint.write_files, part, files, self._rank, copy.deepcopy(stream))
            facts = copy.deepcopy(facts) | {"step": step, "ranks": self._ranks}
            self._writing = Writing(part, facts, self._thread.submit(write), started)
        if not self.config.train.save_in_background:
            self.finish()
        self.seconds["stall"] = time.perf_counter() - started

    def status(self) -> tuple[float, float]:
        """Whether this rank has written all of the checkpoint on its way, and whether it could not. For `settle`."""
        if self._writing is None or not self._writing.mine.done():
            return 0.0, 0.0
        return (0.0, 1.0) if self._writing.mine.exception() else (1.0, 0.0)

    def settle(self, written: float, failed: float) -> None:
        """Mark the checkpoint complete, or give it up, when all ranks are through. Takes the sums of `status`."""
        if self._writing is None or written + failed < self._ranks:
            return
        writing, self._writing = self._writing, None
        if failed:
            self._give_up(writing.folder, writing.mine.exception())
        elif self._rank == 0:
            try:
                checkpoint.mark(writing.folder, writing.facts)
            except OSError as error:
                self._give_up(writing.folder, error)
                return
            self.saved = writing.facts["step"]
            self.seconds["whole"] = time.perf_counter() - writing.started
            train = self.config.train
            for one in checkpoint.superfluous(self.config.run.path, train.keep_last, train.keep_every):
                self._thread.submit(partial(checkpoint.remove, one))

    def finish(self) -> None:
        """Wait until the checkpoint on its way is complete or given up, on all ranks."""
        if self._writing is not None:
            self._writing.mine.exception()  # waits
            written, failed = self.status()
            self.settle(self._over_ranks(written), self._over_ranks(failed))

    def close(self, step: int) -> None:
        """Finish. SaveError when the checkpoint of this step, the run's last for now, is not complete."""
        self.finish()
        complete = self._over_ranks(float(self._rank == 0 and self.saved == step))  # the mark is there for all
        if not complete:
            run = self.config.run.path
            raise SaveError(f"{run}: step {step} could not be saved, see above; mend it and start again to go on")
        # What rank 0 deletes.
        self._thread.submit(lambda: None).result()
        self._thread.close()

    def _copies(self) -> tuple[dict[str, Any], Exception | None]:
        """DeepSpeed's files of this rank, by name."""
        usual, copies = self.engine.checkpoint_engine, Copy()
        # DeepSpeed puts scripts beside what it saves, and must not fail at it: this folder is in memory.
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as scratch:
            self.engine.checkpoint_engine = copies
            try:
                self.engine.save_checkpoint(scratch, tag="copy", save_latest=False)
            finally:
                self.engine.checkpoint_engine = usual
        return copies.files, copies.error

    def _make_room(self, part: Path, files: dict[str, Any]) -> Exception | None:
        """Make the folder, by rank 0, when there is room for what all ranks have."""
        problem, needed = None, self._over_ranks(float(_bytes_of(files)))
        if self._rank == 0:
            try:
                part.parent.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(part.parent).free
                if free < SPARE * needed:
                    raise OSError(f"{needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                (part / "config.yaml").write_text(self.config.to_yaml())
                checkpoint.sync(part / "config.yaml")
            except OSError as error:
                problem = error
        return problem

    def _give_up(self, part: Path, why: BaseException | None) -> None:
        if self._rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            why = why or OSError("another rank could not")
        if why:
            log.warning("%s: not saved (%s); training goes on, older checkpoints are kept", part, why)

    def _over_ranks(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(total)
        return float(total)


def _map(action: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """The same nested containers with the action's results in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return action(value)
    if isinstance(value, dict):
        return {key: _map(action, one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(action, one) for one in value)
    return value


def _to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return _map(lambda tensor: tensor.detach().to("cpu", copy=True), state)


def _bytes_of(files: dict[str, Any]) -> int:
    sizes: list[int] = []
    _map(lambda tensor: sizes.append(tensor.nbytes), files)
    return sum(sizes)
