"""Real ZeRO-3 checkpoints for test_export.py, and the weights that two ranks had when they wrote them.

deepspeed --num_gpus 2 --module tests.model.checkpoints FOLDER SHARDS BACKBONE QWEN3_VL WIDE
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch

from data.shards import read_set
from model.batch import collate
from model.build import load_processor, markers_of
from model.latent_vlm import Weights
from trainer import config
from trainer.engine import build, take_step


def save(cfg: config.Config, engine: deepspeed.DeepSpeedEngine, step: int) -> None:
    """A checkpoint as a run writes it."""
    folder = cfg.run.path / "checkpoints" / f"step_{step}"
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    if dist.get_rank() == 0:
        (cfg.run.path / "config.yaml").write_text(cfg.to_yaml())
        (folder / "complete.json").write_text(json.dumps({"step": step, "ranks": dist.get_world_size()}))


def train(arguments: argparse.Namespace, name: str, steps: int, **changes: Any) -> None:
    """A run folder `name` with a checkpoint before the first step and after each, those with weights_N.pt beside."""
    settings = {"run.name": name, "run.folder": arguments.folder, "data.train": arguments.shards, "train.lr": 1e-3}
    cfg = config.load(Path("configs/quickstart.yaml"), [f"{k}={v}" for k, v in (settings | changes).items()])
    engine, processor = build(cfg), load_processor(cfg.model)
    model, samples = engine.module, read_set(arguments.shards)
    mine = itertools.islice(samples, dist.get_rank(), None, dist.get_world_size())
    save(cfg, engine, 0)
    for step in range(1, steps + 1):
        batch = [processor.encode(next(mine)) for _ in range(3)]
        rows = collate(batch, model.recipe, model.config, model.backbone, markers_of(processor))
        weights = Weights(1.0, 1.0, 1 / len(rows.targets), 1 / rows.samples)
        take_step(engine, [(rows, weights)], model.recipe.rounds)
        save(cfg, engine, step)
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            if dist.get_rank() == 0:
                torch.save(model.state_dict(), cfg.run.path / f"weights_{step}.pt")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "shards", "backbone", "qwen3_vl", "wide"):
        parser.add_argument(name)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    deepspeed.init_distributed()
    train(arguments, "qwen2_5_vl", 2, **{"model.folder": arguments.backbone, "train.precision": "fp32"})
    frozen = {"model.freeze_vision": True, "train.precision": "bf16"}
    train(arguments, "qwen3_vl", 1, **{"model.folder": arguments.qwen3_vl}, **frozen)
    train(arguments, "wide", 0, **{"model.folder": arguments.wide, "train.precision": "fp32"})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
