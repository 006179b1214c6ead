"""Looks at gradients and latents on two ranks: the gradient contract, one process, a run that they do not change."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.shards import read_set
from model.build import load_backbone, load_processor
from model.latent_vlm import LatentVLM
from tests.distributed.ranks import BATCH, settings
from tests.distributed.vitals_ranks import CASES, ON, WEIGHTS, batch_of, settle
from trainer.vitals import Statistics

ROOT = Path(__file__).parents[2]
PRIOR, POSTERIOR = {"slots", "prior"}, {"posterior_slots", "posterior"}
PARTS = {"backbone", "injection"} | PRIOR | POSTERIOR
OF_NO_LOSS = {"ntp": PRIOR, "forward_kl": POSTERIOR | {"injection"}, "reverse_kl": PRIOR | {"injection"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path, tiny_shards: Path, tiny_backbone: Path) -> dict[str, Any]:
    """What two ranks found; they are started once for this module."""
    out = folder / "results.json"
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29617"]
    command = [
        *launcher,
        "--module",
        "tests.distributed.vitals_ranks",
        out,
        tiny_shards,
        tiny_backbone,
        folder / "runs",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def alone(folder: Path, tiny_shards: Path, tiny_backbone: Path) -> dict[str, float]:
    """The same of the whole batch in one process, by plain PyTorch."""
    arguments: Any = SimpleNamespace(folder=folder / "runs", shards=tiny_shards, backbone=tiny_backbone)
    cfg = settings(arguments, "alone", **ON)
    processor = load_processor(cfg.model)
    samples = [processor.encode(s) for s in itertools.islice(read_set(tiny_shards), BATCH)]
    model = LatentVLM(load_backbone(cfg.model), cfg.latent, cfg.objective.recipe)
    torch.manual_seed(cfg.run.seed)
    model.reset_latent()
    settle(model.train())
    batch, seen = batch_of(samples, model, cfg), Statistics()
    model(batch, WEIGHTS, seen.add)
    found = {f"health/{name}": value for name, value in seen.metrics(model.embedding_norm().item()).items()}
    nothing = replace(WEIGHTS, beta=0.0, gamma=0.0, per_token=0.0)
    terms = {"ntp": {"per_token": WEIGHTS.per_token}, "forward_kl": {"beta": WEIGHTS.beta}}
    for loss, weights in (terms | {"reverse_kl": {"gamma": WEIGHTS.gamma}}).items():
        model.zero_grad()
        for part in model(batch, replace(nothing, **weights))[0]:
            part.backward()
        for name, module in (*model.latent_modules().items(), ("backbone", model.backbone)):
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            found[f"health/gradient_norm/{loss}/{name}"] = torch.cat(gradients).double().norm().item()
    return found


@pytest.mark.parametrize("loss", OF_NO_LOSS)
def test_the_gradient_contract_shows(results: dict[str, Any], loss: str):
    norms = {part: results["look"][f"health/gradient_norm/{loss}/{part}"] for part in PARTS}
    assert {part for part, norm in norms.items() if norm == 0} == OF_NO_LOSS[loss]


def test_two_ranks_equal_one_process(results: dict[str, Any], alone: dict[str, float]):
    look = {name: value for name, value in results["look"].items() if name != "health/seconds"}
    assert set(look) == set(alone)
    apart = {name: abs(look[name] - alone[name]) / (abs(alone[name]) or 1) for name in alone}
    worst = max(apart, key=lambda name: apart[name])
    print(f"worst relative difference of {len(apart)} numbers {apart[worst]:.1e}, of {worst}")  # shown by pytest -rP
    assert apart[worst] <= 1e-5
    assert 0 < look["health/active/forward_kl"] <= 4 * 32


def test_a_second_look_sees_the_same(results: dict[str, Any]):
    first, second = (dict(results[name]) for name in ("look", "again"))
    assert first.pop("health/seconds") > 0 and second.pop("health/seconds") > 0
    assert first == second


def test_a_dead_loss_shows(results: dict[str, Any]):
    dead = results["dead"]
    assert all(dead[f"health/gradient_norm/reverse_kl/{part}"] == 0 for part in PARTS)
    assert dead["health/gradient_norm/forward_kl/prior"] == results["look"]["health/gradient_norm/forward_kl/prior"]
    assert dead["health/reverse_kl/per_sample"] > 0


def test_gradients_of_the_losses_add_up_to_that_of_the_step(results: dict[str, Any]):
    of_sum, of_step = results["norms"]
    print(f"sum against whole: {results['apart']:.1e}; norms {of_sum} and {of_step}")
    assert results["apart"] <= 1e-5
    assert of_sum == pytest.approx(of_step, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_with_looks_and_without(results: dict[str, Any], case: str):
    """Bit for bit: losses, weights after every step, counts and learning rates."""
    without, looked = dict(results[f"{case}_0"]), dict(results[f"{case}_1"])
    steps = CASES[case]["train.steps"]
    assert not without.pop("looks") and list(looked.pop("looks")) == [str(step) for step in range(1, steps + 1)]
    assert without == looked
    assert len(set(looked["weights"])) == steps, "nothing was learned, so equality would say little"


@pytest.mark.parametrize("case", ["plain", "accumulated", "offloaded", "node_shards", "half"])
def test_norms_of_a_step_do_not_depend_on_how_it_is_spread(results: dict[str, Any], case: str):
    """The first step of all is the same step; KLs have no gradient there."""
    first, plain = (results[f"{name}_1"]["looks"]["1"] for name in (case, "plain"))
    close = 0.02 if case == "half" else 1e-5
    for part in PARTS:
        name = f"health/gradient_norm/ntp/{part}"
        assert first[name] == pytest.approx(plain[name], rel=close), part
    assert first["health/forward_kl/per_sample"] == 0


def test_objectives_without_a_posterior_say_what_they_have(results: dict[str, Any]):
    deterministic = results["deterministic_1"]["looks"]["2"]
    assert {"health/sigma_prior/mean", "health/active/prior", "health/injected_norm"} < set(deterministic)
    assert not any("posterior" in name or "kl" in name for name in deterministic)
    assert set(results["sft_1"]["looks"]["2"]) == {"health/gradient_norm/ntp/backbone", "health/seconds"}
