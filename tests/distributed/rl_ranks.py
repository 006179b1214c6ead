"""What the ranks of test_rl.py do: reinforcement learning in many settings; results of all ranks in one JSON file.

deepspeed --num_gpus N --module tests.distributed.rl_ranks OUT.json SHARDS EXPORTS FOLDER CASE [CASE ...]

EXPORTS is a folder with exports named by their objectives.
"""

import argparse
import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch

from model.build import load_processor
from trainer import checkpoint, config, resume, run
from trainer.checkpoint import Progress
from trainer.engine import build
from trainer.rl import loop, rollout, weights
from trainer.rl.group import Group
from trainer.rl.learn import Learned
from trainer.signals import Stop
from trainer.watch import Watch, WatchConfig

# What random weights say is never right; attention tells their completions apart.
EVERYTHING = {
    "run.seed": 3,
    "model.min_pixels": 4096,
    "model.max_pixels": 65536,
    "model.freeze_vision": True,
    "latent": "{slots: 3, width: 8, head_width: 16}",
    "train.lr": 1e-3,
    "train.latent_lr": 1e-3,
    "train.warmup": 0.0,
    "train.tokens": 400,
    "train.steps": 3,
    "train.save_every": 1000,
    "train.precision": "fp32",
    "data.workers": 0,
    "data.lanes": 8,
    "rl.rollout": "{prompts: 8, completions: 4, max_new_tokens: 5, temperature: 0.9, tokens: 500}",
    "rl.rewards.attention": "{weight: 1.0, gate: none, layers: all}",
    "rl.update.kl": 0.0,
    "rl.groups": "{accuracy_above: null, accuracy_below: null}",
}
CASES: dict[str, dict[str, Any]] = {
    "gathered": {"rl.rollout.weights": "gathered"},
    "sharded": {"rl.rollout.weights": "sharded", "train.steps": 2},
    "optional": {"rl.rollout.slots": "optional", "rl.rollout.weights": "sharded", "train.steps": 2},
    "constant_replay": {"rl.update.latents": "constant_replay", "train.steps": 2},
    "density_ratio": {"rl.update.latents": "density_ratio", "train.steps": 2},
    "reference": {"rl.update.kl": 0.5, "train.steps": 2},
    "stop": {"rl.rollout": "{prompts: 8, completions: 4, max_new_tokens: 12, stop: [e, '1']}", "train.steps": 1},
    "sft": {
        "objective.name": "sft",
        "train.steps": 1,
        "rl.rewards.format": "{weight: 1.0, pattern: e}",  # nothing attends to latents
    },
    "pause": {"objective.name": "pause", "train.steps": 1},
    "deterministic": {"objective.name": "deterministic", "train.steps": 1},
    "auto": {},
    "one_rank_learns": {"train.steps": 2},  # the other's groups are all dropped
    "nobody_learns": {"train.steps": 2},
    "not_a_number": {"train.steps": 2},
    "whole": {"rl.update.minibatches": 2, "rl.update.passes": 2, "train.steps": 7},
    "broken": {
        "rl.update.minibatches": 2,
        "rl.update.passes": 2,
        "train.steps": 7,
        "train.save_every": 3,
        "train.save_in_background": False,
    },
    "elastic": {"train.save_every": 2, "train.save_in_background": False},
    "other_prompts": {
        "rl.update.minibatches": 2,
        "train.steps": 3,
        "train.save_every": 1,
        "train.save_in_background": False,
    },
    "stopped": {"rl.update.minibatches": 2, "rl.update.passes": 2, "train.steps": 7},
}


