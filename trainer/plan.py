"""What a run will take, before it is started: memory per GPU, step time, and where communication takes over.

    python trainer/plan.py CONFIG.yaml [dotted.key=value ...] --gpus 64 --memory 80GiB --gpu h100

Needs the architecture alone (model.folder's config.json or model.architecture): no weights, no data, no GPU.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data.pipeline import packs_of
from data.processor import Encoded
from data.sample import Sample, Text, UserError
from model.batch import Batch, Markers, collate, cost
from model.build import load_processor, shape_only
from model.latent_vlm import LatentVLM
from trainer import config as configuration
from trainer.config import Config
from trainer.memory import META, Memory, activation_bytes, kept_bytes, logit_bytes, memory_of
from trainer.rl import config as rl_config
from trainer.rl.config import RLConfig
from trainer.step_time import GPUS, NODE, Gpu, Time, Traffic, step_time
from trainer.target import PlanError, Target, gib, options, target_of
from trainer.throughput import Flops

SCALES = (8, 64, 512, 4096)
MFU, HOP = 0.40, 5e-6  # unless told: what good runs of such models reach; seconds a call takes per node


class Shape(NamedTuple):
    """A sample of the size to plan with: tokens of the prompt, of them of its image, and of the answer."""

    prompt: int = 1024
    image: int = 768
    answer: int = 64


TYPICAL = Shape()


class Plan:
    """A configuration, its model without memory, and a batch that fills its token budget."""

    def __init__(self, config: Config, batch: Batch | None = None, shape: Shape = TYPICAL, gpu: bool = True) -> None:
        self.config, self.gpu, self.shape = config, gpu, shape
        self.model = shape_only(config.model, config.latent, config.objective.recipe)
        self.text = self.model.backbone.config.text_config
        self.width = 2 if config.train.bf16 else 4
        backbone = self.model.backbone
        layers, vision = count(backbone.language.layers) + count(backbone.language.norm), count(backbone.vision)
        self.parts = {
            "language model": layers,
            "embedding and head": count(backbone) - layers - vision,
            "vision tower": vision,
            "latent parts": count(self.model) - count(backbone),
        }
        self.total = sum(self.parts.values())
        self.trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.batch = batch or filled(self.model, config.train.tokens, shape)
        self.activations = self._activations(config, self.batch)
        half = filled(self.model, self.batch.tokens // 2, shape) if not batch else None
        self.per_token = (
            (self.activations - self._activations(config, half)) / (self.batch.tokens - half.tokens)
            if half and half.samples < self.batch.samples
            else self.activations / self.batch.tokens
        )
        self.flops = Flops(self.model)(self.batch)

    def _activations(self, config: Config, batch: Batch) -> float:
        return activation_bytes(config, batch, fused=self.gpu and config.model.attention != "sdpa")

    def memory(self, ranks: int, offload: bool | None = None) -> Memory:
        """Of one rank, with the optimizer on the CPU or not."""
        config = self.config
        if offload is not None:
            deepspeed = config.deepspeed.model_copy(update={"offload_optimizer": offload})
            config = config.model_copy(update={"deepspeed": deepspeed})
        return memory_of(config, self.total, self.trained, ranks, self.activations, self.gpu)

    @property
    def weights_alone(self) -> float:
        """Bytes of all weights."""
        return self.width * self.total

    def largest_budget(self, ranks: int, room: float, offload: bool | None = None) -> int:
        """The most train.tokens that a GPU with so much room holds; 0: not even the model."""
        memory = self.memory(ranks, offload)
        passing = memory.gathered + memory.copies
        spare = room - (memory.peak - max(memory.activations + passing, memory.step))
        if spare < memory.step:
            return 0
        fixed = self.activations - self.per_token * self.batch.tokens
        return max(0, int((spare - passing - fixed) / self.per_token))

    def time(self, ranks: int, gpu: Gpu, mfu: float, node_copy: int | None = None) -> Time:
        """Of an optimizer step."""
        rounds = self.config.objective.recipe.rounds
        traffic = Traffic.of(self.total, self.trained, rounds, self.text.num_hidden_layers, self.width)
        node = node_copy or self.config.deepspeed.hpz_partition_size
        return step_time(self.flops, traffic, ranks, gpu, mfu, self.config.train.accumulation, node, HOP)


def count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def filled(model: LatentVLM, tokens: int, shape: Shape) -> Batch:
    """As many samples of a shape as fit a budget, at least one."""
    backbone, merge = model.backbone, model.backbone.config.vision_config.spatial_merge_size
    rows = max(n for n in range(1, math.isqrt(shape.image) + 1) if shape.image % n == 0)
    grid = torch.tensor([[1, merge * rows, merge * shape.image // rows]])
    image = [backbone.config.image_token_id] * shape.image
    sample = Encoded(
        sample=Sample(key="plan", text=Text(question="?", answer="!", task="plan", source="plan")),
        prompt=torch.tensor(image + [0] * (shape.prompt - shape.image)),
        answer=torch.zeros(shape.answer, dtype=torch.long),
        pixels=torch.empty(int(grid.prod()), backbone.patch_width, device=META),
        grids=grid,
        image_tokens=shape.image,
    )
    each = cost(sample, model.recipe, model.config.slots)
    samples = [sample] * max(1, tokens // each)
    return collate(samples, model.recipe, model.config, backbone, Markers(0, 0))


def on(config: Config, target: Target) -> Config:
    """The configuration as it would resolve itself there."""
    if target.gpu is None or config.train.precision != "auto":
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": "bf16"})})


def first_batch(config: Config) -> tuple[Batch | None, str]:
    """The first micro-step of the run's own data, where data and tokenizer are here, and what can be said of it."""
    if not (config.model.folder / "config.json").is_file() and config.model.architecture:
        words = f"samples of {TYPICAL.prompt:,} tokens stand for the data"
        return None, f"not read: {config.model.folder} is not on this machine; {words}"
    processor = load_processor(config.model)
    recipe, slots, tokens = config.objective.recipe, config.latent.slots, config.train.tokens
    data = config.data.model_copy(update={"workers": 0})  # for one pack
    measure = partial(cost, recipe=recipe, slots=slots)
    pack = next(packs_of(data, processor.encode, measure, tokens, config.run.seed))
    model = shape_only(config.model, config.latent, recipe)
    batch = collate(pack, recipe, config.latent, model.backbone, Markers(0, 0))
    images = sum(len(s.grids) for s in pack)
    return batch, (
        f"first batch: {len(pack)} samples, {images} images, {batch.tokens:,} of {tokens:,} tokens, "
        f"{len(batch.image_rows):,} of them from images, {len(batch.targets)} targets"
    )


