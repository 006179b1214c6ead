"""Folders that cannot be used are named in one line; the pixel limits of the config hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data import puzzles
from data.sample import Sample, Text
from model import fused
from model.build import ModelConfig, ModelError, load_backbone, load_processor, shape_only
from model.latent import LatentConfig
from model.objective import RECIPES
from tests.refusal import refusal


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))


def refused(action: Callable[[ModelConfig], object], folder: Path) -> str:
    message = refusal(lambda: action(ModelConfig(folder=folder)), ModelError)
    assert str(folder) in message
    return message


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file" in refused(load_processor, tmp_path / "none")


def test_another_family(folder: Path) -> None:
    change(folder / "config.json", model_type="llama")
    assert "the families are qwen2_5_vl" in refused(load_processor, folder)


def test_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "not JSON" in refused(load_processor, folder)


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "no tokenizer" in refused(load_processor, folder)


def test_no_row_for_the_latent_marks(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"vocab_size": 100}
    change(folder / "config.json", text_config=text)
    assert "100 embedding rows" in refused(load_processor, folder)


def test_the_configs_pixel_limits_win_over_the_folders(folder: Path) -> None:
    """The official Qwen folders carry limits of their own, far above what fits."""
    change(folder / "preprocessor_config.json", min_pixels=3136, max_pixels=12845056)
    processor = load_processor(ModelConfig(folder=folder, min_pixels=1024, max_pixels=4096))
    images = puzzles.generate("counting", 0, size=128).images
    sample = Sample(key="k", text=Text(question="?", answer="!", task="t", source="s"), images=images)
    _, height, width = processor.encode(sample).grids[0].tolist()
    assert height * width * 8 * 8 <= 4096


def test_liger_where_it_cannot_run(folder: Path) -> None:
    if fused.missing() is None:
        pytest.skip("liger can run here")
    with pytest.raises(ModelError, match=r"model.liger 'on': .*; set it to auto or off"):
        load_backbone(ModelConfig(folder=folder, liger="on"))


def test_shape_and_weights_agree(tiny_backbone: Path) -> None:
    config = ModelConfig(folder=tiny_backbone, freeze_vision=True)
    shape = shape_only(config, LatentConfig(slots=2, width=4, head_width=8), RECIPES["amvl"])
    backbone = load_backbone(config)
    assert all(p.is_meta for p in shape.parameters())
    loaded = {name: p.shape for name, p in backbone.named_parameters()}
    assert {name: p.shape for name, p in shape.backbone.named_parameters()} == loaded
    assert not any(p.requires_grad for p in backbone.vision.parameters())
    assert any(p.requires_grad for p in backbone.parameters())
    assert {p.dtype for p in load_backbone(config, bf16=True).parameters()} == {torch.bfloat16}
