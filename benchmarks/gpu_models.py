"""A random model of a real shape, and one packed batch for it, where benchmarks/gpu.py wants them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.processor import Encoded
from data.sample import Sample, Text
from model import fused
from model.attention import Choice, choose
from model.backbones import tiny
from model.backbones.backbone import Backbone
from model.batch import Batch, Markers, collate
from model.build import read_architecture
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM, Weights
from model.objective import RECIPES

CONFIGS = Path(__file__).parents[1] / "configs"
LATENT = LatentConfig()
MARKERS = Markers(8, 9)
FAMILY = read_architecture(CONFIGS / "architectures/Qwen2.5-VL-7B-Instruct.json")[0]


@dataclass(frozen=True)
class Setting:
    """Where cases run and how large they are: one batch of `samples` with one image each, `tokens` in all with sft."""

    device: str
    dtype: torch.dtype
    samples: int
    tokens: int
    answer: int
    grid: tuple[int, int]  # rows and columns of patches of an image; rows vary a little
    repeats: int

    def config(self, shape: str, layers: int | None = None) -> Any:
        """The configuration of "7B" or "3B", whole or cut to so many layers."""
        if self.device == "cpu":
            config: Any = tiny.config(1024, layers=layers or 4)
        else:
            config = read_architecture(CONFIGS / f"architectures/Qwen2.5-VL-{shape}-Instruct.json")[1]
            if layers:
                config.text_config.num_hidden_layers = config.vision_config.depth = layers
                config.vision_config.fullatt_block_indexes = [layers - 1]
        return config

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


GPU = Setting("cuda", torch.bfloat16, samples=14, tokens=16384, answer=64, grid=(48, 64), repeats=3)
TINY = Setting("cpu", torch.float32, samples=3, tokens=300, answer=8, grid=(8, 8), repeats=1)


def backbone_of(
    setting: Setting, shape: str, back_end: Choice, liger: bool = False, layers: int | None = None, fp32: bool = False
) -> Backbone:
    """Random weights, made where and as they are used; the vision tower is frozen."""
    config = setting.config(shape, layers)
    config.dtype = torch.float32 if fp32 else setting.dtype
    language, vision = FAMILY.head_sizes(config)
    bf16 = config.dtype == torch.bfloat16
    chosen = choose(back_end, {"language model": language}, bf16), choose(back_end, {"vision tower": vision}, bf16)
    torch.manual_seed(0)
    with torch.device(setting.device):
        backbone = FAMILY.from_config(config, *chosen)
    if liger:
        fused.fuse(backbone.language)
    backbone.vision.requires_grad_(False)
    return backbone


def model_of(backbone: Backbone, objective: str) -> LatentVLM:
    """The backbone with latent parts of its type, where it is; the heads past their zero start."""
    weight = backbone.embedding.weight
    model = LatentVLM(backbone, LATENT, RECIPES[objective])
    model.scale = model.scale.to(weight.device)
    torch.manual_seed(1)
    model.reset_latent()
    for name, module in model.latent_modules().items():
        if name in ("prior", "posterior"):
            torch.nn.init.normal_(module.outer.weight, std=0.02)  # type: ignore[union-attr, arg-type]
        module.to(weight.device, weight.dtype)
    return model.train()


def items_of(setting: Setting, backbone: Backbone, count: int) -> list[Encoded]:
    """Samples of one image each, of several sizes, and as many words as fill the batch of a setting."""
    generator, (rows, columns) = torch.Generator().manual_seed(0), setting.grid
    image, merge = backbone.config.image_token_id, backbone.config.vision_config.spatial_merge_size
    start, end = backbone.config.vision_start_token_id, backbone.config.vision_end_token_id
    words = setting.tokens // setting.samples - rows * columns // merge**2 - setting.answer - 1
    items = []
    for n in range(count):
        height = rows + 2 * merge * (n % 3 - 1)
        text, answer = (  # ids below 1,000 are words, those below 10 a small tokenizer's marks
            torch.randint(10, 1000, (length,), generator=generator) for length in (words, setting.answer)
        )
        place = torch.tensor([start, *[image] * (height * columns // merge**2), end])
        items.append(
            Encoded(
                sample=Sample(key=str(n), text=Text(question="?", answer="!", task="t", source="s")),
                prompt=torch.cat([place, text]),
                answer=answer,
                pixels=torch.randn(height * columns, backbone.patch_width, generator=generator),
                grids=torch.tensor([[1, height, columns]]),
            )
        )
    return items


def batch_of(setting: Setting, backbone: Backbone, objective: str, count: int | None = None) -> Batch:
    """So many of these samples, by default all of the setting, on its device."""
    items = items_of(setting, backbone, count or setting.samples)
    return collate(items, RECIPES[objective], LATENT, backbone, MARKERS).to(setting.device)


def weights_of(batch: Batch) -> Weights:
    return Weights(1.0, 1.0, 1 / len(batch.targets), 1 / len(batch.targets))


def accumulate(model: LatentVLM, batch: Batch) -> float:
    """One forward and backward pass. Returns the loss."""
    total = 0.0
    for loss in model(batch, weights_of(batch))[0]:
        loss.backward()
        total += loss.detach()
    return float(total)
