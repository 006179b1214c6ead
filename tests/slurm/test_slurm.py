"""slurm/train.sh and slurm/eval.sh on a real Slurm with two nodes: how jobs start, are stopped, go on and fail."""

import os
import signal

import pytest

from tests.processes import gone
from tests.slurm.conftest import Place


def test_ranks_are_the_nodes_times_the_ranks_of_each(place: Place):
    jobs = [place.train("--nodes=2 --cpus-per-task=6", RANKS_PER_NODE="2") for _ in range(2)]
    for job in jobs:
        assert place.slurm.ended(job)["JobState"] == "COMPLETED", place.output(job)
        starts = place.starts(job)
        assert [start["RANK"] for start in starts] == ["0", "1", "2", "3"]
        assert [start["LOCAL_RANK"] for start in starts] == ["0", "1", "0", "1"]
        assert [start["SLURMD_NODENAME"] for start in starts] == ["n1", "n1", "n2", "n2"]
        assert {start["WORLD_SIZE"] for start in starts} == {"4"}
        assert {start["OMP_NUM_THREADS"] for start in starts} == {"3"}
        assert {start["MASTER_ADDR"] for start in starts} == {"127.0.0.1"}, "the address, not the name n1"
        assert {tuple(start["arguments"]) for start in starts} == {("x.yaml", "stops=0")}
    first, second = ({start["MASTER_PORT"] for start in place.starts(job)} for job in jobs)
    assert len(first) == len(second) == 1
    assert first != second


def test_a_rank_for_every_gpu_that_slurm_gave(place: Place):
    job = place.train("--nodes=2 --gpus-per-node=2")
    assert place.slurm.ended(job)["JobState"] == "COMPLETED", place.output(job)
    assert [start["LOCAL_RANK"] for start in place.starts(job)] == ["0", "1", "0", "1"]
    assert {start["CUDA_VISIBLE_DEVICES"] for start in place.starts(job)} == {"0,1"}


def test_a_job_goes_on_however_it_is_stopped(place: Place):
    """By a signal to its ranks, as before the time limit, or to the batch script, or by Slurm itself."""
    ways = {
        "ranks": ("scancel", "--signal=USR1"),
        "script": ("scancel", "--batch", "--signal=USR1"),
        "script-terminated": ("scancel", "--batch", "--signal=TERM"),
        "slurm": ("scontrol", "requeue"),
    }
    jobs = {way: place.train("--nodes=2", f"run.name={way} stops=1") for way in ways}
    ports = {way: place.running(job, 2)[0]["MASTER_PORT"] for way, job in jobs.items()}
    for way, command in ways.items():
        place.slurm.ask(*command, jobs[way])
    for way, job in jobs.items():
        found, output = place.slurm.ended(job), place.output(job)
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), f"{way}: {output}"
        assert output.count("rank 0: saved") == output.count("rank 1: saved") == 1, f"{way}: {output}"
        assert output.count("saved; requeued") == (way != "slurm"), f"{way}: {output}"
        assert "n2: task 1" not in output, f"{way}: srun would have killed the first node: {output}"
        assert [start["MASTER_PORT"] for start in place.starts(job)] == [ports[way]] * 4


def test_a_preempted_job_goes_on(place: Place):
    whole = "--nodes=2 --cpus-per-task=8"
    job = place.train(whole, "stops=1")
    place.running(job, 2)
    urgent = place.train(f"{whole} --partition=urgent")
    assert place.slurm.ended(urgent)["JobState"] == "COMPLETED", place.output(urgent)
    found, output = place.slurm.ended(job), place.output(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), output
    assert output.count("rank 0: saved") == output.count("rank 1: saved") == 1, output


def test_a_cancelled_job_does_not_come_back(place: Place):
    job = place.train("--nodes=2", "stops=9")
    place.running(job, 2)
    place.slurm.ask("scancel", job)
    found = place.slurm.ended(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    assert place.output(job).count(": saved") == 2


def test_the_number_of_requeues_has_a_limit(place: Place):
    job = place.train("", "stops=9", REQUEUES="1")
    for restarts in (0, 1):
        place.running(job, 1, restarts)
        place.slurm.ask("scancel", "--signal=USR1", job)
    found = place.slurm.ended(job)
    assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "1", "75:0")
    assert place.output(job).count("error: saved, but requeued 1 times already (REQUEUES in slurm/site.sh)") == 1


