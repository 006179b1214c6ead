"""Where a run will be, for planning: the machine at hand, or the GPUs that the command line describes."""

import argparse
import os
import re
from typing import NamedTuple

import torch

from data.sample import UserError
from trainer.step_time import GPUS, NODE

RESERVE = 0.06  # of a GPU's memory: CUDA context, NCCL, cuBLAS, fragmentation
UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20}


class PlanError(UserError):
    """A run that cannot fit, or a plan that cannot be made."""


class Target(NamedTuple):
    """Where the run will be."""

    ranks: int
    room: float  # bytes of each rank
    gpu: str | None  # None: ranks on the CPU
    words: str


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments that describe a target."""
    parser.add_argument("--gpus", type=int, help="how many GPUs (default: those of this machine)")
    parser.add_argument("--memory", help="of each, e.g. 80GiB (default: as --gpu has, or this machine's)")
    parser.add_argument("--gpu", choices=GPUS, help="kind of GPU, for speeds (default: h100)")


def target_of(arguments: argparse.Namespace) -> Target:
    """The machine described, or the one at hand."""
    if arguments.gpus is not None and arguments.gpus < 1:
        raise PlanError(f"--gpus {arguments.gpus}: at least 1")
    if arguments.gpu is not None and arguments.gpu not in GPUS:
        raise PlanError(f"--gpu {arguments.gpu!r}: not a known kind; the kinds are {', '.join(GPUS)}")
    if arguments.gpus or arguments.memory or arguments.gpu:
        kind = arguments.gpu or "h100"
        if kind not in GPUS:
            raise PlanError(f"--gpu {kind!r}: the kinds are {', '.join(GPUS)}")
        memory = read_size(arguments.memory) if arguments.memory else GPUS[kind].memory
        ranks = arguments.gpus or NODE
        return Target(ranks, memory * (1 - RESERVE), kind, f"{ranks} x {kind} of {gib(memory)}")
    if torch.cuda.is_available():
        ranks, name = torch.cuda.device_count(), torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory
        kind = next((k for k in GPUS if k in name.lower()), "h100")
        return Target(ranks, memory * (1 - RESERVE), kind, f"{ranks} x {name} of {gib(memory)}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Target(1, memory * (1 - RESERVE), None, f"one rank on this machine's CPU, {gib(memory)}")


def read_size(text: str) -> float:
    """Bytes of e.g. 80GiB; PlanError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB)", text.strip())
    if not match:
        raise PlanError(f"--memory {text!r}: write a number and {', '.join(UNITS)}, e.g. 80GiB")
    return float(match[1]) * UNITS[match[2]]


def gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
