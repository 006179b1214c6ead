"""What the ranks of test_elastic.py do: write checkpoints, or go on from them as another number of ranks.

deepspeed --num_gpus N --module tests.distributed.elastic_ranks write|read OUT.json SHARDS BACKBONE FOLDER
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch

from data.processor import Encoded
from data.shards import read_set
from model.build import load_processor
from tests.distributed.ranks import guards, settings, train
from trainer import checkpoint
from trainer.config import Config

STEPS, BROKEN = 8, 3
# Two learning rates, moments and step counts that matter still; also where DeepSpeed keeps them elsewhere.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen": {"model.freeze_vision": True},
    "offloaded": {"deepspeed.offload_optimizer": True},
}


def config_of(arguments: argparse.Namespace, name: str, ranks: int, folder: str, **changes: Any) -> Config:
    """The same global batch of 6 micro-steps whatever the number of ranks."""
    fixed = {"train.steps": STEPS, "train.accumulation": 6 // ranks, "train.save_every": BROKEN}
    fixed |= {"run.folder": f"{arguments.folder}/{folder}", "train.latent_lr": 4e-3}
    return settings(arguments, name, **(fixed | CASES[name] | changes))


def losses_of(cfg: Config, samples: list[Encoded], stop_after: int | None = None) -> list[float]:
    return train(cfg, samples, cfg.train.accumulation, stop_after)[1].losses


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("phase", "out", "shards", "backbone", "folder"):
        parser.add_argument(name)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    deepspeed.init_distributed()
    ranks = dist.get_world_size()
    processor = load_processor(settings(arguments, "any").model)
    samples = [processor.encode(s) for s in itertools.islice(read_set(arguments.shards), 40)]
    results: dict[str, Any] = {}
    for name in CASES:
        if arguments.phase == "write":
            results[name] = losses_of(config_of(arguments, name, ranks, "whole"), samples)
            broken = config_of(arguments, name, ranks, "broken", **{"train.save_in_background": False})
            losses_of(broken, samples, stop_after=BROKEN + 1)
        else:
            cfg = config_of(arguments, name, ranks, f"by_{ranks}")
            results[name] = losses_of(cfg, samples)
            results[f"{name} again"] = _again(cfg, samples)
    if dist.get_rank() == 0:
        Path(arguments.out).write_text(json.dumps(results))
    dist.barrier()
    guards()[1].close()
    torch.distributed.destroy_process_group()


def _again(cfg: Config, samples: list[Encoded]) -> list[float]:
    """The last steps once more, from a checkpoint that the resumed run wrote itself."""
    if dist.get_rank() == 0:
        checkpoint.remove(checkpoint.folder_of(cfg.run.path, STEPS))
    dist.barrier()
    return losses_of(cfg, samples)


if __name__ == "__main__":
    main()