def test_a_failure_ends_the_job_and_frees_the_nodes(place: Place):
    """Whatever it is, and though nothing tells the other ranks of it."""
    failed = place.train("--nodes=2", "stops=1 fail=1:1")
    refused = place.train("--nodes=2", "stops=1 fail=0:2", RANKS_PER_NODE="2")
    killed = place.train("--nodes=2", "stops=1")
    unequal = place.train("--nodes=2 --gpus=3", "stops=1")
    jobs = {failed: 2, refused: 4, killed: 2, unequal: 2}
    ranks = {job: [start["pid"] for start in place.running(job, count)] for job, count in jobs.items()}
    os.kill(ranks[killed][1], signal.SIGKILL)
    for job in jobs:
        found = place.slurm.ended(job)
        assert (found["JobState"], found["Restarts"]) == ("FAILED", "0"), place.output(job)
        assert not found["ExitCode"].startswith(("0:", "75:")), found["ExitCode"]
        assert gone(ranks[job], 10), place.output(job)
    assert "error: n2 has 1 GPUs, the first node 2: submit with --gpus-per-node" in place.output(unequal)
    place.slurm.until(place.slurm.idle, 20, lambda: place.slurm.ask("sinfo"))


def test_a_failed_node_ends_the_job_or_has_it_start_again(place: Place):
    node = ("scontrol", "update", "NodeName=n2")
    again = place.train("--nodes=2", "stops=1")
    once = place.train("--nodes=2 --no-requeue", "stops=1")
    for job in (again, once):
        place.running(job, 2)
    place.slurm.ask(*node, "State=DOWN", "Reason=test")
    assert place.slurm.ended(once)["JobState"] == "NODE_FAIL"
    place.slurm.ask(*node, "State=RESUME")
    found = place.slurm.ended(again)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), place.output(again)


def test_a_sweep_gives_each_task_its_own(place: Place):
    array = place.train("--array=0-2", "stops=0 run.name=sweep-%a run.seed=%a objective.name=@sft,elbo,amvl")
    starts = place.running(array, 3)
    for task, (start, objective) in enumerate(zip(starts, ("sft", "elbo", "amvl"), strict=True)):
        own = ["x.yaml", "stops=0", f"run.name=sweep-{task}", f"run.seed={task}", f"objective.name={objective}"]
        assert start["arguments"] == own
    assert len({start["MASTER_PORT"] for start in starts}) == 3


