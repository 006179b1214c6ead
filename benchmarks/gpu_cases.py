"""The cases of benchmarks/gpu.py: how a step is taken, and what is measured of it."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.gpu_models import CONFIGS, Setting, accumulate, backbone_of, batch_of, model_of, weights_of
from benchmarks.record import Row, row
from model.attention import Choice
from model.batch import Batch
from model.latent_vlm import LatentVLM
from model.objective import RECIPES
from trainer.throughput import Flops, peak_of

OBJECTIVES = ("sft", "amvl")


@dataclass(frozen=True)
class Case:
    """One way to run both objectives."""

    shape: Literal["7B", "3B"]
    back_end: Choice
    recomputed: Literal["no", "half", "all"]  # layers of the language model
    liger: bool
    zero3: bool = False  # under DeepSpeed ZeRO-3 with AdamW's step; else forward and backward pass alone

    def __str__(self) -> str:
        how = "ZeRO-3 with AdamW" if self.zero3 else "forward and backward"
        liger = "liger" if self.liger else "no liger"
        return f"{self.shape}, {self.back_end}, {self.recomputed} layers recomputed, {liger}, {how}"


@contextmanager
def stepping(case: Case, model: LatentVLM, batch: Batch) -> Iterator[Callable[[], Any]]:
    """The step of a case, and the end of what was built for it."""
    if not case.zero3:

        def plain() -> None:
            model.zero_grad(set_to_none=True)
            accumulate(model, batch)

        yield plain
        model.zero_grad(set_to_none=True)
        return
    import deepspeed

    from trainer import config, engine
    from trainer.zero import settings

    precision = "bf16" if model.backbone.embedding.weight.dtype == torch.bfloat16 else "fp32"
    objective = next(name for name, recipe in RECIPES.items() if recipe == model.recipe)
    changes = {
        "objective.name": objective,
        "train.precision": precision,
        "train.accumulation": 1,
        "deepspeed.file": CONFIGS / "deepspeed/zero3.json",
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    values = settings(config.load(CONFIGS / "qwen2_5_vl_7b.yaml", overrides))
    deepspeed.zero.register_external_parameter(model.target_loss, model.target_loss.weight)
    trained = [p for p in model.parameters() if p.requires_grad]
    built, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=values, dist_init_required=False)
    try:
        yield lambda: engine.take_step(built, [(batch, weights_of(batch))], model.recipe.rounds)
    finally:
        built.destroy()
        # DeepSpeed (0.19) keeps engines alive after that; what they hold has to make room for the next case.
        parameter: Any
        for parameter in model.parameters():
            parameter.ds_tensor.data = parameter.data = parameter.new_empty(0)
        built.optimizer.optimizer.state.clear()
        vars(built.optimizer).clear()


def measure(setting: Setting, case: Case) -> list[Row]:
    """A row for each objective: seconds of a step, its tokens per second, MFU and peak memory."""
    rows: list[Row] = []
    for objective in OBJECTIVES:
        name = f"{objective}, {case}"
        try:
            rows.append(_measure(setting, case, objective, name, rows))
        except torch.OutOfMemoryError:
            rows.append(row(name, None, None, None, "s", note="out of memory"))
        gc.collect()
        if setting.device != "cpu":
            torch.cuda.empty_cache()
    return rows


def _measure(setting: Setting, case: Case, objective: str, name: str, before: list[Row]) -> Row:
    backbone = backbone_of(setting, case.shape, case.back_end, case.liger)
    layers = backbone.config.text_config.num_hidden_layers
    if count := {"no": 0, "half": layers // 2, "all": layers}[case.recomputed]:
        backbone.checkpoint_layers(count)
    model, batch = model_of(backbone, objective), batch_of(setting, backbone, objective)
    flops = Flops(model)(batch)
    with stepping(case, model, batch) as step:
        seconds, gib = _timed(setting, step)
    peak = peak_of(torch.cuda.get_device_name()) if setting.device != "cpu" else None
    more = {
        "tokens_per_s": batch.tokens / seconds,
        "image_tokens_per_s": len(batch.image_rows) / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "peak_gib": gib,
    }
    if objective == "sft":
        return row(name, seconds, flops / peak if peak else None, "the device's peak", "s", **more)
    return row(name, seconds, before[0]["ours"], "sft", "s", **more)


def _timed(setting: Setting, step: Callable[[], Any]) -> tuple[float, float | None]:
    """Median seconds of a step, and the most GiB of device memory that tensors held."""
    for _ in range(2):  # kernels are chosen and compiled, and DeepSpeed learns the order of the layers
        step()
    setting.synchronize()
    if setting.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(setting.repeats):
        start = time.perf_counter()
        step()
        setting.synchronize()
        seconds.append(time.perf_counter() - start)
    gib = torch.cuda.max_memory_allocated() / 2**30 if setting.device != "cpu" else None
    return statistics.median(seconds), gib
