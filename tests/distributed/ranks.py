"""What the two ranks of test_zero3.py do; started once by the launcher, results in one JSON file.

deepspeed --num_gpus 2 --module tests.distributed.ranks OUT.json SHARDS BACKBONE QWEN3_VL WIDE FOLDER
"""

import argparse
import functools
import itertools
import json
import math
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from transformers.integrations import HfDeepSpeedConfig

from data.processor import Encoded
from data.shards import read_set
from model.build import load_backbone, load_processor, markers_of
from model.export import export
from trainer import checkpoint, config, loop, resume
from trainer.checkpoint import Progress
from trainer.engine import build
from trainer.health import HealthError
from trainer.report import Step
from trainer.signals import Stop
from trainer.watch import Watch, WatchConfig
from trainer.zero import settings as zero_settings

STEPS, BATCH = 20, 12
SHORT = {
    "short": {},
    "offloaded": {"deepspeed.offload_optimizer": True},
    "node_shards": {"deepspeed.hpz_partition_size": 2},
    "some_layers": {"model.checkpoint_layers": 2},
}


class Fixed:
    """The same global batches whatever the number of ranks: sample i of a batch goes to rank i % ranks."""

    def __init__(self, samples: list[Encoded], pieces: int, mine: list[int]) -> None:
        self.samples, self.pieces, self.mine, self.at = samples, pieces, mine, 0

    def __next__(self) -> list[Encoded]:
        batch, piece = divmod(self.at, len(self.mine))
        self.at += 1
        items = list(itertools.islice(itertools.cycle(self.samples), batch * BATCH, (batch + 1) * BATCH))
        return items[self.mine[piece] :: self.pieces]

    def state(self) -> dict[str, Any]:
        return {"batch": self.at // len(self.mine), "counts": {"shrunk": 0, "dropped": 0, "bad": 0}}

    def restore(self, states: list[dict[str, Any]], rank: int, ranks: int) -> None:
        self.at = states[0]["batch"] * len(self.mine)

    def close(self) -> None:
        pass


class Losses:
    """Stands where the reporter stands and keeps the loss of every step; can break off after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: list[float] = []
        self.said: list[str] = []
        self.weights: list[float] = []  # a sum over this rank's
        self.looks: dict[int, dict[str, float]] = {}  # by step
        self.stop_after = stop_after

    def step(self, progress: Progress, engine: deepspeed.DeepSpeedEngine, step: Step, saving: dict[str, float]) -> None:
        self.losses.append(step.loss)
        self.weights.append(sum(float(flat.double().sum()) for flat in engine.optimizer.fp32_partitioned_groups_flat))
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    def vitals(self, step: int, values: dict[str, float]) -> None:
        self.looks[step] = values

    def say(self, message: str | None) -> None:
        self.said += [message] if message else []

    def facts(self, progress: Progress) -> dict[str, Any]:
        return {"progress": vars(progress)}


@functools.cache
def guards() -> tuple[Stop, Watch]:
    return Stop(), Watch(WatchConfig(), Path(tempfile.gettempdir()) / "stacks", dist.get_rank(), dist.get_world_size())


def settings(arguments: argparse.Namespace, name: str, **changes: Any) -> config.Config:
    fixed = {
        "run.name": name,
        "run.folder": arguments.folder,
        "data.train": arguments.shards,
        "model.folder": arguments.backbone,
        "train.steps": STEPS,
        "train.lr": 1e-3,
        "train.save_every": 1000,
        "train.precision": "fp32",
        "objective.late": [0.1, 0.3],
    }
    overrides = [f"{key}={value}" for key, value in (fixed | changes).items()]
    return config.load(Path("configs/quickstart.yaml"), overrides)


def train(cfg: config.Config, samples: list[Encoded], accumulation: int = 1, stop_after: int | None = None):
    """Train on fixed batches from the newest checkpoint on. Returns (engine, the losses it kept)."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    pieces = ranks * accumulation
    packs = Fixed(samples, pieces, [rank + ranks * i for i in range(accumulation)])
    progress, losses, last = Progress(), Losses(stop_after), resume.newest(cfg.run.path)
    resume.prepare(last)
    engine = build(cfg, universal=resume.other_ranks(last))
    if last:
        resume.restore_stream(last, packs)
        resume.restore_engine(last, engine)
        progress = Progress(**checkpoint.facts_of(last)["progress"])
    try:
        loop.train(
            cfg,
            engine,
            packs,
            markers_of(load_processor(cfg.model)),
            progress,
            losses,
            *guards(),
        )
    except KeyboardInterrupt:
        assert stop_after
    return engine, losses


def poisoned(arguments: argparse.Namespace, samples: list[Encoded]) -> dict[str, Any]:
    """A picture that is not a number, in the third of five steps; then nothing else but such, from a checkpoint on."""
    cfg = settings(arguments, "poisoned", **{"train.steps": 5, "health.in_a_row": 2})
    one = next(n for n in range(2 * BATCH, 3 * BATCH) if len(samples[n].grids))
    bad = [replace(s, pixels=s.pixels * math.nan) for s in samples]
    engine, kept = train(cfg, [*samples[:one], bad[one], *samples[one + 1 :]])
    found: dict[str, Any] = {"losses": [str(loss) for loss in kept.losses], "weights": kept.weights, "said": kept.said}
    found |= {"skipped": engine.skipped_steps, "sample": samples[one].sample.place}
    try:
        train(cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": 9})}), bad)
    except HealthError as error:
        found["error"] = str(error)
    return found


def private_memory() -> int:
    """Bytes of this process that are no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def load(cfg: config.Config) -> dict[str, int]:
    """Load the weights as a run does. Returns the most that this rank held meanwhile, and the size of all in fp32."""
    before, peak, done = private_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    zero = HfDeepSpeedConfig(zero_settings(cfg))
    backbone = load_backbone(cfg.model, cfg.train.bf16)
    del zero
    done.set()
    watcher.join()
    return {"peak": peak - before, "whole": 4 * sum(p.ds_numel for p in backbone.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "shards", "backbone", "qwen3_vl", "wide", "folder"):
        parser.add_argument(name)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    deepspeed.init_distributed()
    cfg = settings(arguments, "plain")
    processor = load_processor(cfg.model)
    samples = [processor.encode(s) for s in itertools.islice(read_set(cfg.data.train[0].folder), 40)]
    results: dict[str, Any] = {}
    wide = settings(arguments, "wide", **{"model.folder": arguments.wide, "train.precision": "bf16"})
    results["load"] = load(wide)

    engine, kept = train(cfg, samples)
    results["plain"] = kept.losses
    last = resume.newest(cfg.run.path)
    if dist.get_rank() == 0:
        # Under ZeRO-3 only shards are in memory, so the export is what can be compared as a whole.
        export(last, cfg.model_dump(mode="json"), Path(arguments.folder) / "export")
    results["sharded"] = all(p.ds_tensor.numel() < p.ds_numel for p in engine.module.backbone.model.model.parameters())

    _, kept = train(settings(arguments, "ckpt", **{"model.checkpoint_layers": "all"}), samples)
    results["checkpointing"] = kept.losses
    accumulated = settings(arguments, "accumulated", **{"train.accumulation": 2})
    _, kept = train(accumulated, samples, accumulation=2)
    results["accumulated"] = kept.losses

    with_images = [s for s in samples if len(s.grids)]
    texts = [s for s in (processor.encode(s) for s in read_set(cfg.data.train[0].folder)) if not len(s.grids)]
    half = BATCH // 2
    mixed = [item for i in range(half) for item in (with_images[i], texts[i % len(texts)])]
    _, kept = train(settings(arguments, "images", **{"train.steps": 3}), mixed)
    results["one_rank_without_images"] = kept.losses

    for name, changes in SHORT.items():
        engine, kept = train(settings(arguments, name, **changes, **{"train.steps": 4}), samples)
        results[name] = kept.losses
        results[f"{name}_optimizer"] = type(engine.optimizer.optimizer).__name__
        results[f"{name}_copies"] = engine.zero_hpz_partition_size()
    other = settings(arguments, "qwen3_vl", **{"model.folder": arguments.qwen3_vl, "train.steps": 4})
    engine, kept = train(other, samples)
    results["qwen3_vl"] = kept.losses
    results["tied"] = engine.module.backbone.model.lm_head.weight is engine.module.backbone.embedding.weight

    half = settings(arguments, "half", **{"train.precision": "bf16", "train.steps": 4})
    engine, kept = train(half, samples)
    results["half"] = kept.losses
    exact = load_backbone(cfg.model)
    theirs = dict(exact.named_buffers())
    results["worst_buffer"] = max(
        (buffer.float() - theirs[name]).abs().max().item() for name, buffer in engine.module.backbone.named_buffers()
    )

    whole = settings(arguments, "whole", **{"train.steps": 8})
    _, kept = train(whole, samples)
    results["whole"] = kept.losses
    broken = settings(
        arguments, "broken", **{"train.steps": 8, "train.save_every": 3, "train.save_in_background": False}
    )
    _, kept = train(broken, samples, stop_after=5)
    first = kept.losses
    dist.barrier()
    _, kept = train(broken, samples)
    rest = kept.losses
    results["before_break"], results["after_break"] = first, rest

    results["poisoned"] = poisoned(arguments, samples)
    if dist.get_rank() == 0:
        Path(arguments.out).write_text(json.dumps(results))
    dist.barrier()
    guards()[1].close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