def test_a_task_of_a_sweep_requeues_itself_alone(place: Place):
    """Also the one whose job id is that of the whole array."""
    array = place.train("--array=0-1", "run.name=%a stops=1")
    starts = {start["SLURM_JOB_ID"]: start for start in place.running(array, 2)}
    assert array in starts
    task = starts[array]["SLURM_ARRAY_TASK_ID"]
    place.slurm.ask("scancel", "--signal=USR1", f"{array}_{task}")
    found = place.slurm.ended(f"{array}_{task}")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), place.output(array)
    other = place.slurm.job(f"{array}_{1 - int(task)}")
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    place.slurm.ask("scancel", array)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("stops=0", "error: the tasks would share a run folder: add run.name=NAME-%a"),
        ("stops=0 run.name=one", "error: the tasks would share a run folder: add run.name=NAME-%a"),
        ("run.name=@a,b", "error: run.name=@a,b has nothing for task 2: submit with --array=0-1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(place: Place, keys: str, line: str):
    job = place.train("--array=2", keys)
    assert place.slurm.ended(job)["ExitCode"] == "2:0"
    assert place.output(job) == line + "\n"
    assert not place.starts(job)


def test_only_the_repository_can_be_submitted_from(place: Place):
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    for script in ("train", "eval"):
        job = place.slurm.submit(elsewhere, "sbatch", "--parsable", f"../slurm/{script}.sh", "x")
        assert place.slurm.ended(job)["ExitCode"] == "2:0"
        (output,) = elsewhere.glob(f"slurm-*-{job}.out")
        assert output.read_text() == f"error: {elsewhere} is not the repository: submit from its root\n"


def test_the_site_decides(place: Place):
    """Where a script goes that submits itself, from anywhere, what is loaded and what python runs in."""
    site = "export SBATCH_PARTITION=urgent\nCONTAINER=(env CUDA_VISIBLE_DEVICES=contained)\n"
    site += "RANKS_PER_NODE=3\nREQUEUES=1\nsite_environment() { export OMP_NUM_THREADS=77; }\n"
    (place.folder / "slurm" / "site.sh").write_text(site)
    elsewhere = place.folder / "slurm"
    job = place.slurm.submit(elsewhere, "./train.sh", "--nodes=2", "--job-name=mine", "x.yaml", "stops=0")
    found = place.slurm.ended(job)
    assert (found["Partition"], found["JobName"], found["JobState"]) == ("urgent", "mine", "COMPLETED")
    starts = place.starts(job)
    assert [start["CUDA_VISIBLE_DEVICES"] for start in starts] == ["contained"] * 6
    assert {start["OMP_NUM_THREADS"] for start in starts} == {"77"}

    job = place.slurm.submit(elsewhere, "./eval.sh", "runs/run")
    assert place.slurm.ended(job)["Partition"] == "urgent"
    assert place.starts(job)[0]["CUDA_VISIBLE_DEVICES"] == "contained"
    assert place.slurm.ended(place.train())["Partition"] == "main"


def test_an_evaluation_follows_a_training_that_was_interrupted(place: Place):
    job = place.train(keys="stops=1")
    after = place.evaluate(f"--dependency=afterok:{job}", "runs/long --tokens 100")
    place.running(job, 1)
    place.slurm.ask("scancel", "--signal=USR1", job)
    assert place.slurm.ended(after)["JobState"] == "COMPLETED"
    found = place.slurm.job(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1")
    assert [start["arguments"] for start in place.starts(after)] == [["--checkpoint", "runs/long", "--tokens", "100"]]


def test_each_evaluation_of_a_sweep_follows_its_own_training(place: Place):
    array = place.train("--array=0-1", "run.name=@sft,elbo fail=@9:9,0:1")
    after = place.evaluate(f"--array=0-1 --dependency=aftercorr:{array}", "@runs/sft,runs/elbo")
    assert place.slurm.ended(f"{after}_0")["JobState"] == "COMPLETED"
    assert place.slurm.ended(f"{after}_1")["JobState"] == "CANCELLED"
    assert [start["arguments"] for start in place.starts(after)] == [["--checkpoint", "runs/sft"]]


def test_an_evaluation_names_its_benchmark(place: Place):
    """As its first word; without one it is the run's held-out shards."""
    forms = {
        "runs/a --step 3": ("shards", ["runs/a", "--step", "3"]),
        "shards runs/a": ("shards", ["runs/a"]),
        "blink runs/a --data BLINK": ("blink", ["runs/a", "--data", "BLINK"]),
        "visual_puzzles runs/a --data V": ("visual_puzzles", ["runs/a", "--data", "V"]),
        "tsv runs/a --data MMVP.tsv": ("tsv", ["runs/a", "--data", "MMVP.tsv"]),
    }
    jobs = {form: place.evaluate("", form) for form in forms}
    array = place.evaluate("--array=0-1", "@blink,tsv runs/seed-%a --data @BLINK,MMVP.tsv")
    for form, (name, arguments) in forms.items():
        assert place.slurm.ended(jobs[form])["JobState"] == "COMPLETED", place.output(jobs[form])
        (start,) = place.starts(jobs[form])
        assert (start["script"], start["arguments"]) == (f"eval/run_{name}.py", ["--checkpoint", *arguments])
    for task, (name, data) in enumerate((("blink", "BLINK"), ("tsv", "MMVP.tsv"))):
        assert place.slurm.ended(f"{array}_{task}")["JobState"] == "COMPLETED", place.output(array)
        start = place.starts(array)[task]
        own = ["--checkpoint", f"runs/seed-{task}", "--data", data]
        assert (start["script"], start["arguments"]) == (f"eval/run_{name}.py", own)


def test_a_diagnosis(place: Place):
    job = place.evaluate("", "diagnose runs/a --limit 100")
    assert place.slurm.ended(job)["JobState"] == "COMPLETED", place.output(job)
    (start,) = place.starts(job)
    assert start["script"] == "eval/diagnose.py"
    assert start["arguments"] == ["--checkpoint", "runs/a", "--limit", "100"]


@pytest.mark.parametrize("arguments", ["blink", "blink --data BLINK"])
def test_an_evaluation_without_a_run_is_refused(place: Place, arguments: str):
    job = place.evaluate("", arguments)
    assert place.slurm.ended(job)["ExitCode"] == "2:0"
    assert place.output(job) == "error: blink of which run? give runs/NAME after it\n"
    assert not place.starts(job)
