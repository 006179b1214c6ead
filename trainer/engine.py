"""The DeepSpeed ZeRO-3 engine around a LatentVLM."""

import json
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from model.build import load_backbone
from model.latent_vlm import LatentVLM
from trainer.config import Config, ConfigError


def settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's configuration: the file's settings plus what the run's own configuration fixes."""
    try:
        values = json.loads(config.deepspeed.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.deepspeed}: not a readable JSON file ({error}); check the key deepspeed") from error
    train = config.train
    fixed = {
        "train_micro_batch_size_per_gpu": 1,  # one packed row
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip,
        "steps_per_print": 10**9,
        "bf16": {"enabled": config.train.bf16},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.lr,
                "betas": [0.9, 0.95],
                "weight_decay": train.weight_decay,
                "torch_adam": True,
            },
        },
    }
    clash = sorted(set(values) & set(fixed))
    if clash:
        raise ConfigError(f"{config.deepspeed}: {clash[0]} is set by the run's own config; take it out of the file")
    stage = values.get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise ConfigError(
            f"{config.deepspeed}: zero_optimization.stage is {stage}; the trainer runs stage 3, set it to 3"
        )
    return values | fixed


def build(config: Config) -> deepspeed.DeepSpeedEngine:
    """Load the model under zero.Init and wrap it, with two learning rates and their schedule."""
    values = settings(config)
    # Alive while the weights load: transformers then splits each tensor over the ranks as it reads it.
    hf = HfDeepSpeedConfig(values)
    backbone = load_backbone(config.model, config.train.bf16)
    del hf
    with deepspeed.zero.Init(config_dict_or_path=values):
        model = LatentVLM(backbone, config.latent, config.objective.recipe)
    latent = [p for module in model.latent_modules().values() for p in module.parameters()]
    # Rank 0's first values reach all ranks; the embedding is only read.
    with deepspeed.zero.GatheredParameters([*latent, backbone.embedding.weight], modifier_rank=0):
        torch.manual_seed(config.run.seed)
        model.reset_latent()
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
