"""Speed and memory on one GPU: `sft` and `amvl` on 16,384 packed image-text tokens, random weights of real shapes.

    python -m benchmarks.gpu [--save | --out DIR] [--seconds 450]
    python -m benchmarks.gpu --tiny                     # the same code on a CPU, with a small model

First the attention back ends that can run here must agree: packed attention on random layouts with a dense reference
in float64, and two full-width layers of the 7B model with fp32; otherwise nothing is timed. Then attention alone, then
whole steps with the most telling cases first, until the time is spent. 7B runs forward and backward pass without an
optimizer, whose state (16 bytes a weight with weights and gradients) would leave no room for activations on 80 GB;
3B, and 7B where it fits, take whole steps under DeepSpeed ZeRO-3 with AdamW at world size 1. Both objectives see the
same 14 samples of one image (704 to 832 tokens) and 64 answer tokens each; 8 slots; the vision tower is frozen.

One JSON object a line. Of `sft`, `peer` is the time that the model's FLOPs take at the device's peak, so that mfu =
1 / ratio (trainer/throughput.py says what counts); of `amvl` it is `sft` in the same case.
"""

import argparse
import importlib
import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks import gpu_checks
from benchmarks.gpu_cases import Case, measure
from benchmarks.gpu_models import FAMILY, GPU, TINY, Setting
from benchmarks.record import RESULTS, Row, emit, row
from model import fused
from model.attention import AttentionError, Choice, choose
from trainer.run import ALONE

BACK_ENDS: tuple[Choice, ...] = ("flash", "varlen", "sdpa")


def back_ends(setting: Setting) -> tuple[list[Choice], list[Row]]:
    """Those that can run here, sdpa last, and a row for each that cannot."""
    language, vision = FAMILY.head_sizes(setting.config("7B"))
    names: list[Choice] = []
    rows = []
    for name in BACK_ENDS:
        try:
            choose(name, {"language model": language, "vision tower": vision}, setting.dtype == torch.bfloat16)
            names.append(name)
        except AttentionError as error:
            rows.append(row(name, None, None, None, "s", note=f"left out: {error}"))
    return names, rows


def obstacle_to_zero3() -> str | None:
    """Joins a process group of one; or says why DeepSpeed cannot be used."""
    try:
        os.environ |= {name: os.environ.get(name, value) for name, value in (ALONE | {"MASTER_PORT": "0"}).items()}
        importlib.import_module("trainer.engine")
        importlib.import_module("deepspeed").init_distributed(verbose=False)
    except Exception as error:  # it looks for compilers and devices as it is imported
        return f"{type(error).__name__}: {error}"
    return None


def cases(names: list[Choice], liger: bool, zero3: bool) -> list[Case]:
    """All cases, the most telling first."""
    best = names[0]
    first = [
        Case("7B", best, "half", liger),
        Case("7B", best, "all", liger),
        Case("3B", best, "half", liger, zero3=True),
        Case("7B", best, "no", liger),
        *(Case("7B", name, "half", liger) for name in names[1:]),
        Case("7B", best, "half", False),
        Case("3B", best, "all", liger, zero3=True),
        Case("3B", names[-1], "half", liger, zero3=True),
        Case("7B", best, "all", liger, zero3=True),  # late: where it does not fit, DeepSpeed leaves memory behind
    ]
    rest: Iterable[tuple] = itertools.product(("7B",), names, ("all", "no"), (True, False) if liger else (False,))
    ordered = dict.fromkeys([*first, *(Case(*values) for values in rest)])
    return [case for case in ordered if zero3 or not case.zero3]


def main(given: list[str] | None = None) -> int:
    """Command line of this module. Returns 1 where a case broke for another reason than memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/gpu.jsonl")
    parser.add_argument("--out", type=Path, help="also write gpu.jsonl to this folder")
    parser.add_argument("--seconds", type=float, default=450, help="start no case after so long")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, to see that all of it runs")
    arguments = parser.parse_args(given)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --tiny runs on the CPU")
    started, setting = time.monotonic(), TINY if arguments.tiny else GPU
    folder = RESULTS if arguments.save else arguments.out
    names, rows = back_ends(setting)
    liger = fused.missing()
    zero3 = "it would take the GPU" if arguments.tiny and torch.cuda.is_available() else obstacle_to_zero3()
    for what, reason in (("liger", liger), ("ZeRO-3", zero3)):
        if reason:
            rows.append(row(what, None, None, None, "s", note=f"left out: {reason}"))
    shown, broken = 0, False

    def add(more: list[Row]) -> None:
        nonlocal shown
        rows.extend(more)
        emit("gpu", rows, folder, shown)
        shown = len(rows)

    add(gpu_checks.layouts_agree(setting, names, 4 if arguments.tiny else 24))
    add(gpu_checks.models_agree(setting, names))
    add(gpu_checks.attention_alone(setting, names))
    for case in cases(names, not liger and not arguments.tiny, not zero3):
        if time.monotonic() - started > arguments.seconds:
            add([row(str(case), None, None, None, "s", note="left out: the time is spent")])
            continue
        try:
            add(measure(setting, case))
        except Exception as error:  # the other cases still tell something
            traceback.print_exc()
            broken = True
            add([row(str(case), None, None, None, "s", note=f"broke: {type(error).__name__}: {error}")])
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
