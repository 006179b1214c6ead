"""A trace of chosen steps by torch.profiler, on rank 0: `train.profile: [first, last]`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from trainer.config import Config


class Profiler:
    """Records the steps that the configuration names and writes them as one Chrome trace.

    It is on in rank 0 alone and asks nothing of the others. A run resumed between the two steps records the rest.
    Recorded steps are slower than others, the first of them most.
    """

    def __init__(self, config: Config, rank: int) -> None:
        first, last = config.train.profile or (1, 0)
        self.wanted = range(first, last + 1) if rank == 0 else range(0)
        self.folder = config.run.path / "profile"
        self.first = 0
        self.recording: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step; it stands in the trace as `step NUMBER`."""
        if number not in self.wanted:
            yield
            return
        if self.recording is None:
            self.first, self.recording = number, profile(activities=_activities())
            self.recording.start()
        with record_function(f"step {number}"):
            yield
        if number == self.wanted[-1]:
            self._write(self.recording, number)

    def _write(self, recording: profile, last: int) -> None:
        recording.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"steps_{self.first}_to_{last}.json.gz"
        recording.export_chrome_trace(str(path))
        print(f"{path}: trace of steps {self.first} to {last}, for ui.perfetto.dev or chrome://tracing")


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
