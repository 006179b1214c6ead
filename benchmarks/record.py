"""Prints benchmark rows as JSON lines and, when asked, keeps them with machine, versions and date."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("torch", "transformers", "deepspeed", "triton", "flash-attn", "liger-kernel"),
    *("pillow", "webdataset", "megatron-energon", "datasets"),
)
Row = dict[str, Any]  # case, ours, peer, peer_name, ratio (ours / peer), unit; more where a benchmark says so


def row(case: str, ours: float | None, peer: float | None, peer_name: str | None, unit: str, **more: Any) -> Row:
    """One comparison; None where there is nothing to compare with, or nothing came out (`note` says why)."""
    ratio = ours / peer if ours is not None and peer else None
    return {"case": case, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "unit": unit} | more


def emit(name: str, rows: list[Row], folder: Path | None, shown: int = 0) -> None:
    """Print the rows that were not shown yet, one JSON object a line, and keep all of them in a folder."""
    lines = [json.dumps(r) for r in rows]
    print("\n".join(lines[shown:]), flush=True)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("\n".join([json.dumps(circumstances()), *lines]) + "\n")


def circumstances() -> dict[str, Any]:
    """Where, when and with what something was measured."""
    return {
        "command": "python -m " + " ".join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        **_gpus(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {"gpu": name, "driver": driver, "cuda": torch.version.cuda or "none"}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
