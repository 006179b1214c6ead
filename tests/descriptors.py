"""What tests of open files share."""

import contextlib
import os


def open_files(start: str) -> int:
    """How many descriptors of this process are files whose paths begin so. Others come and go with earlier tests."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found += os.readlink(f"/proc/self/fd/{number}").startswith(start)
    return found
