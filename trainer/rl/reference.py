"""The model at the start, frozen, its weights spread over the ranks by ZeRO-3 and gathered layer by layer."""

from collections.abc import Callable
from typing import TypeVar

import deepspeed
from transformers.integrations import HfDeepSpeedConfig

from model.build import load_backbone, load_latent
from model.policy import Policy
from trainer.config import Config

T = TypeVar("T")


class Reference:
    """Gives work the reference. Every rank has to, at the same time."""

    def __init__(self, config: Config) -> None:
        values = {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": config.train.bf16},
            "zero_optimization": {"stage": 3},
        }
        hf = HfDeepSpeedConfig(values)  # alive while the weights load: each rank keeps its share of each as it is read
        backbone = load_backbone(config.model, config.train.bf16)
        del hf
        model = Policy(backbone, config.latent, config.objective.recipe)
        load_latent(model, config.model.folder)
        for module in model.latent_modules().values():
            module.to(backbone.embedding.weight.device, backbone.embedding.weight.dtype)
        model.scale = model.scale.to(backbone.embedding.weight.device)
        model.requires_grad_(False)
        for part in (model.target_loss, model.target_entropy):
            deepspeed.zero.register_external_parameter(part, part.weight)
        self.engine, *_ = deepspeed.initialize(model=model.eval(), config=values, dist_init_required=False)

    def __call__(self, work: Callable[[Policy], T]) -> T:
        found: T = self.engine(work)
        return found
