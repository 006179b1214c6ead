"""Imported by the server that worker processes are forked from, and by nothing else: see data/loader.py.

Workers start at once, as the server has the large imports already.
"""

import torch  # noqa: F401
import transformers  # noqa: F401

import data.processor  # noqa: F401
from data.worker import ignore_signals

ignore_signals()
