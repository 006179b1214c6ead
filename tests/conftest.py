"""Shared fixtures: a small shard set, a small backbone fitted to it, its processor, and exports of it.

Also the options --gpu and --long: with one, the tests marked so run and no others; without, all others.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

# The tests compare CPU with CPU, also on a machine with a GPU; those marked gpu run alone, with --gpu. This must be
# known before torch and DeepSpeed are imported, so before pytest can tell.
os.environ |= {"OMP_NUM_THREADS": "1"}
if "--gpu" not in sys.argv:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

import torch
from transformers import AutoTokenizer

from data import puzzles, shards
from data.processor import IMAGE_PAD, Processor
from data.sample import Sample, Text
from data.shards import WriteOptions
from model.backbones import tiny
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.backbones.qwen3_vl import Qwen3VL
from model.export import write
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import RECIPES
from tests.tiny import tiny_config

torch.set_num_threads(1)

KINDS = ("counting", "correspondence", "jigsaw", "relative_position", "pattern", "maze")
APART = {
    "gpu": "needs a CUDA GPU: run `make test-gpu` on one",
    "long": "takes many minutes: `make test-long` runs it",
}
PIXELS = {"min_pixels": 64 * 64, "max_pixels": 256 * 256}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests that need a CUDA GPU, and no others")
    parser.addoption("--long", action="store_true", help="run the tests that take many minutes, and no others")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--gpu") and not torch.cuda.is_available():
        raise pytest.UsageError("--gpu: torch finds no CUDA GPU here; leave --gpu out, or run it where there is one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, reason in APART.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if config.getoption(f"--{name}"):
            config.hook.pytest_deselected(items=[item for item in items if item not in marked])
            items[:] = marked
            return
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def sums() -> Iterator[Sample]:
    """Text-only samples without end, every other one with choices."""
    for number in itertools.count():
        left, right = number % 5 + 2, number % 3 + 1
        options = (str(left + right - 1), str(left + right), str(left + right + 1))
        text = Text(
            question=f"How much is {left} and {right}?",
            answer="B" if number % 2 else options[1],
            choices=options if number % 2 else None,
            task="sums",
            source="tests",
        )
        yield Sample(key=f"sums-{number:03d}", text=text)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """104 samples in 8 shards: puzzles with one, two and three pictures of two sizes, and 8 without any."""
    drawn, text_only = puzzles.stream(KINDS, "train", 96, sizes=(64, 96)), sums()
    mixed = (next(text_only if number % 13 == 6 else drawn) for number in range(104))
    folder = tmp_path_factory.mktemp("tiny") / "shards"
    assert len(shards.write(mixed, folder, WriteOptions(per_shard=13))) == 8
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small Qwen2.5-VL with random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    tiny.build(list(shards.read_set(tiny_shards)), folder, vocabulary=400)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3_vl(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a small Qwen3-VL, its input and output embeddings tied."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path_factory.mktemp("tiny") / "qwen3_vl"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = tiny_config("qwen3_vl", tied=True)
    config.text_config.vocab_size = len(tokenizer) + 2
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    torch.manual_seed(0)
    Qwen3VL.model_class(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(tiny_backbone: Path) -> Processor:
    """Of the small backbone; every picture of the small shards keeps its size."""
    return Processor(str(tiny_backbone), **PIXELS)


@pytest.fixture(scope="session")
def export_of(
    tiny_backbone: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from an objective's name to the export of a small untrained model.

    Its weights are large, so that what it replies depends on question, pictures and z, and it stops by itself
    now and then.
    """

    @lru_cache
    def export(objective: str) -> Path:
        torch.manual_seed(1)
        backbone = Qwen2_5VL.from_folder(tiny_backbone)
        model = LatentVLM(backbone, LatentConfig(slots=3, width=8, head_width=16), RECIPES[objective])
        with torch.no_grad():
            for weight in backbone.parameters():
                weight.mul_(4 if weight.dim() > 1 else 1)
            backbone.model.lm_head.weight[processor.end].mul_(4)
        model.reset_latent()
        if objective not in ("sft", "pause"):
            torch.nn.init.normal_(model.prior.outer.weight)  # or z would be 0
        folder = tmp_path_factory.mktemp(objective) / "export"
        return write(model, model.state_dict(), processor, {"name": objective}, folder)

    return export