def dry_run(config: Config, target: Target) -> Iterator[str]:
    """Lines that say what the run would be. Raises what it would at its start, and PlanError where it cannot fit."""
    config = on(config, target)
    if config.rl and config.model.folder.is_dir():
        rl_config.check(config, target.ranks)
    batch, words = first_batch(config)
    plan = Plan(config, batch, gpu=target.gpu is not None)
    yield from describe(plan, target)
    yield words
    if config.rl:
        yield from describe_rollout(plan, config.rl)
    refuse(plan, target)


def describe(plan: Plan, target: Target) -> Iterator[str]:
    """Parameters, and the memory of one rank by part."""
    config, memory = plan.config, plan.memory(target.ranks)
    yield f"objective {config.objective.name}, {config.latent.slots} slots of width {config.latent.width}"
    yield f"parameters: {plan.total:,}, of them {plan.trained:,} trained"
    yield from (f"  {name:<20} {number:>16,}" for name, number in plan.parts.items())
    yield f"memory per rank on {target.words}, {'bf16' if config.train.bf16 else 'fp32'}, {plan.batch.tokens:,} tokens:"
    yield from (f"  {name.replace('_', ' '):<20} {gib(size):>12}" for name, size in memory._asdict().items() if size)
    prefix = sum(s.length for s in plan.batch.first.prefixes)
    logits = logit_bytes(len(plan.batch.targets), plan.text.vocab_size, plan.width)
    yield f"    of activations, logits {gib(logits)}, keys and values of the prefixes " + (
        gib(kept_bytes(prefix, plan.text, plan.width)) if config.objective.recipe.rounds == 2 else "none kept"
    )
    yield f"  {'peak':<20} {gib(memory.peak):>12}  of {gib(target.room)} that can be used"


def describe_rollout(plan: Plan, rl: RLConfig) -> Iterator[str]:
    """What reinforcement learning does beside its updates, which take the memory of a step of as many tokens."""
    rollout, update = rl.rollout, rl.update
    yield (
        f"rollout: {rollout.prompts} prompts over all ranks, {rollout.completions} completions each of at most "
        f"{rollout.max_new_tokens} tokens; then {rl.steps_per_rollout} steps on it"
    )
    kept = kept_bytes(rollout.tokens, plan.text, plan.width)
    yield (
        f"  while it is drawn, beside weights and optimizer: {gib(plan.weights_alone)} of gathered weights "
        f"(none with rl.rollout.weights sharded), at most {gib(kept)} of keys and values"
    )
    if update.kl:
        yield f"  reference: its weights, {gib(plan.weights_alone)} over all ranks"


def refuse(plan: Plan, target: Target) -> None:
    """PlanError when it does not fit, with the key that would make it fit."""
    memory = plan.memory(target.ranks)
    if memory.peak <= target.room:
        return
    largest = max(memory._asdict().items(), key=lambda part: part[1] * (part[0] != "on_cpu"))
    raise PlanError(
        f"{gib(memory.peak)} per rank do not fit into {gib(target.room)} ({target.words}); the largest part is "
        f"{largest[0].replace('_', ' ')}, {gib(largest[1])}; {mend(plan, target)}"
    )


