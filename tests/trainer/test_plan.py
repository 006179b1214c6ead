"""Plans: published sizes, the largest budget, refusals with their mend, and the largest model on a small machine."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.build import architecture_of
from model.latent_vlm import LatentVLM
from tests.model.test_architectures import PUBLISHED
from tests.refusal import refusal
from trainer import config as configuration
from trainer.config import Config
from trainer.plan import TYPICAL, Plan, Shape, describe, dry_run, filled, on, recomputing, refuse, scaling
from trainer.rl.config import RLError
from trainer.target import RESERVE, PlanError, Target, gib, read_size, target_of

ROOT = Path(__file__).parents[2]
LARGE = sorted((ROOT / "configs").glob("qwen*.yaml"))
SMALL = Shape(prompt=60, image=16, answer=6)
GIB = 2**30


def tiny_config(folder: Path, **changes: object) -> Config:
    """The quickstart's configuration with another model; changes by dotted key."""
    values = {"model.folder": folder, "train.precision": "fp32"} | changes
    return configuration.load(ROOT / "configs/quickstart.yaml", [f"{key}={value}" for key, value in values.items()])


def pretend(ranks: int, room: float) -> Target:
    return Target(ranks, room, "h100", f"{ranks} GPUs")


def described(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**({"gpus": None, "memory": None, "gpu": None} | values))


