"""What the two ranks of test_vitals.py do; started once by the launcher, results in one JSON file.

deepspeed --num_gpus 2 --module tests.distributed.vitals_ranks OUT.json SHARDS BACKBONE FOLDER
"""

import argparse
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from torch import nn

from data.processor import Encoded
from data.shards import read_set
from model.batch import Batch, collate
from model.build import load_processor, markers_of
from model.latent_vlm import LatentVLM, Weights
from tests.distributed.ranks import BATCH, guards, settings, train
from trainer.config import Config
from trainer.engine import build, leave_gradients, take_step
from trainer.vitals import Vitals, losses

WEIGHTS = Weights(beta=0.7, gamma=0.4, per_token=0.01, per_nat=0.0005)  # of the whole, for one process
# A run with a look before every step must be the same run; both terms are on from the start.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"train.steps": 4},
    "accumulated": {"train.steps": 3, "train.accumulation": 2},
    "offloaded": {"train.steps": 3, "deepspeed.offload_optimizer": True},
    "half": {"train.steps": 3, "train.precision": "bf16"},
    "deterministic": {"train.steps": 2, "objective.name": "deterministic"},
    "sft": {"train.steps": 2, "objective.name": "sft"},
}
ONCE = {"deepspeed.hpz_partition_size": 2}  # DeepSpeed makes the groups of a node once per process
ON = {"objective.early": [0, 0], "objective.late": [0, 0]}


def settle(model: LatentVLM) -> None:
    """Heads past their zero start, the same on every rank and in one process."""
    torch.manual_seed(7)
    for name in ("prior", "posterior"):
        weight = getattr(model, name).outer.weight
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            values = torch.randn(weight.shape) * 0.03
            nn.init.zeros_(weight).data.add_(values)


def batch_of(samples: list[Encoded], model: LatentVLM, cfg: Config) -> Batch:
    return collate(samples, model.recipe, model.config, model.backbone, markers_of(load_processor(cfg.model)))


def looked_at(cfg: Config, samples: list[Encoded]) -> dict[str, Any]:
    """One look at known weights, and the gradients of the losses alone against that of the step."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    engine = build(cfg)
    engine.train()
    settle(engine.module)
    mine = [batch_of(samples[:BATCH][rank::ranks], engine.module, cfg)]
    weights = Weights(WEIGHTS.beta, WEIGHTS.gamma, ranks * WEIGHTS.per_token, ranks * WEIGHTS.per_nat)
    vitals = Vitals(cfg, engine)
    found: dict[str, Any] = {"look": vitals.look(mine, weights), "again": vitals.look(mine, weights)}
    dead = Weights(weights.beta, 0.0, weights.per_token, weights.per_nat)
    found["dead"] = vitals.look(mine, dead)

    flat = engine.optimizer.grad_partitions_flat_buffer
    each = []
    for alone in (*losses(vitals.recipe, weights).values(), weights):
        leave_gradients(engine, [(batch, alone) for batch in mine])
        each.append(flat.clone())
    whole = each.pop()
    found["apart"] = ((sum(each) - whole).norm() / whole.norm()).item()
    square = (sum(each) ** 2).double().sum()  # type: ignore[operator]
    dist.all_reduce(square)
    take_step(engine, [(batch, weights) for batch in mine], vitals.recipe.rounds)
    found["norms"] = [square.sqrt().item(), float(engine.get_global_grad_norm())]
    return found


def run(cfg: Config, samples: list[Encoded]) -> dict[str, Any]:
    """What is left of a whole run, and the looks of it."""
    engine, kept = train(cfg, samples, cfg.train.accumulation)
    left = [engine.micro_steps, engine.global_steps, engine.skipped_steps, engine.global_samples]
    left += [group["lr"] for group in engine.optimizer.param_groups]
    every_weight = hashlib.sha256()
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        every_weight.update(flat.detach().numpy().tobytes())
    found = {"losses": kept.losses, "weights": kept.weights, "left": left, "looks": kept.looks}
    return found | {"end": every_weight.hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "shards", "backbone", "folder"):
        parser.add_argument(name)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    deepspeed.init_distributed()
    cfg = settings(arguments, "look", **ON)
    processor = load_processor(cfg.model)
    samples = [processor.encode(s) for s in itertools.islice(read_set(arguments.shards), 40)]
    results: dict[str, Any] = looked_at(cfg, samples)
    for name, every in itertools.product(CASES, (0, 1)):
        case = settings(arguments, f"{name}_{every}", **ON, **CASES[name], **{"health.vitals_every": every})
        results[f"{name}_{every}"] = run(case, samples)
    results["node_shards_1"] = run(
        settings(arguments, "node_shards_1", **ON, **CASES["plain"], **ONCE, **{"health.vitals_every": 1}), samples
    )
    if dist.get_rank() == 0:
        Path(arguments.out).write_text(json.dumps(results))
    dist.barrier()
    guards()[1].close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
