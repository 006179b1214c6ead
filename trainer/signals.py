"""Requests to stop: by a signal, or because the launcher is gone.

SIGTERM, SIGUSR1, SIGINT and SIGHUP ask for a checkpoint and an end; a second one ends the process at once. A launcher
that is killed leaves its ranks behind, and nobody to stop them: they take it as a request as well.
"""

import os
import signal
import threading
import time

import psutil

STOPPED = 75  # exit code (EX_TEMPFAIL of sysexits.h): stopped and saved, start again to go on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# Seconds in which signals count as one: a launcher passes on what the terminal or Slurm has sent to all already.
BURST = 5.0
LAUNCHERS = ("deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "torch.distributed.run")


class Stop:
    """Whether this rank was asked to stop, and by what. Main thread only."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._since = 0.0
        self._launchers = [one for one in psutil.Process().parents()[:2] if _is_launcher(one)]
        # Python's own handlers wait while the main thread is in a collective; this way a thread has the signal at once.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals").start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for one in SIGNALS:
            if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN:  # under nohup
                signal.signal(one, lambda *_: None)

    @property
    def reason(self) -> str | None:
        """What asks this rank to stop; None while nothing does."""
        if self._signal is None and any(map(_is_gone, self._launchers)):
            return "the launcher is gone"
        return self._signal

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 1):
                self._take(number)

    def _take(self, number: int) -> None:
        if number not in SIGNALS:  # but SIGCHLD, of torch's DataLoader
            return
        if self._signal is None:
            self._signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > BURST:
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
