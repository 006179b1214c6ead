"""What DeepSpeed is told: its own settings file, and what the run's configuration fixes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from data.sample import UserError

if TYPE_CHECKING:
    from trainer.config import Config


class ZeroError(UserError):
    """DeepSpeed settings that cannot be used."""


class DeepSpeedConfig(BaseModel):
    """How ZeRO-3 (arXiv 1910.02054) spreads the model over ranks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offload_optimizer: bool = Field(False, description="keep the optimizer's state, and take its step, on the CPU")
    hpz_partition_size: int = Field(
        1, ge=1, description="ranks (a node's GPUs) that share a second copy of the weights (ZeRO++, arXiv 2306.10209)"
    )
    file: Path = Field(Path("configs/deepspeed/zero3.json"), description="DeepSpeed's own settings, JSON")


def settings(config: "Config") -> dict[str, Any]:
    """The whole of DeepSpeed's configuration; ZeroError when the file cannot be used."""
    path, train = config.deepspeed.file, config.train
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ZeroError(f"{path}: not a readable JSON file ({error}); check the key deepspeed.file") from error
    stage = values.get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise ZeroError(f"{path}: zero_optimization.stage is {stage}; the trainer runs stage 3, set it to 3")
    zero: dict[str, Any] = {"zero_hpz_partition_size": config.deepspeed.hpz_partition_size}
    adam: dict[str, Any] = {"lr": train.lr, "betas": [0.9, 0.95], "weight_decay": train.weight_decay}
    if config.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    else:
        # PyTorch's own AdamW needs no compiled operator; on the CPU DeepSpeed's, which it compiles, is much faster.
        adam |= {"torch_adam": True, "fused": torch.cuda.is_available()}
    fixed = {
        "train_micro_batch_size_per_gpu": 1,  # one packed row
        # The backward pass of each round is one of DeepSpeed's micro-steps (model/cut.py says why).
        "gradient_accumulation_steps": train.accumulation * config.objective.recipe.rounds,
        "gradient_clipping": train.clip,
        "steps_per_print": 10**9,
        "bf16": {"enabled": train.bf16},
        "optimizer": {"type": "AdamW", "params": adam},
    }
    clash = sorted((set(values) & set(fixed)) | (set(values["zero_optimization"]) & {*zero, "offload_optimizer"}))
    if clash:
        raise ZeroError(f"{path}: {clash[0]} is set by the run's own config; take it out of the file")
    return values | fixed | {"zero_optimization": values["zero_optimization"] | zero}
