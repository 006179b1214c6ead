"""The study: its jobs, its arithmetic, and one job from its data to the report, in processes of their own."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks.study import data
from benchmarks.study.jobs import BASE, SEEDS, SLOTS, STARTS, TASKS, all_jobs, objectives
from benchmarks.study.prepare import LEAKS, STAGES, before, stages, start_of
from benchmarks.study.report import Interval, Row, cell, comparison, interval, rows, table, write
from data import puzzles
from data.sample import LETTERS
from model.objective import RECIPES
from tests.distributed.runs import until
from trainer import config as configuration
from trainer.signals import STOPPED

CONFIG = Path("configs/study.yaml")


# ---- Data and jobs ----


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_so_many_answers_are_drawn(share: float):
    """A letter that is drawn is the right one once in four times."""
    samples = list(puzzles.stream(data.KINDS, "train", 800, sizes=(64,), difficulties=(1,)))
    noisy = [data.noisy(sample, share) for sample in samples]
    changed = [a.text.answer != b.text.answer for a, b in zip(samples, noisy, strict=True)]
    assert sum(changed) / len(changed) == pytest.approx(0.75 * share, abs=0.05)
    assert {sample.text.answer for sample in noisy} == set(LETTERS[:4])
    assert noisy == [data.noisy(sample, share) for sample in samples], "the same for the same key"


def test_every_job_is_a_configuration(tmp_path: Path):
    """Of its own name and of its own settings: objective, bottleneck, start and seed."""
    jobs = all_jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    assert {(job.task, job.variant, job.seed) for job in jobs} >= {
        (task, name, seed) for task in TASKS for name in objectives(task) for seed in SEEDS
    }
    for job in jobs:
        found = configuration.load(CONFIG, job.overrides(tmp_path, tmp_path / "start"))
        assert found.objective.bottleneck == (job.task == "hidden") and found.model.latents == "export"
        assert found.run.seed == job.seed and found.latent.slots == job.slots
        assert found.objective.name == job.variant.split()[0]
    recipes = {job.variant for job in jobs if job.task == "hidden"} & set(RECIPES)
    assert recipes == {name for name, recipe in RECIPES.items() if recipe.rounds == 2}, "no blind ones"


def test_every_job_begins_with_a_training_that_is_prepared(tmp_path: Path):
    """At the number of steps that its stage takes, after a stage that it goes on from."""
    prepared = [start_of(CONFIG, tmp_path, name, slots) for name, slots in stages() if slots]
    for job in all_jobs():
        start = STARTS[job.task]
        steps = STAGES[start].times * configuration.load(CONFIG, []).train.steps
        assert start_of(CONFIG, tmp_path, start, job.slots) in prepared
        assert prepared[-1 if start == LEAKS else 0].name == f"step_{steps}"
    assert {job.slots for job in all_jobs()} == set(SLOTS), "k = 4, 8 and 16"
    for at, stage in enumerate(stages()):
        assert (before(*stage) in stages()[:at]) == (at > 0), "or trainings could wait for one another"


# ---- The report ----


def result(task: str, variant: str, seed: int, accuracy: float, leak: float | None) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "se": 0.0, "low": value, "high": value}

    findings = gap = None
    if leak is not None:
        leakage = {name: estimate(leak) for name in ("rate", "base", "sensitivity")}
        leakage |= {"probe_posterior": leak, "probe_prior": leak, "inflation": 1.0}
        gap = {"mean": estimate(leak), "drawn": estimate(leak), "sources": {"prior_mean": {"nats": estimate(1.0)}}}
        findings = {"leakage": leakage}
    arms = {"kept": accuracy, "removed": accuracy - 0.5, "other_item": accuracy - 0.25}
    return {
        "task": task,
        "variant": variant,
        "seed": seed,
        "accuracy": arms if findings else {"kept": accuracy},
        "findings": findings,
        "gap": gap,
    }


def made_up() -> list[dict[str, Any]]:
    base = [result("noisy", BASE, seed, 0.7 + 0.01 * seed, 0.1) for seed in range(3)]
    leaky = [result("noisy", "ntp", seed, 0.6 + 0.01 * seed, 0.8 + 0.1 * seed) for seed in range(3)]
    return [*base, *leaky, *(result("noisy", "sft", seed, 0.7, None) for seed in range(2))]


def test_intervals_are_students():
    found = interval([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 4.0], 0).pvalue)
    assert math.isinf(interval([1.0]).high) and cell(interval([1.0])) == "1.000"
    alike = interval([2.0, 2.0])
    assert alike.low == 2.0 and alike.p == interval([2.0]).p == 1, "of a spread that is not known"


def test_comparisons_are_paired_by_seed():
    """Both rise by 0.01 a seed: the difference has no spread at all, though each has one."""
    found = {row.variant: row for row in rows(made_up())}
    assert list(found) == ["sft", "ntp", "amvl"], "in the order of the study"
    accuracy = found["ntp"].against["accuracy"]
    assert (accuracy.mean, accuracy.low, accuracy.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found["ntp"].metrics["accuracy"].high - found["ntp"].metrics["accuracy"].low > 0.04
    assert found["ntp"].against["leak rate"].mean == pytest.approx(-0.8)
    assert found[BASE].against == {} and "leak rate" not in found["sft"].metrics
    assert found["sft"].against["accuracy"].n == 2, "the seeds that both have"


def test_many_comparisons_are_corrected_for():
    """p = 0.03 is a difference beside none, and none among six of the kind."""
    one = [0.1, 0.11, 0.09, 0.1]
    wide = [0.07, 0.15, 0.04, 0.14]  # its interval excludes 0, alone
    assert interval(wide).low > 0 and 0.02 < interval(wide).p < 0.05

    def compared(*others: str) -> dict[str, Row]:
        results = [result("noisy", BASE, seed, 0.7, 0.1) for seed in range(4)]
        results += [result("noisy", "ntp", seed, 0.7 - one[seed], 0.5) for seed in range(4)]
        results += [result("noisy", name, seed, 0.7 - wide[seed], 0.5) for name in others for seed in range(4)]
        return {row.variant: row for row in rows(results)}

    alone = compared("elbo")
    assert "accuracy" in alone["ntp"].differs and "accuracy" in alone["elbo"].differs
    among = compared("elbo", "forward", "reverse", "symmetric", "deterministic")
    assert "accuracy" in among["ntp"].differs and "accuracy" not in among["elbo"].differs
    assert "0.100*" not in comparison(list(among.values()), "noisy")[3]
    assert among[BASE].differs == frozenset()


def test_tables_and_plots(tmp_path: Path):
    results = made_up()
    found = rows(results)
    lines = table(found, "noisy")
    assert lines[0].startswith("| objective | seeds | accuracy |") and len(lines) == 5
    assert "| ntp | 3 | 0.610 ± 0.025 |" in lines[3]
    assert "-0.800" in comparison(found, "noisy")[3] and "*" in comparison(found, "noisy")[3]
    assert not table(found, "hidden")[2:]
    files = write(tmp_path, found, results, saved=False)
    facts, *numbers = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert facts["runs"] == 8 and facts["torch"] and [n["variant"] for n in numbers] == ["sft", "ntp", "amvl"]
    assert files[1].read_text().startswith("<?xml") and "noisy" in files[0].read_text()


def shown(kept: dict[str, float | None] | None) -> str:
    """As the report shows it; where a bound is infinite, none is kept."""
    if kept is None:
        return ""
    return cell(Interval(**{name: -math.inf if value is None else value for name, value in kept.items()}))  # type: ignore[arg-type]


def test_the_documents_tables_are_the_results():
    """docs/study.md shows some columns of some rows, each as it was measured."""
    kept = Path("benchmarks/results/study.jsonl").read_text().splitlines()
    measured = {(one["task"], one["variant"]): one["metrics"] for one in map(json.loads, kept[1:])}
    task, names, seen = "", [], 0
    for line in Path("docs/study.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("### "):
            task = next((name for name in TASKS if f"`{name}`" in line), "")
        elif cells[0] == "objective":
            names = cells[1:]
        elif not line.startswith("|"):
            names = []
        elif names and not cells[0].startswith("-"):
            metrics = measured[task, cells[0]]
            assert cells[1:] == [shown(metrics.get(name)) for name in names], line
            seen += 1
    assert seen > 20


# ---- A job ----


def command(out: Path, *words: str, config: Path) -> list[str]:
    where = ["--config", str(config), "--out", str(out), "--samples", "64"]
    return [sys.executable, "-m", "benchmarks.study", *words, *where]


def study(out: Path, *words: str, config: Path) -> subprocess.CompletedProcess[str]:
    asked = command(out, *words, config=config)
    return subprocess.run(asked, capture_output=True, text=True, timeout=280, check=False)


def shortened(folder: Path, steps: int) -> Path:
    """The study's config with trainings of so many steps, or some times that."""
    config = folder / "short.yaml"
    config.write_text(
        f"extends: {CONFIG.resolve()}\ntrain: {{steps: {steps}, tokens: 600}}\ntracking: {{enabled: false}}\n"
    )
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a study's folder prepared as far as jobs on `hidden` need, its config): trainings of a few steps."""
    folder = tmp_path_factory.mktemp("study")
    config = shortened(folder, 2)
    for stage in ("0", "1"):
        done = study(folder / "out", "stage", stage, config=config)
        assert done.returncode == 0, done.stderr
    return folder / "out", config


