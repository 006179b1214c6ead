"""Requests to stop: by a signal, or because the launcher is gone.

SIGTERM, SIGUSR1, SIGINT and SIGHUP ask for a checkpoint and an end; the same one again ends the process at once.
Another does not: Slurm warns by SIGUSR1, and lets SIGTERM follow when the time is up. A launcher that is killed leaves
its ranks behind, and nobody to stop them: they take it as a request as well.
"""

import os
import signal
import threading
import time
from multiprocessing import resource_tracker

import psutil

STOPPED = 75  # exit code (EX_TEMPFAIL of sysexits.h): stopped and saved, start again to go on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# Seconds in which a signal counts once: a launcher passes on what the terminal or Slurm has sent to all already.
BURST = 5.0
LAUNCHERS = ("deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "torch.distributed.run")


class Stop:
    """Whether this rank was asked to stop, and by what. Main thread only."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # when each signal first came
        self._launchers = [one for one in psutil.Process().parents()[:2] if _is_launcher(one)]
        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        # Slurm signals every process of a job, and this one of Python's, which frees shared memory, is to live on.
        for one in (signal.SIGUSR1, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        resource_tracker.ensure_running()
        # Python's own handlers wait while the main thread is in a collective; this way a thread has the signal at once.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals").start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for one in SIGNALS:
            if one != signal.SIGHUP or not under_nohup:
                signal.signal(one, lambda *_: None)

    @property
    def reason(self) -> str | None:
        """What asks this rank to stop; None while nothing does."""
        if not self._since and any(map(_is_gone, self._launchers)):
            return "the launcher is gone"
        return signal.Signals(next(iter(self._since))).name if self._since else None

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 1):
                self._take(number)

    def _take(self, number: int) -> None:
        if number not in SIGNALS:  # but SIGCHLD, of torch's DataLoader
            return
        now = time.monotonic()
        if now - self._since.setdefault(number, now) > BURST:
            os._exit(128 + number)


def _is_launcher(process: psutil.Process) -> bool:
    """Of Python, by the script or module it runs; a shell whose command line names one is none."""
    try:
        program, *words = process.cmdline()[:4]
    except (psutil.Error, ValueError):
        return False
    return "python" in os.path.basename(program) and any(os.path.basename(word) in LAUNCHERS for word in words)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