class Kept:
    """Stands where the reporter stands; can break off after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.steps: list[Learned] = []
        self.weights: list[float] = []  # a sum over this rank's
        self.norms: list[float] = []  # of the gradient
        self.rollouts: list[dict[str, Any]] = []

    def rollout(self, progress: Progress, groups: list[Group], seconds: dict[str, float], left_out: Any) -> None:
        self.rollouts.append(
            {
                group.prompt.sample.key: {
                    "texts": group.texts,
                    "ended": [one.ended for one in group.completions],
                    "ids": [one.ids for one in group.completions],
                    "at": [one.latent_at for one in group.completions],
                    "drawn": [one.logps for one in group.completions],
                    "measured": [seen.logps.tolist() for seen in group.seen],
                    "reference": [seen.reference.tolist() for seen in group.seen if seen.reference is not None],
                    "rewards": [str(reward) for reward in group.rewards],
                    "advantages": group.advantages,
                    "dropped": group.dropped,
                }
                for group in groups
            }
        )

    def step(self, progress: Progress, engine: Any, step: Learned, saving: dict[str, float]) -> None:
        self.steps.append(step)
        self.weights.append(sum(float(flat.double().sum()) for flat in engine.optimizer.fp32_partitioned_groups_flat))
        self.norms.append(0.0 if step.empty else float(engine.get_global_grad_norm()))
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    def say(self, message: str | None) -> None:
        assert message is None

    def facts(self, progress: Progress) -> dict[str, Any]:
        return {"progress": vars(progress)}

    def found(self) -> dict[str, Any]:
        steps = [step._asdict() | {"loss": step.loss, "empty": step.empty} for step in self.steps]
        return {"steps": steps, "weights": self.weights, "norms": self.norms, "rollouts": self.rollouts}


class Late:
    """A request to stop, on rank 0 alone: the n-th time that is looked for it after so many steps."""

    def __init__(self, kept: Kept, steps: int, looks: int) -> None:
        self.kept, self.steps, self.looks = kept, steps, looks

    @property
    def reason(self) -> str | None:
        self.looks -= len(self.kept.steps) >= self.steps
        return "SIGTERM" if self.looks <= 0 and dist.get_rank() == 0 else None


@functools.cache
def watch() -> Watch:
    return Watch(WatchConfig(), Path(tempfile.gettempdir()) / "stacks", dist.get_rank(), dist.get_world_size())


@functools.cache
def never() -> Stop:
    return Stop()


def settings(arguments: argparse.Namespace, name: str) -> config.Config:
    """A run folder of its own for a case and a number of ranks; `elastic` has one for both."""
    fixed = {
        "run.name": name if name == "elastic" else f"{name}_{dist.get_world_size()}",
        "run.folder": arguments.folder,
        "data.train": arguments.shards,
        "model.folder": f"{arguments.exports}/{CASES[name].get('objective.name', 'amvl')}",
    }
    overrides = [f"{key}={value}" for key, value in (EVERYTHING | fixed | CASES[name]).items()]
    return config.load(Path("configs/quickstart_rl.yaml"), overrides)


def train(cfg: config.Config, stop_after: int | None = None, late: tuple[int, int] | None = None) -> Kept:
    """From the newest checkpoint on."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    processor, progress, last = load_processor(cfg.model), Progress(), resume.newest(cfg.run.path)
    prompts, kept = run._data(cfg, processor, rank, ranks), Kept(stop_after)
    if last:
        resume.restore_stream(last, prompts)
        resume.prepare(last)
    prompts.prime()
    engine = build(cfg, universal=resume.other_ranks(last))
    if last:
        resume.restore_engine(last, engine)
        progress = Progress(**checkpoint.facts_of(last)["progress"])
    try:
        if late:  # with a watch of its own, which remembers that it was told
            with Watch(cfg.watch, cfg.run.path, rank, ranks) as own:
                loop.train(cfg, engine, prompts, processor, progress, kept, Late(kept, *late), own, last)
        else:
            loop.train(cfg, engine, prompts, processor, progress, kept, never(), watch(), last)
    except KeyboardInterrupt:
        assert stop_after
    dist.barrier()
    return kept


def rated(name: str) -> Any:
    """Another rating of groups, for cases where it matters."""
    rate = rollout.rate

    def other(group: Group, masses: list[float], *rest: Any) -> None:
        rate(group, masses, *rest)
        drawn = name == "nobody_learns" or (name == "one_rank_learns" and dist.get_rank() == 1)
        if drawn:  # all completions are as good
            group.rewards = [1.0] * len(group.rewards)
        if name == "not_a_number":  # one of each group; of every other group all
            bad = len(group.rewards) if group.prompt.sample.key < "m" else 1
            group.rewards[:bad] = [math.nan] * bad

    return other


def run_case(arguments: argparse.Namespace, name: str) -> Any:
    cfg, plain = settings(arguments, name), rollout.rate
    if name == "auto":  # with memory, and without any
        engine, found = build(cfg), []
        for weights.ROOM in (0.6, 0.0):
            found.append(type(weights.weights_of(engine, "auto")).__name__)
        weights.ROOM = 0.6
        return found
    if name == "elastic":  # by two ranks, and then by one
        return train(cfg, stop_after=3 if dist.get_world_size() == 2 else None).found()
    if name == "other_prompts":  # by the checkpoint of rank 0
        first = train(cfg, stop_after=2).found()
        path = cfg.run.path / "checkpoints/step_1/rollout_0.pt"
        if dist.get_rank() == 0:
            kept = torch.load(path, weights_only=False)
            torch.save(kept | {"prompts": kept["prompts"][::-1]}, path)
            sizes = cfg.run.path / "checkpoints/step_1/rank_0.json"
            said = json.loads(sizes.read_text())
            said["files"][path.name] = path.stat().st_size
            sizes.write_text(json.dumps(said))
        dist.barrier()
        return [first, train(cfg).found()]
    if name == "broken":
        first = train(cfg, stop_after=5)
        return [first.found(), train(cfg).found()]
    if name == "stopped":  # once between two steps on a rollout, once while completions are drawn
        return [train(cfg, late=late).found() for late in ((2, 1), (2, 4), None)]
    rollout.rate = rated(name)
    try:
        return train(cfg).found()
    finally:
        rollout.rate = plain


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "shards", "exports", "folder"):
        parser.add_argument(name)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    deepspeed.init_distributed()
    results = {name: run_case(arguments, name) for name in arguments.cases}
    everything: list[Any] = [None] * dist.get_world_size()
    torch.distributed.all_gather_object(everything, results)
    if dist.get_rank() == 0:
        Path(arguments.out).write_text(json.dumps(everything))
    dist.barrier()
    watch().close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
