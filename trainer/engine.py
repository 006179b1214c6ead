"""The DeepSpeed ZeRO-3 engine around a LatentVLM."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from transformers.integrations import HfDeepSpeedConfig

from model.build import continue_latent, load_backbone, load_latent
from model.latent_vlm import LatentVLM
from model.policy import Policy
from trainer.config import Config, ConfigError
from trainer.zero import settings


def build(config: Config, universal: bool = False) -> deepspeed.DeepSpeedEngine:
    """Load the model under zero.Init and wrap it, with two learning rates and their schedule.

    `universal`: it is going to load a checkpoint in that form (trainer/elastic.py).
    """
    values, ranks, node = settings(config), dist.get_world_size(), config.deepspeed.hpz_partition_size
    values["checkpoint"] = values.get("checkpoint", {}) | {"load_universal": universal}
    if ranks % node:
        raise ConfigError(f"deepspeed.hpz_partition_size: {ranks} ranks cannot be split into groups of {node}")
    # Alive while the weights load: transformers then splits each tensor over the ranks as it reads it.
    hf = HfDeepSpeedConfig(values)
    backbone = load_backbone(config.model, config.train.bf16)
    del hf
    model = (Policy if config.rl else LatentVLM)(backbone, config.latent, config.objective.recipe)
    with deepspeed.zero.GatheredParameters([backbone.embedding.weight]):
        torch.manual_seed(config.run.seed)
        model.reset_latent()
    if config.rl:
        assert isinstance(model, Policy)
        load_latent(model, config.model.folder)
        model.freeze_unused(config.rl.update.latents)
        deepspeed.zero.register_external_parameter(model.target_entropy, model.target_entropy.weight)
    elif config.model.latents == "export":
        continue_latent(model, config.model.folder)
    # The same on every rank, by the seed; DeepSpeed splits them when it wraps the model.
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    for module in model.latent_modules().values():
        module.to(backbone.embedding.weight.device, dtype)
    model.scale = model.scale.to(backbone.embedding.weight.device)
    latent = [p for module in model.latent_modules().values() for p in module.parameters() if p.requires_grad]
    deepspeed.zero.register_external_parameter(model.target_loss, model.target_loss.weight)
    groups = [
        {"params": [p for p in backbone.parameters() if p.requires_grad], "lr": config.train.lr},
        {"params": latent, "lr": config.train.latent_lr},
    ]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[g for g in groups if g["params"]],
        config=values,
        lr_scheduler=config.train.scheduler,
        dist_init_required=False,
    )
    return engine


def take_step(engine: deepspeed.DeepSpeedEngine, calls: Sequence[tuple[Any, ...]], rounds: int) -> list[Any]:
    """One optimizer step over micro-steps: each a call of the model, which gives a loss per round, for a backward pass
    each, and something else. Returns what else the calls gave.

    Some weights have a gradient in one round only, and DeepSpeed (0.19) writes over what is left of the step before
    in the first backward pass of a step alone, so what is left is cleared here. It begins to add at the next forward
    pass, of which there is none between two rounds; and with its optimizer on the CPU it would take over the
    gradients of the last backward pass alone.
    """
    optimizer, found = engine.optimizer, []
    optimizer.grad_partitions_flat_buffer.zero_()
    for call_number, call in enumerate(calls, 1):
        losses, more = engine(*call)
        for number, loss in enumerate(losses, 1):
            last = call_number == len(calls) and number == rounds
            _backward(engine, loss, number, boundary=last)
            if last:
                optimizer.finalize_gradient_accumulation_boundary()
            engine.step()
        found.append(more)
    return found


def leave_gradients(engine: deepspeed.DeepSpeedEngine, calls: Sequence[tuple[Any, ...]]) -> None:
    """The gradients of micro-steps, left in the optimizer's partitions (`partitions`), without a step and without a
    trace: counts, schedule and the next take_step are as if it had not been.
    """
    optimizer = engine.optimizer
    optimizer.grad_partitions_flat_buffer.zero_()
    for call in calls:
        losses, _ = engine(*call)
        for number, loss in enumerate(losses, 1):
            _backward(engine, loss, number, boundary=False)
    optimizer.zero_grad()  # not those in the partitions; the next backward pass is the first of its step again


def partitions(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's share of the gradient, flat, by the names of the weights that are trained."""
    names, at = {id(weight): name for name, weight in engine.module.named_parameters()}, 0
    for weight in chain.from_iterable(engine.optimizer.fp16_groups):  # in this order they lie in the buffer
        size = weight.partition_numel()
        yield names[id(weight)], engine.optimizer.grad_partitions_flat_buffer[at : at + size]
        at += size


def _backward(engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor, number: int, boundary: bool) -> None:
    """The backward pass of a micro-step's round, counted from 1; `boundary`: the last before the optimizer's step."""
    if number > 1:
        engine.optimizer.clear_backward_seen_flag()
    engine.set_gradient_accumulation_boundary(boundary)
    engine.backward(loss, scale_wrt_gas=False)
