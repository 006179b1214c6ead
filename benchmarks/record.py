"""Prints benchmark rows as JSON lines and, when asked, keeps them with machine, versions and date."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "deepspeed")


def emit(name: str, rows: list[dict[str, Any]], unit: str, save: bool) -> None:
    """One JSON object a line: case, ours, peer, peer_name, ratio (ours / peer), unit."""
    lines = [json.dumps(row | {"unit": unit}) for row in rows]
    print("\n".join(lines))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.jsonl").write_text("\n".join([json.dumps(circumstances()), *lines]) + "\n")


def circumstances() -> dict[str, Any]:
    """Where, when and with what something was measured."""
    return {
        "command": "python -m " + " ".join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