def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """A command of the project, and its peak memory in bytes."""
    measure = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], timeout=60); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(done.returncode)"
    )
    command = [sys.executable, "-c", measure, sys.executable, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    *lines, peak = done.stderr.splitlines()
    done.stderr = "\n".join(lines)
    return done, int(peak) * 1024


def test_there_is_a_config_of_every_published_size():
    configs = [configuration.load(path, []) for path in LARGE]
    assert sorted(architecture_of(c.model).stem for c in configs) == sorted(PUBLISHED)


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_parameters_are_the_published_ones_and_the_latent_parts(path: Path):
    config = configuration.load(path, ["train.tokens=1200"])
    plan = Plan(config)
    slots, hidden, width = config.latent.slots, plan.text.hidden_size, config.latent.width
    assert plan.total - plan.parts["latent parts"] == PUBLISHED[architecture_of(config.model).stem]
    assert plan.parts["latent parts"] == sum(
        p.numel() for part in plan.model.latent_modules().values() for p in part.parameters()
    )
    assert plan.parts["latent parts"] > 2 * slots * hidden + hidden * width  # slots twice, and what injects z
    assert plan.total - plan.trained == plan.parts["vision tower"] > 0  # frozen
    assert all(plan.parts.values())


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("layers", [0, "all"])
def test_the_largest_budget_fits_and_a_tenth_more_does_not(tiny_backbone: Path, layers: object, ranks: int):
    changes = {"model.checkpoint_layers": layers, "train.tokens": 2000, "train.precision": "bf16"}
    plan = Plan(tiny_config(tiny_backbone, **changes), shape=SMALL)
    room = plan.memory(ranks).peak + 50 * 2**20
    budget = plan.largest_budget(ranks, room)
    assert budget > 2000

    def peak(tokens: int) -> float:
        return Plan(tiny_config(tiny_backbone, **changes | {"train.tokens": tokens}), shape=SMALL).memory(ranks).peak

    assert peak(budget) <= room < peak(int(1.1 * budget))
    assert plan.largest_budget(ranks, plan.memory(ranks).weights) == 0


@pytest.fixture
def busy(tiny_backbone: Path) -> Plan:
    """Many tokens of a small model, whose activations take most."""
    return Plan(tiny_config(tiny_backbone, **{"train.tokens": 20_000, "train.precision": "bf16"}), shape=SMALL)


def refused(plan: Plan, target: Target) -> str:
    message = refusal(lambda: refuse(plan, target), PlanError)
    assert f"do not fit into {gib(target.room)}" in message
    return message


def test_too_many_tokens_are_mended_by_recomputing(busy: Plan):
    recomputed = recomputing(busy, "all").memory(8).peak
    assert recomputed < busy.memory(8).peak
    message = refused(busy, pretend(8, recomputed))
    assert message.endswith("; set model.checkpoint_layers=all")
    refuse(recomputing(busy, "all"), pretend(8, recomputed))  # what it says is so


def test_too_many_tokens_are_mended_by_fewer(busy: Plan):
    plan = recomputing(busy, "all")
    room = plan.memory(8).peak - plan.memory(8).activations / 3
    message = refused(plan, pretend(8, room))
    budget = int(message.partition("; set train.tokens=")[2])
    assert 0 < budget < 20_000
    train = plan.config.train.model_copy(update={"tokens": budget})
    refuse(Plan(plan.config.model_copy(update={"train": train}), shape=SMALL), pretend(8, room))


def test_a_model_too_large_for_the_gpus_is_mended_by_more():
    config = on(configuration.load(ROOT / "configs/qwen2_5_vl_72b.yaml", []), pretend(8, 0))
    plan = Plan(config)
    message = refused(plan, pretend(8, 30 * GIB))  # on 8 not even without the optimizer
    assert "the largest part is optimizer" in message
    more = int(message.partition("; take ")[2].removesuffix(" GPUs"))
    assert plan.memory(more).peak <= 30 * GIB
    assert plan.memory(more // 2).peak > 30 * GIB


def test_an_optimizer_too_large_is_mended_by_offload():
    plan = Plan(on(configuration.load(ROOT / "configs/qwen2_5_vl_72b.yaml", []), pretend(8, 0)))
    room = plan.memory(8, offload=True).peak
    message = refused(plan, pretend(8, room))
    assert message.endswith("; set deepspeed.offload_optimizer=true")


def test_sizes_of_memory():
    assert read_size("80GiB") == 80 * GIB
    assert read_size(" 1.5 GB ") == 1.5e9
    assert read_size("100MiB") == 100 * 2**20
    for text in ("80", "80gib", "GiB", "-1GiB", "1e2GiB", "80 TiB", ""):
        with pytest.raises(PlanError, match=r"--memory .*write a number and GiB, GB, MiB, e\.g\. 80GiB"):
            read_size(text)


def test_targets():
    target = target_of(described(gpus=64, memory="80GiB"))
    assert (target.ranks, target.gpu, target.room) == (64, "h100", 80 * GIB * (1 - RESERVE))
    assert target_of(described(gpu="h200"))[:3] == (8, 141e9 * (1 - RESERVE), "h200")
    here = target_of(described())
    assert (here.ranks, here.gpu) == (1, None)
    for gpus in (0, -1):
        with pytest.raises(PlanError, match=f"--gpus {gpus}: at least 1"):
            target_of(described(gpus=gpus))
    with pytest.raises(PlanError, match="--memory"):
        target_of(described(memory="a lot"))
    with pytest.raises(PlanError, match=r"--gpu 'h1000': .*a100, h100, h200"):
        target_of(described(gpu="h1000"))


def test_samples_fill_a_budget(tiny_backbone: Path):
    plan = Plan(tiny_config(tiny_backbone, **{"train.tokens": 1000}), shape=SMALL)
    each = plan.batch.tokens // plan.batch.samples
    assert plan.batch.tokens <= 1000 < plan.batch.tokens + each
    assert len(plan.batch.image_rows) == SMALL.image * plan.batch.samples
    assert len(plan.batch.targets) == SMALL.answer * plan.batch.samples
    model: LatentVLM = plan.model
    assert filled(model, 1, SMALL).samples == 1


def test_the_scaling_table_says_which_side_is_longer():
    plan = Plan(on(configuration.load(ROOT / "configs/qwen2_5_vl_72b.yaml", ["train.tokens=2400"]), pretend(8, 0)))
    _, _, *rows = scaling(plan, "h100", 0.4)
    assert [row.split()[0] for row in rows] == ["8", "64", "512", "4,096"]
    for row, ranks in zip(rows, (8, 64, 512, 4096), strict=True):
        even = int(row.split("%  ")[1].split()[0].replace(",", ""))
        assert ("sending takes longer" in row) == (even > plan.batch.tokens), ranks
    assert "sending takes longer" not in rows[0]
    assert "sending takes longer" in rows[-1]


def test_a_dry_run_reports_the_first_batch(tiny_shards: Path, tiny_backbone: Path):
    config = tiny_config(tiny_backbone, **{"data.train": tiny_shards, "train.tokens": 700})
    *_, last = dry_run(config, Target(1, 8 * GIB, None, "here"))
    assert last.startswith("first batch: ")
    numbers = [int(word.replace(",", "")) for word in last.split() if word.replace(",", "").isdigit()]
    samples, images, tokens, budget, visual, targets = numbers
    assert budget == 700
    assert 0 < samples <= targets < tokens <= budget
    assert 0 < images < visual < tokens


def test_a_dry_run_without_the_model_plans_with_samples_of_a_size():
    config = configuration.load(ROOT / "configs/qwen3_vl_2b.yaml", ["train.tokens=3000"])
    lines = list(dry_run(config, target_of(described(gpus=8))))
    assert "is not on this machine" in lines[-1]
    assert f"{TYPICAL.prompt:,} tokens" in lines[-1]
    assert any("memory per rank on 8 x h100" in line for line in lines)


def test_a_dry_run_of_reinforcement_learning(tiny_shards: Path, export_of: Callable[[str], Path]):
    """Says what a rollout is and takes beside; refuses what its start would refuse."""
    changes = {
        "model.folder": export_of("amvl"),
        "latent": "{slots: 3, width: 8, head_width: 16}",
        "data.train": tiny_shards,
        "train.tokens": 700,
        "rl.update.kl": 0.1,
    }
    values = [f"{key}={value}" for key, value in changes.items()]
    config = configuration.load(ROOT / "configs/quickstart_rl.yaml", values)
    *_, rollout, gathered, reference = dry_run(config, Target(1, 8 * GIB, None, "here"))
    assert rollout.startswith("rollout: 64 prompts over all ranks, 8 completions each of at most 4 tokens")
    weights = gib(4 * Plan(config, shape=SMALL).total)
    assert f"{weights} of gathered weights" in gathered and f"{weights} over all ranks" in reference
    other = configuration.load(ROOT / "configs/quickstart_rl.yaml", [*values, "rl.rollout.prompts=9"])
    text = refusal(lambda: list(dry_run(other, Target(2, 8 * GIB, None, "here"))), RLError)
    assert "set it to a multiple" in text


def test_the_description_adds_up(tiny_backbone: Path):
    plan = Plan(tiny_config(tiny_backbone), shape=SMALL)
    lines = list(describe(plan, pretend(8, GIB)))
    words = [line.split() for line in lines if line.startswith("  ")]
    assert sum(int(last.replace(",", "")) for *_, last in words if last.replace(",", "").isdigit()) == plan.total
    assert lines[-1].split()[:2] == ["peak", gib(plan.memory(8).peak).split()[0]]


@pytest.mark.parametrize("command", [["trainer/plan.py"], ["trainer/main.py", "--dry-run"]], ids=["plan", "dry run"])
def test_the_largest_model_is_planned_on_a_small_machine(command: list[str]):
    config = "configs/qwen2_5_vl_72b.yaml"
    done, peak = run(*command, config, "--gpus", "64", "--memory", "80GiB")
    assert done.returncode == 0, done.stderr
    assert "parameters: 73,434,071,808" in done.stdout
    assert "memory per rank on 64 x h100 of 80.0 GiB, bf16" in done.stdout
    assert peak < 4 * GIB


@pytest.mark.parametrize("command", [["trainer/plan.py"], ["trainer/main.py", "--dry-run"]], ids=["plan", "dry run"])
def test_the_largest_model_on_too_few_gpus_is_refused(command: list[str]):
    done, _ = run(*command, "configs/qwen2_5_vl_72b.yaml", "--gpus", "8", "--memory", "80GiB")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert "the largest part is optimizer, " in line
    assert line.endswith(("GPUs", "deepspeed.offload_optimizer=true"))
