"""Which samples a step was taken on, written down by each rank."""

import contextlib
import json
from pathlib import Path
from typing import Any


class Ledger:
    """A file of JSON lines, `folder/rank_R.jsonl`. It never fails: what it serves matters more than it does."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.path = folder, folder / f"rank_{rank}.jsonl"

    def write(self, step: int, samples: list[str], **more: Any) -> None:
        """Note a step. One that is taken again after a resume is there again, and the later line holds."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **more, "samples": samples}) + "\n")
