"""Which keys a set has so far, in 8 bytes each: sets may have more samples than their keys would fit in memory."""

import hashlib

import numpy as np

RECENT = 2**16  # keys that wait to be sorted


class Keys:
    """A growing set of keys. Two different ones are taken for the same once in 10 ** 19 pairs."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[np.ndarray] = []  # sorted, each longer than the next

    def add(self, key: str) -> bool:
        """Take a key in. False when it was there."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        if value in self._recent or any(_holds(run, value) for run in self._runs):
            return False
        self._recent.add(value)
        if len(self._recent) >= RECENT:
            self._settle()
        return True

    def _settle(self) -> None:
        run = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # in place
        self._runs.append(run)


def _holds(run: np.ndarray, value: int) -> bool:
    place = int(np.searchsorted(run, np.uint64(value)))
    return place < len(run) and int(run[place]) == value
