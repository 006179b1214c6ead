"""The study: does AMVL do what it claims? All objectives, several seeds, the same budget and the same held-out items.

    python -m benchmarks.study prepare          data, and the models that all jobs begin with
    python -m benchmarks.study run              all jobs that have no result yet, two at a time
    python -m benchmarks.study job NUMBER       one of them (slurm/study.sh runs them as an array)
    python -m benchmarks.study report --save    table, paired tests and plots from the results there are

Every training is a process of its own. Asked to stop, all of them save and the command ends with code 75; it goes on
from there the next time, as a job does that was broken off in any other way.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.study.data import TRAIN
from benchmarks.study.jobs import all_jobs, result_of
from data.sample import UserError
from trainer.signals import STOPPED, Stop

CONFIG, OUT = Path("configs/study.yaml"), Path("runs/study")
PORT = "29600"  # of the first training, unless MASTER_PORT says; each has one of its own
TICK = 0.1  # seconds between looks at a training


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.study", description=(__doc__ or "").splitlines()[0])
    found.add_argument("what", choices=("prepare", "stage", "list", "run", "job", "report"))
    found.add_argument("number", nargs="?", type=int, help="of a job, or of a stage of the preparation, from 0 on")
    found.add_argument("--config", type=Path, default=CONFIG, help=f"of the trainer; default {CONFIG}")
    found.add_argument("--out", type=Path, default=OUT, help=f"folder of data, runs and results; default {OUT}")
    found.add_argument("--parallel", type=int, default=2, metavar="N", help="jobs at a time; default 2")
    found.add_argument("--only", default="", metavar="TEXT", help="jobs whose name holds this")
    found.add_argument("--samples", type=int, default=TRAIN, metavar="N", help=f"puzzles to train on; default {TRAIN}")
    found.add_argument("--save", action="store_true", help="keep the report in benchmarks/results")
    return found


def main() -> None:
    arguments = parser().parse_args()
    try:
        code = act(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    os._exit(code)  # as trainer/main.py does: at the end of the interpreter, backends wait for ranks that are gone


def act(arguments: argparse.Namespace) -> int:
    """Do it. Returns the exit code."""
    jobs = {number: job for number, job in enumerate(all_jobs()) if arguments.only in job.name}
    if arguments.what == "list":
        for number, job in jobs.items():
            print(number, job.name, *job.settings)
        return 0
    if arguments.what == "report":
        from benchmarks.study.report import report

        return report(arguments.out, arguments.save)
    stop = Stop()  # before the imports that take seconds
    if arguments.what == "run":
        names = {number: job.name for number, job in jobs.items() if not result_of(arguments.out, job.name).exists()}
        return run_all("job", names, {}, arguments, stop)
    if arguments.what == "prepare":
        return prepare_all(arguments, stop)
    if arguments.what == "stage":
        from benchmarks.study.prepare import prepare

        return prepare(arguments.config, arguments.out, stop, arguments.number, arguments.samples)
    if arguments.number not in jobs:
        raise UserError(f"job {arguments.number}: there are 0 to {len(all_jobs()) - 1}; `list` names them")
    from benchmarks.study.job import do

    return do(jobs[arguments.number], arguments.config, arguments.out, stop)


def prepare_all(arguments: argparse.Namespace, stop: Stop) -> int:
    """Each as soon as the one is there that it goes on from."""
    from benchmarks.study.prepare import before, stages

    there = stages()
    names = {number: f"{name} {slots or ''}".strip() for number, (name, slots) in enumerate(there)}
    after = {number: there.index(first) for number, one in enumerate(there) if (first := before(*one))}
    return run_all("stage", names, after, arguments, stop)


def run_all(
    what: str, names: Mapping[int, str], after: Mapping[int, int], arguments: argparse.Namespace, stop: Stop
) -> int:
    """Trainings by number, so many at a time; `after`: the one before it that each waits for. Returns STOPPED where one
    was asked to stop or did not begin for that, 1 where one failed, when all others are done.
    """
    done: dict[int, Future[int]] = {}
    with ThreadPoolExecutor(arguments.parallel) as pool, tqdm(total=len(names), unit=what) as bar:

        def one(number: int, first: Future[int] | None) -> int:
            if first and (code := first.result()):
                return code
            if stop.reason:
                return STOPPED
            log = arguments.out / "logs" / f"{what}_{names[number].replace(' ', '_')}.txt"
            code = _run([what, str(number)], number, log, arguments, stop)
            if code not in (0, STOPPED):
                bar.write(f"{names[number]}: exit code {code}; {log}")
            bar.update()
            return code

        for number in names:
            done[number] = pool.submit(one, number, done[after[number]] if number in after else None)
    codes = [of.result() for of in done.values()]
    return STOPPED if STOPPED in codes else int(any(codes))


def _run(words: Sequence[str], number: int, log: Path, arguments: argparse.Namespace, stop: Stop) -> int:
    """This program once more, in a process of its own, with what it says in a file; told to stop where this one is."""
    log.parent.mkdir(parents=True, exist_ok=True)
    where = ["--config", str(arguments.config), "--out", str(arguments.out), "--samples", str(arguments.samples)]
    environment = os.environ | {"MASTER_PORT": str(int(os.environ.get("MASTER_PORT", PORT)) + number)}
    command = [sys.executable, "-m", "benchmarks.study", *words, *where]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as child:
        while child.poll() is None and not stop.reason:
            time.sleep(TICK)
        if stop.reason:
            child.send_signal(signal.SIGUSR1)
        code = child.wait()
    return STOPPED if code == -signal.SIGUSR1 else code  # it had not begun to listen


if __name__ == "__main__":
    main()