def number(name: str) -> int:
    return next(number for number, job in enumerate(all_jobs()) if job.name == name)


def test_a_job_from_its_training_to_the_report(small: tuple[Path, Path]):
    """Run again it does nothing; `run` starts those alone that have no result."""
    out, config = small
    done = study(out, "job", str(number("hidden-amvl-0")), config=config)
    assert done.returncode == 0, done.stderr
    path = out / "results" / "hidden-amvl-0.json"
    found, written = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert (found["task"], found["variant"], found["seed"]) == ("hidden", "amvl", 0)
    assert found["findings"]["n"] == 64 and found["findings"]["facts"]["bottleneck"]
    assert {"kept", "removed", "other_item", "oracle"} <= set(found["accuracy"])
    assert (out / "runs" / "hidden-amvl-0" / "export").is_dir()
    assert (out / "results" / "hidden-start-0.json").exists()
    assert not (out / "runs" / "hidden-amvl-0" / "checkpoints").exists(), "a hundred jobs would fill the disk"
    again = study(out, "run", "--only", "hidden-amvl-0", config=config)
    assert again.returncode == 0 and path.stat().st_mtime_ns == written
    reported = study(out, "report", config=config)
    assert reported.returncode == 0 and "| amvl | 1 |" in reported.stdout, reported.stderr
    assert "| start | 1 |" in reported.stdout


