"""A ZeRO-3 checkpoint to a Hugging Face folder plus latent.safetensors and latent.json.

python -m model.export RUN [--step N]
"""

import argparse
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
import yaml
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from data.processor import Processor
from model.build import ModelConfig, ModelError, load_processor, shape_only
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import ObjectiveConfig

BACKBONE = "backbone.model."


def export(checkpoint: Path, config: dict[str, Any], out: Path) -> Path:
    """Write the export of a checkpoint folder (`.../step_N`) of a run with this config. All or nothing.

    ModelError when a tensor is missing, left over, empty or not finite.
    """
    if out.exists():
        return out
    model_config, latent = ModelConfig(**config["model"]), LatentConfig(**config["latent"])
    recipe = ObjectiveConfig(**config["objective"]).recipe
    state: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    model = shape_only(model_config, latent, recipe)
    check(checkpoint, state, model.state_dict())
    return write(model, state, load_processor(model_config), config["objective"], out)


def write(
    model: LatentVLM, state: dict[str, Tensor], processor: Processor, objective: dict[str, Any], out: Path
) -> Path:
    """Write weights `state` of a model (which may itself be a shape only) as an export folder."""
    backbone = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    latent = {k: v.contiguous() for k, v in state.items() if not k.startswith(BACKBONE)}
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.backbone.model.save_pretrained(part, state_dict=backbone)
    processor.tokenizer.save_pretrained(part)
    processor.image_processor.save_pretrained(part)
    save_file(latent, part / "latent.safetensors")
    pixels = processor.image_processor.size
    facts = {
        "latent": model.config.model_dump(),
        "recipe": vars(model.recipe),
        "objective": objective,
        "min_pixels": pixels["shortest_edge"],
        "max_pixels": pixels["longest_edge"],
        "id": uuid.uuid4().hex,  # tells predictions of this export from those of an earlier one at the same place
    }
    (part / "latent.json").write_text(json.dumps(facts, indent=1))
    part.rename(out)
    return out


def check(checkpoint: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ModelError when `state` is not finite tensors of just the names and shapes expected."""
    for name, tensor in expected.items():
        if name not in state:
            raise ModelError(f"{checkpoint}: holds no {name}; it is not a checkpoint of this config")
        if state[name].shape != tensor.shape or not torch.isfinite(state[name]).all():
            raise ModelError(
                f"{checkpoint}: {name} is {tuple(state[name].shape)}, not a finite {tuple(tensor.shape)}; "
                "export an older step"
            )
    if extra := sorted(set(state) - set(expected)):
        raise ModelError(f"{checkpoint}: holds {extra[0]}, which this config has not; it is of another config")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m model.export", description="export a checkpoint of a run")
    parser.add_argument("run", type=Path, help="run folder, e.g. runs/quickstart")
    parser.add_argument("--step", type=int, help="default: the newest complete checkpoint")
    arguments = parser.parse_args()
    steps = {
        int(p.parent.name.removeprefix("step_")): p.parent
        for p in arguments.run.glob("checkpoints/step_*/complete.json")
    }
    step = arguments.step if arguments.step is not None else max(steps, default=-1)
    try:
        if step not in steps:
            raise ModelError(f"{arguments.run}: no complete checkpoint of step {step}; there are {sorted(steps)}")
        config = yaml.safe_load((arguments.run / "config.yaml").read_text())
        print(export(steps[step], config, arguments.run / "export" / f"step_{step}"))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
