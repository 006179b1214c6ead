"""Small models and samples that several tests share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from data.processor import Encoded
from data.sample import Sample, Text
from model.batch import Markers
from model.build import FAMILIES
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import RECIPES

MARKERS = Markers(494, 495)
IMAGE, VISION_START, VISION_END = 490, 492, 493


def tiny_config(family: str = "qwen2_5_vl", tied: bool = False) -> Any:
    """Grouped heads, window attention in the first vision layer, DeepStack, M-RoPE: every part of the real shapes."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "vocab_size": 500,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 8,
    }
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 32}
    else:
        text["head_dim"] = 32  # not hidden size over heads, as in the real 4B and 32B
        text["rope_parameters"] |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": 491,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    cls = FAMILIES[family].config_class
    return cls(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)


Model = TypeVar("Model", bound=LatentVLM)


def tiny_model(
    objective: str = "amvl",
    checkpoint_layers: int = 0,
    settled: bool = True,
    family: str = "qwen2_5_vl",
    kind: type[Model] = LatentVLM,  # type: ignore[assignment]
    bottleneck: bool = False,
) -> Model:
    """A random model; `settled` heads are past their zero start, so that every gradient has a value."""
    torch.manual_seed(0)
    backbone = FAMILIES[family].from_config(tiny_config(family))
    if checkpoint_layers:
        backbone.checkpoint_layers(checkpoint_layers)
    recipe = replace(RECIPES[objective], bottleneck=bottleneck)
    model = kind(backbone, LatentConfig(slots=4, width=16, head_width=32), recipe)
    model.reset_latent()
    if settled:
        for name in ("prior", "posterior"):
            if hasattr(model, name):
                torch.nn.init.normal_(getattr(model, name).outer.weight, std=0.2)
    return model.train()


def encoded(key: str, images: Sequence[tuple[int, int]], words: int, answer: int, seed: int = 0) -> Encoded:
    """A sample with images of these sizes in patches, a prompt of so many words more, an answer of so many tokens."""
    generator = torch.Generator().manual_seed(seed + 1000 * words + answer)
    parts = [torch.randint(0, 480, (words,), generator=generator)]
    for height, width in images:
        place = [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
        parts += [torch.tensor(place), torch.randint(0, 480, (2,), generator=generator)]
    return Encoded(
        sample=Sample(key=key, text=Text(question="?", answer="!", task="t", source="s")),
        prompt=torch.cat(parts),
        answer=torch.randint(0, 480, (answer,), generator=generator),
        pixels=torch.randn(sum(h * w for h, w in images), 3 * 2 * 8 * 8, generator=generator),
        grids=torch.tensor([[1, h, w] for h, w in images], dtype=torch.long).reshape(-1, 3),
        image_tokens=sum(h * w // 4 for h, w in images),
    )


def mixed_samples() -> list[Encoded]:
    """1, 2 and 3 images of several sizes, no image, and prompts and answers of different lengths."""
    return [
        encoded("one", [(8, 8)], 5, 2),
        encoded("two", [(4, 6), (8, 4)], 20, 3),
        encoded("none", [], 7, 5),
        encoded("three", [(4, 4), (4, 8), (6, 4)], 11, 2),
        encoded("long", [], 60, 9),
    ]
