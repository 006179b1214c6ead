"""A rank for test_watch.py: it goes wrong in some way while the others wait for it.

python -m tests.trainer.watched HOW FOLDER, with the environment of a rank
"""

import os
import sys
import time
from pathlib import Path

import torch

from trainer.watch import Watch, WatchConfig


def main() -> None:
    how, folder = sys.argv[1], Path(sys.argv[2])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    with Watch(WatchConfig(stall_seconds=2), folder, rank, ranks) as watch:
        watch.at(7, "data")
        if how == "data" and rank == 1:
            time.sleep(60)
        watch.at(7, "rollout", 1)
        if how == "rollout" and rank == 1:
            time.sleep(60)
        for token in range(50 if how == "draws" else 0):  # longer than a stall may be
            watch.at(7, "rollout", token)
            time.sleep(0.1)
        if how == "draws":
            if rank == 1:
                watch.ask_to_stop()
            until = time.monotonic() + 20
            while not watch.stop_asked and time.monotonic() < until:
                time.sleep(0.05)
            print("stops" if watch.stop_asked else "does not stop")
        watch.at(7, "step")
        if how == "fails" and rank == 2:
            raise ValueError("this one is to blame")
        if how == "sleeps" and rank == 1:
            time.sleep(60)
        if how == "fails":
            time.sleep(60)  # in no collective that would notice
        torch.distributed.barrier()
        watch.at(8, "save")
        time.sleep(5 if how == "saves" else 0)  # longer than a stall may be
    print("well")


if __name__ == "__main__":
    main()
