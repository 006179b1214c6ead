"""Imported by the server that worker processes are forked from, and by nothing else: see data/loader.py.

Workers start at once, as the server has the large imports already. Signals that end a run gently are not for them: the
rank decides when it needs no more samples, and they end with it.
"""

import signal

import torch  # noqa: F401
import transformers  # noqa: F401

import data.processor  # noqa: F401

for ignored in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(ignored, signal.SIG_IGN)
