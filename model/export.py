"""A ZeRO-3 checkpoint to a Hugging Face folder plus latent.safetensors and latent.json.

python -m model.export RUN [--step N] [--out FOLDER] [--dtype fp32|bf16] [--shard-size 5GB]
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.serialization import config as serialization

from data.processor import Processor
from data.sample import UserError
from model.build import ModelConfig, ModelError, load_processor, shape_only
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import ObjectiveConfig

BACKBONE = "backbone.model."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARD_SIZE = "5GB"
OTHER_FILES = 64 * 2**20  # bytes, at most, of tokenizer, configurations and the like


class Pending(torch.Tensor):
    """A tensor on the meta device; `contiguous` gets its values, in its dtype, and refuses any that is not finite.

    transformers' save_pretrained calls `contiguous` on the tensors of a file just before it writes that file, so
    the values of one file are in memory at a time.
    """

    label: str
    origin: Any  # a tensor, or DeepSpeed's pseudo tensor: both have `contiguous`

    @classmethod
    def of(cls, label: str, like: Tensor, origin: Any) -> "Pending":
        """Values from `origin`, with the shape and the dtype of `like`."""
        pending = torch.empty_like(like, device="meta").as_subclass(cls)
        pending.label, pending.origin = label, origin
        return pending

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """The values; ModelError when one is not finite."""
        values: Tensor = self.origin.contiguous().to(self.dtype)
        if not torch.stack(values.aminmax()).isfinite().all():  # the extremes alone: no copy of its size
            raise ModelError(f"{self.label} is not finite; export an older step with --step")
        return values


def export(
    checkpoint: Path,
    config: dict[str, Any],
    out: Path,
    dtype: torch.dtype | None = None,
    shard_size: str = SHARD_SIZE,
) -> Path:
    """Write the export of a checkpoint folder (`.../step_N`) of a run with this config. All or nothing.

    The backbone is written in `dtype`, by default that of the run, in files of at most `shard_size`; the latent parts
    in fp32. An export that is there already is left as it is. ModelError when the checkpoint is torn or of another
    config, a tensor is missing, left over, empty or not finite, or `out` cannot be written.
    """
    if out.exists():
        return out
    try:
        model_config, latent = ModelConfig(**config["model"]), LatentConfig(**config["latent"])
        recipe = ObjectiveConfig(**config["objective"]).recipe
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{checkpoint}: the run's config cannot be used ({error}); restore its config.yaml") from error
    state, own = read(checkpoint)
    model = shape_only(model_config, latent, recipe)
    check(checkpoint, state, model.state_dict())
    model.backbone.to(dtype or own)
    return write(model, state, load_processor(model_config), config["objective"], out, shard_size)


def read(checkpoint: Path) -> tuple[Mapping[str, Any], torch.dtype]:
    """The checkpoint's tensors, and the dtype that its run computed in.

    Trained ones are DeepSpeed's pseudo tensors, whose values stay on the disk until they are gathered. ModelError when
    a file is missing or torn.
    """
    of_model, of_optimizer = (list(checkpoint.glob(f"*_{kind}_states.pt")) for kind in ("model", "optim"))
    if not of_model or len(of_model) != len(of_optimizer):
        raise ModelError(
            f"{checkpoint}: holds {len(of_model)} files of model states and {len(of_optimizer)} of optimizer states, "
            "not one of each per rank; export an older step with --step"
        )
    for path in sorted(of_model + of_optimizer):
        if not zipfile.is_zipfile(path):  # torch writes the table of contents last
            raise ModelError(f"{path}: cut short or not readable; export an older step with --step")
    try:
        with contextlib.redirect_stdout(sys.stderr), serialization.patch("load.mmap", True):  # type: ignore[attr-defined]
            state: Mapping[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint.parent), tag=checkpoint.name, lazy_mode=True
            )
    except (EOFError, KeyError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{checkpoint}: cannot be read ({error}); export an older step with --step") from error
    # The weights themselves are kept in fp32 whatever the run computed in; DeepSpeed names the files by that.
    return state, torch.bfloat16 if of_optimizer[0].name.startswith("bf16_") else torch.float32


def check(checkpoint: Path, state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """ModelError when `state` has not just the names and shapes expected."""
    for name, tensor in expected.items():
        if name not in state:
            raise ModelError(f"{checkpoint}: holds no {name}; it is not a checkpoint of this config")
        if state[name].shape != tensor.shape:
            raise ModelError(
                f"{checkpoint}: {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}; "
                "it is not a checkpoint of this config"
            )
    if extra := sorted(set(state) - set(expected)):
        raise ModelError(f"{checkpoint}: holds {extra[0]}, which this config has not; it is of another config")


def write(
    model: LatentVLM,
    state: Mapping[str, Any],
    processor: Processor,
    objective: dict[str, Any],
    out: Path,
    shard_size: str = SHARD_SIZE,
) -> Path:
    """Write weights `state` of a model (which may itself be a shape only) as an export folder, in its dtypes.

    ModelError when a value is not finite or the folder cannot be written; nothing is left of it then.
    """
    tensors = {name: Pending.of(f"{out}: {name}", like, state[name]) for name, like in model.state_dict().items()}
    backbone = {k.removeprefix(BACKBONE): v for k, v in tensors.items() if k.startswith(BACKBONE)}
    pixels = processor.image_processor.size
    facts = {
        "latent": model.config.model_dump(),
        "recipe": vars(model.recipe),
        "objective": objective,
        "min_pixels": pixels["shortest_edge"],
        "max_pixels": pixels["longest_edge"],
        "id": uuid.uuid4().hex,  # tells predictions of this export from those of an earlier one at the same place
    }
    with whole(out, sum(p.nbytes for p in model.parameters())) as part:
        processor.tokenizer.save_pretrained(part)
        processor.image_processor.save_pretrained(part)
        model.backbone.model.save_pretrained(part, state_dict=backbone, max_shard_size=shard_size)
        latent = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.startswith(BACKBONE)}
        save_file(latent, part / "latent.safetensors")
        (part / "latent.json").write_text(json.dumps(facts, indent=1))
    return out


@contextlib.contextmanager
def whole(out: Path, size: int) -> Iterator[Path]:
    """A folder to write some `size` bytes of tensors to, which becomes `out` when all is written and on the disk.

    ModelError when it cannot be written. After any error nothing is left of it.
    """
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        needed, free = size + OTHER_FILES, shutil.disk_usage(out.parent).free
        if needed > free:
            raise ModelError(f"{out}: needs {needed:,} bytes, {free:,} are free; make room, or name another --out")
        part.mkdir()
        yield part
        for path in (*part.iterdir(), part):
            sync(path)
        part.rename(out)
        sync(out.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise ModelError(f"{out}: cannot be written ({error}); make room, or name another --out") from error
        raise


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(run: Path, step: int | None) -> Path:
    """The checkpoint folder of a step, by default the newest complete one; ModelError when there is none."""
    if not run.is_dir():
        raise ModelError(f"{run}: no such folder; name the folder of a run, e.g. runs/quickstart")
    complete = [p.parent for p in run.glob("checkpoints/*/complete.json") if re.fullmatch(r"step_\d+", p.parent.name)]
    steps = {int(p.name.removeprefix("step_")): p for p in complete}
    wanted = max(steps, default=None) if step is None else step
    if wanted not in steps:
        there = f"there are {', '.join(map(str, sorted(steps)))}" if steps else "there is none of any step"
        raise ModelError(f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; {there}")
    return steps[wanted]


def config_of(run: Path, checkpoint: Path) -> dict[str, Any]:
    """The config that a checkpoint was written with; ModelError when it cannot be read."""
    path = checkpoint / "config.yaml"
    if not path.is_file():
        path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); name the folder of a run, or restore the file") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not the config of a run; restore it")
    return config


def file_size(text: str) -> str:
    """A size as Hugging Face writes it."""
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number and a unit, e.g. 500MB or {SHARD_SIZE}")
    return text


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m model.export", description="export a checkpoint of a run")
    parser.add_argument("run", type=Path, help="run folder, e.g. runs/quickstart")
    parser.add_argument("--step", type=int, help="default: the newest complete checkpoint")
    parser.add_argument("--out", type=Path, help="a new folder; default: RUN/export/step_N")
    parser.add_argument("--dtype", choices=DTYPES, help="of the backbone; default: that of the run")
    parser.add_argument("--shard-size", type=file_size, help=f"largest weight file, e.g. 500MB; default: {SHARD_SIZE}")
    arguments = parser.parse_args()
    try:
        checkpoint = find(arguments.run, arguments.step)
        config = config_of(arguments.run, checkpoint)
        out = arguments.out or arguments.run / "export" / checkpoint.name
        if out.exists() and (arguments.out or arguments.dtype or arguments.shard_size):
            raise ModelError(f"{out}: there already, perhaps of another step or dtype; name another --out or delete it")
        dtype = DTYPES[arguments.dtype] if arguments.dtype else None
        print(export(checkpoint, config, out, dtype, arguments.shard_size or SHARD_SIZE))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