def mend(plan: Plan, target: Target) -> str:
    """The first single change that makes it fit."""
    ranks, room = target.ranks, target.room
    if not target.gpu and plan.weights_alone > room:
        return "this machine is too small; describe the one it is for with --gpus, --memory and --gpu"
    if plan.config.model.checkpoint_layers != "all" and recomputing(plan, "all").memory(ranks).peak <= room:
        return "set model.checkpoint_layers=all"
    if budget := plan.largest_budget(ranks, room):
        return f"set train.tokens={budget}"
    if plan.memory(ranks, offload=True).peak <= room:
        return "set deepspeed.offload_optimizer=true"
    for more in (2**n for n in range(1, 13) if 2**n > ranks):
        if plan.memory(more).peak <= room:
            return f"take {more} GPUs"
    return "set model.checkpoint_layers=all and deepspeed.offload_optimizer=true, lower train.tokens, take more GPUs"


def alternatives(plan: Plan, target: Target) -> Iterator[str]:
    """Peak memory and the largest budget, with and without recomputation and offload."""
    yield f"{'layers recomputed':<20} {'optimizer on':<14} {'peak':>12} {'largest train.tokens':>22}"
    for layers in ("all", 0):
        other = plan
        if plan.config.model.checkpoint_layers != layers:
            other = recomputing(plan, layers)
        for offload in (False, True):
            peak = other.memory(target.ranks, offload).peak
            budget = other.largest_budget(target.ranks, target.room, offload)
            yield f"{layers!s:<20} {'CPU' if offload else 'GPU':<14} {gib(peak):>12} {budget:>22,}"


def recomputing(plan: Plan, layers: int | str) -> Plan:
    """The same plan with other layers recomputed."""
    model = plan.config.model.model_copy(update={"checkpoint_layers": layers})
    return Plan(plan.config.model_copy(update={"model": model}), plan.batch, plan.shape, plan.gpu)


def scaling(plan: Plan, kind: str, mfu: float) -> Iterator[str]:
    """Step time over numbers of GPUs, which side bounds it, and what would move that."""
    gpu, tokens = GPUS[kind], plan.batch.tokens
    yield (
        f"{plan.flops / 1e12:,.0f} TFLOP per GPU and micro-step, MFU {mfu:.0%} of {gpu.peak / 1e12:,.0f} TFLOP/s; "
        f"{gpu.inside / 1e9:,.0f} GB/s within a node of {NODE}, {gpu.outside / 1e9:,.0f} GB/s a network card, "
        f"{HOP * 1e6:.0f} us a node"
    )
    heads = f"{'GPUs':>6} {'memory':>11} {'computing':>11} {'sending':>11} {'tokens/s':>13} {'MFU':>6}"
    yield heads + "  even at train.tokens"
    for ranks in SCALES:
        time = plan.time(ranks, gpu, mfu)
        speed = ranks * plan.config.train.accumulation * tokens / time.step
        near = plan.time(ranks, gpu, mfu, node_copy=NODE)
        even, even_near = (math.ceil(tokens * t.communication / t.compute) for t in (time, near))
        yield (
            f"{ranks:>6,} {gib(plan.memory(ranks).peak):>11} {time.compute:>9.2f} s {time.communication:>9.2f} s "
            f"{speed:>13,.0f} {mfu * time.compute / time.step:>6.1%}  {even:,} "
            f"({even_near:,} with deepspeed.hpz_partition_size={NODE})"
            + ("" if time.compute >= time.communication else "  <- sending takes longer than computing")
        )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="trainer/plan.py",
        description="Memory and time of a run before it starts.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    options(parser)
    parser.add_argument("--mfu", type=float, default=MFU, help=f"model FLOPs utilisation to reckon with ({MFU})")
    parser.add_argument("--prompt", type=int, default=TYPICAL.prompt, help="tokens of a sample's prompt, P")
    parser.add_argument("--image", type=int, default=TYPICAL.image, help="of them from its image")
    parser.add_argument("--answer", type=int, default=TYPICAL.answer, help="tokens of its answer, A")
    arguments = parser.parse_intermixed_args()
    try:
        if not 0 < arguments.image <= arguments.prompt or arguments.answer < 1 or not 0 < arguments.mfu <= 1:
            raise PlanError("--image is from 1 to --prompt, --answer at least 1, --mfu above 0 and at most 1")
        target = target_of(arguments)
        config = on(configuration.load(arguments.config, arguments.overrides), target)
        shape = Shape(arguments.prompt, arguments.image, arguments.answer)
        plan = Plan(config, shape=shape, gpu=target.gpu is not None)
        print("\n".join(describe(plan, target)), end="\n\n")
        print("\n".join(alternatives(plan, target)), end="\n\n")
        if target.gpu:
            print("\n".join(scaling(plan, target.gpu, arguments.mfu)))
        refuse(plan, target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
