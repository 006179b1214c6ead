"""What tests of processes and of their open files share."""

import contextlib
import os
import time

import psutil


def open_files(start: str) -> int:
    """How many descriptors of this process are files whose paths begin so. Others come and go with earlier tests."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found += os.readlink(f"/proc/self/fd/{number}").startswith(start)
    return found


def gone(pids: list[int], seconds: float) -> bool:
    """Whether all of them end within so long."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
