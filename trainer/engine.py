"""The DeepSpeed ZeRO-3 engine around a LatentVLM."""

from collections.abc import Sequence
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from transformers.integrations import HfDeepSpeedConfig

from model.build import load_backbone, load_latent
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
            if number > 1:
                optimizer.clear_backward_seen_flag()
            last = call_number == len(calls) and number == rounds
            engine.set_gradient_accumulation_boundary(last)
            engine.backward(loss, scale_wrt_gas=False)
            if last:
                optimizer.finalize_gradient_accumulation_boundary()
            engine.step()
        found.append(more)
    return found
