"""Stands where trainer/main.py and eval/run_*.py would, so that Slurm and the scripts are tested in seconds.

It keeps to the trainer's word: ranks wait for each other at the start, 0 is finished, 75 is stopped, when all of them
agree on it. Every start adds a line of JSON to log.jsonl. Keys: stops=N, wait to be stopped in each of the first N
starts; fail=RANK:CODE, how this rank ends.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

KEPT = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
KEPT += ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME"]

received: list[int] = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: received.append(number))

with open("log.jsonl", "a") as log:
    facts = {name: os.environ.get(name) for name in KEPT}
    log.write(json.dumps(facts | {"pid": os.getpid(), "script": sys.argv[0], "arguments": sys.argv[1:]}) + "\n")
if "--checkpoint" in sys.argv:
    sys.exit()

keys = dict(argument.split("=", 1) for argument in sys.argv[2:])
rank, restarts = os.environ["RANK"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def meet(name: str) -> None:
    """Wait until all ranks have come here."""
    place = Path(f"{name}-{os.environ['SLURM_JOB_ID']}-{restarts}")
    place.mkdir(exist_ok=True)
    (place / rank).touch()
    while len(list(place.iterdir())) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)


meet("start")
failing, _, code = keys.get("fail", "").partition(":")
if failing == rank:
    sys.exit(int(code))
waits = restarts < int(keys.get("stops", "0"))
deadline = time.monotonic() + (120 if waits else 0.5)
while time.monotonic() < deadline:
    if received:
        meet("stop")
        time.sleep(int(rank))  # they do not end at the same time
        print(f"rank {rank}: saved", flush=True)
        sys.exit(75)
    time.sleep(0.05)
sys.exit(f"rank {rank}: nothing stopped it" if waits else 0)
