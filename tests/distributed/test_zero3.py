"""ZeRO-3 on two ranks against one process without DeepSpeed, and a resumed run against an unbroken one."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from data.shards import read_set
from model.backbones import tiny
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.batch import collate
from model.build import load_backbone, load_export, load_processor, markers_of
from model.latent_vlm import LatentVLM, Weights
from tests.distributed.ranks import SHORT, Fixed, settings
from trainer.config import Config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def wide(folder: Path, tiny_backbone: Path) -> Path:
    """87 million parameters in bf16, in several files."""
    path = Path(shutil.copytree(tiny_backbone, folder / "wide", ignore=shutil.ignore_patterns("*.safetensors")))
    shape = tiny.config(len(AutoTokenizer.from_pretrained(path)), width=768, layers=12)
    Qwen2_5VL.model_class._from_config(shape, dtype=torch.bfloat16).save_pretrained(path, max_shard_size="20MB")
    return path


@pytest.fixture(scope="module")
def results(folder: Path, tiny_shards: Path, tiny_backbone: Path, tiny_qwen3_vl: Path, wide: Path) -> dict[str, Any]:
    """What two ranks found; they are started once for this module."""
    out = folder / "results.json"
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29611"]
    command = [*launcher, "--module", "tests.distributed.ranks"]
    command += [out, tiny_shards, tiny_backbone, tiny_qwen3_vl, wide, folder / "runs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


class Arguments:
    def __init__(self, folder: Path, shards: Path, backbone: Path) -> None:
        self.folder, self.shards, self.backbone = folder, shards, backbone


@pytest.fixture(scope="module")
def one_process(folder: Path, tiny_shards: Path, tiny_backbone: Path) -> tuple[LatentVLM, list[float]]:
    return alone(settings(Arguments(folder / "runs", tiny_shards, tiny_backbone), "plain"))  # type: ignore[arg-type]


def alone(config: Config) -> tuple[LatentVLM, list[float]]:
    """The same batches, plain PyTorch: one model, torch's AdamW, no DeepSpeed."""
    processor = load_processor(config.model)
    samples = [processor.encode(s) for s in itertools.islice(read_set(config.data.train[0].folder), 40)]
    model = LatentVLM(load_backbone(config.model), config.latent, config.objective.recipe)
    # The first values of the latent parts come from the seed, in the order the engine draws them.
    torch.manual_seed(config.run.seed)
    model.reset_latent()
    latent = [p for module in model.latent_modules().values() for p in module.parameters()]
    groups = [
        {"params": list(model.backbone.parameters()), "lr": config.train.lr},
        {"params": latent, "lr": config.train.latent_lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=config.train.weight_decay)
    schedule = config.train.scheduler(optimizer)
    batches, losses = Fixed(samples, 1, [0]), []
    for step in range(config.train.steps):
        batch = collate(next(batches), model.recipe, model.config, model.backbone, markers_of(processor))
        beta, gamma = config.objective.weights(step / config.train.steps)
        per_token = 1 / len(batch.targets)
        optimizer.zero_grad()
        total = 0.0
        for loss in model(batch, Weights(beta, gamma, per_token, per_token))[0]:
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return model, losses


@pytest.mark.parametrize("case", ["plain", "checkpointing", "accumulated"])
def test_two_ranks_equal_one_process(results: dict[str, Any], one_process: tuple[LatentVLM, list[float]], case: str):
    losses = one_process[1]
    assert losses[-1] < 0.8 * losses[0], "nothing was learned, so equality would say little"
    worst = max(abs(a - b) / b for a, b in zip(results[case], losses, strict=True))
    print(f"{case}: worst relative difference of {len(losses)} losses {worst:.1e}")  # shown by pytest -rP
    assert worst <= 1e-5


@pytest.mark.parametrize("case", [name for name in SHORT if name != "short"])
def test_how_it_is_spread_does_not_matter(results: dict[str, Any], case: str):
    """Optimizer on the CPU (DeepSpeed's own Adam), a second copy of the weights per node, some layers recomputed."""
    worst = max(abs(a - b) / b for a, b in zip(results[case], results["short"], strict=True))
    print(f"{case}: worst relative difference {worst:.1e}")
    assert worst <= 1e-5
    assert results[f"{case}_optimizer"] == ("DeepSpeedCPUAdam" if case == "offloaded" else "AdamW")
    assert results[f"{case}_copies"] == (2 if case == "node_shards" else 1)


def test_two_ranks_equal_one_process_with_another_family_and_tied_embeddings(
    results: dict[str, Any], folder: Path, tiny_shards: Path, tiny_qwen3_vl: Path
):
    where = Arguments(folder / "runs", tiny_shards, tiny_qwen3_vl)
    _, losses = alone(settings(where, "alone", **{"train.steps": 4}))  # type: ignore[arg-type]
    assert results["tied"]
    worst = max(abs(a - b) / b for a, b in zip(results["qwen3_vl"], losses, strict=True))
    print(f"qwen3_vl: worst relative difference {worst:.1e}")
    assert worst <= 1e-5


def test_half_precision(results: dict[str, Any]):
    """Weights are bf16, but not the rotary frequencies: rounded, they turn far positions into others."""
    worst = max(abs(a - b) / b for a, b in zip(results["half"], results["short"], strict=True))
    print(f"bf16: worst relative difference {worst:.1e}, of buffers {results['worst_buffer']:.1e}")
    assert worst < 0.02
    assert results["worst_buffer"] == 0


def test_no_rank_holds_the_whole_model_while_it_loads(results: dict[str, Any]):
    """In bf16 a rank of two keeps a quarter of what the whole takes in fp32; the whole in bf16 would add a half."""
    share = results["load"]["peak"] / results["load"]["whole"]
    print(f"most memory while loading: {share:.2f} of the whole model in fp32")
    assert 0.25 <= share < 0.6


def test_weights_are_split_over_the_ranks(results: dict[str, Any]):
    assert results["sharded"]


def test_a_rank_without_images_does_not_hang(results: dict[str, Any]):
    assert len(results["one_rank_without_images"]) == 3
    assert all(0 < loss < 20 for loss in results["one_rank_without_images"])


def test_a_resumed_run_is_the_unbroken_one(results: dict[str, Any]):
    """Broken off after step 5, the last checkpoint at step 3: steps 4 to 8 are taken again, bit for bit."""
    assert results["before_break"] == results["whole"][:5]
    assert results["after_break"] == results["whole"][3:]


def test_a_step_without_a_finite_gradient_changes_nothing(results: dict[str, Any]):
    found = results["poisoned"]
    finite = [math.isfinite(float(loss)) for loss in found["losses"]]
    assert finite == [True, True, False, True, True] and found["skipped"] == 1
    weights = found["weights"]
    assert weights[2] == weights[1] and len(set(weights)) == 4
    assert [message.partition(":")[0] for message in found["said"]] == ["step 3"]


def test_its_samples_are_named(results: dict[str, Any], folder: Path):
    lines = [path.read_text().splitlines() for path in sorted((folder / "runs" / "poisoned" / "spikes").glob("*"))]
    assert [len(rank) for rank in lines] == [3, 3]  # and of the two steps that ended the run
    third = [json.loads(rank[0]) for rank in lines]
    assert [line["step"] for line in third] == [3, 3]
    assert any(name.startswith(results["poisoned"]["sample"]) for line in third for name in line["samples"])


def test_too_many_of_them_end_the_run(results: dict[str, Any], folder: Path):
    last = folder / "runs" / "poisoned" / "checkpoints" / "step_5"
    assert (
        f"step 7: no finite gradient for 2 steps in a row; the last good checkpoint is {last};"
        in (results["poisoned"]["error"])
    )


def test_export_holds_the_trained_weights(
    results: dict[str, Any], one_process: tuple[LatentVLM, list[float]], folder: Path
):
    model, exported = one_process[0], load_export(folder / "runs" / "export").state_dict()
    assert set(exported) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
