"""How the learning rates change over the steps of a run."""

import math

from pydantic import BaseModel, ConfigDict, Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class ScheduleConfig(BaseModel):
    """Linear warm-up, then a half cosine down to a floor, the same shape for both learning rates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="optimiser steps of the run")
    lr: float = Field(1e-5, gt=0, lt=1, description="highest learning rate of the backbone")
    latent_lr: float = Field(1e-4, gt=0, lt=1, description="highest learning rate of slots, heads and injection")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    floor: float = Field(0.0, ge=0, le=1, description="last learning rate, as a share of the highest")

    def factor(self, step: int) -> float:
        """Share of the highest learning rate at a step (from 0)."""
        rise = self.warmup * self.steps
        if step + 1 < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1.0, self.steps - rise))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * max(0.0, done)))

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """The schedule over an optimizer whose groups hold their highest learning rates."""
        return LambdaLR(optimizer, self.factor)
