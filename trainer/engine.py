"""The DeepSpeed ZeRO-3 engine around a LatentVLM."""

import deepspeed
import deepspeed.comm as dist
import torch
from transformers.integrations import HfDeepSpeedConfig

from model.batch import Batch
from model.build import load_backbone
from model.latent_vlm import PARTS, LatentVLM, Weights
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
    model = LatentVLM(backbone, config.latent, config.objective.recipe)
    with deepspeed.zero.GatheredParameters([backbone.embedding.weight]):
        torch.manual_seed(config.run.seed)
        model.reset_latent()
    # The same on every rank, by the seed; DeepSpeed splits them when it wraps the model.
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    for module in model.latent_modules().values():
        module.to(backbone.embedding.weight.device, dtype)
    model.scale = model.scale.to(backbone.embedding.weight.device)
    latent = [p for module in model.latent_modules().values() for p in module.parameters()]
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


def take_step(engine: deepspeed.DeepSpeedEngine, batches: list[Batch], weights: Weights) -> torch.Tensor:
    """One optimizer step over micro-steps, each with a backward pass per round. Returns this rank's sums (PARTS).

    Some weights have a gradient in one round only, and DeepSpeed (0.19) writes over what is left of the step before
    in the first backward pass of a step alone, so what is left is cleared here. It begins to add at the next forward
    pass, of which there is none between two rounds; and with its optimizer on the CPU it would take over the
    gradients of the last backward pass alone.
    """
    optimizer, parts = engine.optimizer, torch.zeros(len(PARTS), device=engine.device)
    optimizer.grad_partitions_flat_buffer.zero_()
    for batch in batches:
        losses, sums = engine(batch, weights)
        for number, loss in enumerate(losses):
            if number:
                optimizer.clear_backward_seen_flag()
            engine.backward(loss, scale_wrt_gas=False)
            if engine.is_gradient_accumulation_boundary():
                optimizer.finalize_gradient_accumulation_boundary()
            engine.step()
        parts += sums
    return parts