def test_jobs_that_fail_are_named(small: tuple[Path, Path]):
    """Those on `noisy` have nothing to begin with here."""
    out, config = small
    done = study(out, "run", "--only", "noisy-amvl-1", config=config)
    assert done.returncode == 1 and "noisy-amvl-1: exit code" in done.stdout + done.stderr
    assert "config.json: no such file" in (out / "logs" / "job_noisy-amvl-1.txt").read_text()


def test_asked_to_stop_it_saves_and_begins_nothing_more(tmp_path: Path):
    """And says by its code that it is to be started again, as Slurm is to."""
    out, config = tmp_path / "out", shortened(tmp_path, 10_000)
    log = out / "logs" / "stage_answers.txt"
    with subprocess.Popen(command(out, "prepare", config=config), stderr=subprocess.DEVNULL) as program:
        try:
            until(lambda: log.exists() and "step 0 of 30000" in log.read_text(), 120)
            program.terminate()
            assert program.wait(120) == STOPPED, log.read_text()
        finally:
            program.kill()
    assert list((out / "runs" / "answers" / "checkpoints").glob("step_*")), log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["stage_answers.txt"]


def test_nothing_goes_on_from_a_training_that_failed(tmp_path: Path):
    out, config = tmp_path / "out", shortened(tmp_path, 0)  # which no training can have
    done = study(out, "prepare", config=config)
    assert done.returncode == 1 and "answers: exit code 2" in done.stdout + done.stderr
    assert [path.name for path in (out / "logs").iterdir()] == ["stage_answers.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("job", "100000"), "error: job 100000: there are 0 to "),
        (("report",), "no result; `python -m benchmarks.study run` makes them"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, words: tuple[str, ...], said: str):
    done = study(tmp_path, *words, config=CONFIG)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) <= 2
