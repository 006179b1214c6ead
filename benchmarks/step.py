"""Time of one training step: AMVL on packed rounds against SFT and against three separate passes.

    OMP_NUM_THREADS=2 python -m benchmarks.step [--save]

All cases run in turn in one process, several rounds; the figures are medians. One JSON object a line.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2_5_VLConfig

from benchmarks.record import emit
from benchmarks.reference import plain_copy, separate_loss
from data.processor import Encoded
from data.sample import Sample, Text
from model.backbones.backbone import Backbone
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.batch import Markers, collate
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM, Weights
from model.objective import RECIPES

WIDTH, LAYERS, VOCABULARY = 256, 6, 1000
MARKERS = Markers(994, 995)


def backbone(checkpointing: bool) -> Backbone:
    """A small language model in the proportions of the large ones (head size 64, two query heads a key head)."""
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // 64,
        "num_key_value_heads": WIDTH // 128,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": WIDTH}
    ids = {"image_token_id": 990, "video_token_id": 991, "vision_start_token_id": 992, "vision_end_token_id": 993}
    model = Qwen2_5VL.from_config(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    if checkpointing:
        model.checkpoint_layers(LAYERS)
    return model


def samples(count: int, prompt: int, answer: int, patch_width: int) -> list[Encoded]:
    """Samples of equal shape, text only."""
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(
            sample=Sample(key=str(n), text=Text(question="?", answer="!", task="t", source="s")),
            prompt=torch.randint(0, 900, (prompt,), generator=generator),
            answer=torch.randint(0, 900, (answer,), generator=generator),
            pixels=torch.zeros(0, patch_width),
            grids=torch.zeros(0, 3, dtype=torch.long),
        )
        for n in range(count)
    ]


def packed_step(model: LatentVLM, items: list[Encoded], weights: Weights) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        batch = collate(items, model.recipe, model.config, model.backbone, MARKERS)
        for loss in model(batch, weights)[0]:
            loss.backward()

    return step


def separate_step(model: LatentVLM, items: list[Encoded], weights: Weights) -> Callable[[], None]:
    plain = plain_copy(model)

    def step() -> None:
        plain.zero_grad()
        separate_loss(plain, items, MARKERS, 0, weights).backward()

    return step


def measure(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of every step; the steps take turns, so that a slow moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def case(prompt: int, answer: int, slots: int, count: int, checkpointing: bool, repeats: int) -> dict[str, float]:
    """Seconds of `sft`, `amvl` and `separate` at one shape."""
    items: list[Encoded] = []
    models = {}
    for name in ("sft", "amvl"):
        torch.manual_seed(0)
        model = LatentVLM(backbone(checkpointing), LatentConfig(slots=slots, width=64, head_width=256), RECIPES[name])
        model.reset_latent()
        model.backbone.vision.requires_grad_(False)
        models[name] = model.train()
        items = items or samples(count, prompt, answer, model.backbone.patch_width)
    weights = Weights(1.0, 1.0, 1 / (count * answer), 1 / (count * answer))
    steps = {name: packed_step(model, items, weights) for name, model in models.items()}
    steps["separate"] = separate_step(models["amvl"], items, weights)
    return measure(steps, repeats)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/step.jsonl")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 1024], help="prompt lengths, P")
    parser.add_argument("--answer", type=int, default=32, help="answer length, A")
    parser.add_argument("--slots", type=int, default=8, help="latent slots, k")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    for prompt in arguments.prompts:
        for checkpointing in (False, True):
            seconds = case(prompt, arguments.answer, arguments.slots, 2, checkpointing, arguments.repeats)
            name = f"P={prompt} A={arguments.answer} k={arguments.slots}" + (" checkpointing" if checkpointing else "")
            for peer in ("sft", "separate"):
                ours, theirs = seconds["amvl"], seconds[peer]
                rows.append({"case": name, "ours": ours, "peer": theirs, "peer_name": peer, "ratio": ours / theirs})
    emit("step", rows, unit="s", save=arguments.save)


if __name__ == "__main__":
    main()
