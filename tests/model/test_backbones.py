"""Each family, saved and loaded as a real folder: packed logits against transformers' own unpacked forward pass."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.attention import Round
from model.backbones.backbone import Backbone
from model.batch import collate
from model.build import FAMILIES, ModelConfig, ModelError, load_backbone
from model.latent import LatentConfig
from model.layout import PREFIX
from model.objective import RECIPES
from tests.refusal import refusal
from tests.tiny import MARKERS, encoded, mixed_samples, tiny_config

TIED = {"qwen2_5_vl": False, "qwen3_vl": True}  # both ways of the real sizes


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, in several weight files with an index."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param) / "model"
    cls = FAMILIES[request.param]
    cls.model_class(tiny_config(request.param, TIED[request.param])).save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def unpacked_logits(backbone: Backbone, ids: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """[tokens, V] by transformers' own forward pass with its own attention, of one sample alone."""
    reference = type(backbone).model_class.from_pretrained(backbone.model.name_or_path, attn_implementation="eager")
    images = {"pixel_values": pixels, "image_grid_thw": grids} if len(grids) else {}
    types = (ids == reference.config.image_token_id).int()[None]
    with torch.no_grad():
        return reference(input_ids=ids[None], mm_token_type_ids=types, **images).logits[0]


def test_packed_logits_equal_transformers_own(folder: Path):
    """Text only, one and several images of mixed sizes, all in one row."""
    backbone = load_backbone(ModelConfig(folder=folder))
    samples = mixed_samples()
    batch = collate(samples, RECIPES["sft"], LatentConfig(slots=2, width=4), backbone, MARKERS)
    with torch.no_grad():
        embeddings = backbone.embedding(batch.ids)
        seen = backbone.images(batch.pixels, batch.grids)
        embeddings = embeddings.index_copy(0, batch.image_rows, seen.tokens)
        round_ = Round.of(backbone.attention, batch.first)
        logits = backbone.logits(backbone.states(embeddings, round_, batch.image_rows, seen.deep))
    for number, sample in enumerate(samples):
        rows = [r for b in (PREFIX, 0) for r in batch.first.branch_rows(b)[number]]
        ids = torch.cat([sample.prompt, sample.answer[:-1]])
        expected = unpacked_logits(backbone, ids, sample.pixels, sample.grids)
        torch.testing.assert_close(logits[rows], expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_tower_leaves_no_graph(folder: Path):
    frozen, trained = (load_backbone(ModelConfig(folder=folder, freeze_vision=f)) for f in (True, False))
    sample = encoded("a", [(4, 4)], 5, 2)
    assert all(not x.requires_grad for x in (lambda f: (f.tokens, *f.deep))(frozen.images(sample.pixels, sample.grids)))
    seen = trained.images(sample.pixels, sample.grids)
    assert all(x.requires_grad for x in (seen.tokens, *seen.deep))
    assert len(seen.deep) == (2 if frozen.family == "qwen3_vl" else 0)


@pytest.mark.parametrize(("asked", "expected"), [(0, 0), (2, 2), (9, 3), ("all", 3)])
def test_so_many_layers_are_recomputed(folder: Path, asked: int | str, expected: int):
    backbone = load_backbone(ModelConfig(folder=folder, freeze_vision=False, checkpoint_layers=asked))
    assert [bool(layer.gradient_checkpointing) for layer in backbone.language.layers] == [
        i < expected for i in range(3)
    ]
    assert all(bool(block.gradient_checkpointing) == (expected > 0) for block in backbone.vision.blocks)


def refused(folder: Path) -> str:
    message = refusal(lambda: load_backbone(ModelConfig(folder=folder)), ModelError)
    assert str(folder) in message
    return message


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """Change the tensors of the first weight file (and the index with it). Returns the name of one that was in it."""
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    others = {n: f for n, f in content["weight_map"].items() if f != file.name}
    index.write_text(json.dumps(content | {"weight_map": others | dict.fromkeys(tensors, file.name)}))
    return name


def test_a_weight_that_is_missing(broken: Path):
    name = rewrite(broken, lambda tensors: tensors.pop(sorted(tensors)[0]))
    assert f"missing keys: {name}" in refused(broken)


def test_a_weight_that_nothing_takes(broken: Path):
    rewrite(broken, lambda tensors: tensors.update({"model.visual.extra.weight": torch.zeros(3)}))
    assert "unexpected keys: model.visual.extra.weight" in refused(broken)


def test_a_weight_of_size_zero(broken: Path):
    name = rewrite(broken, lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(0)}))
    assert f"{name} is of size 0" in refused(broken)


def test_a_weight_of_another_shape(broken: Path):
    rewrite(broken, lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(7, 7)}))
    assert "disagree" in refused(broken)


def test_a_weight_file_that_is_missing(broken: Path):
    file = sorted(broken.glob("*.safetensors"))[1]
    file.unlink()
    assert f"{file}: no such file" in refused(broken)


def test_a_weight_file_cut_short(broken: Path):
    file = sorted(broken.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole safetensors file" in refused(broken)


def test_the_index_names_a_weight_its_file_has_not(broken: Path):
    index = broken / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.more"] = sorted(broken.glob("*.safetensors"))[0].name
    index.write_text(json.dumps(content))
    assert "holds no model.more, which model.safetensors.index.json names" in refused(broken)


def test_weights_in_the_layout_of_the_published_qwen2_5_vl(tmp_path: Path):
    """Published Qwen2.5-VL weights carry older names (`visual.*`, `model.layers.*`) than transformers 5 saves."""
    torch.manual_seed(0)
    model = FAMILIES["qwen2_5_vl"].model_class(tiny_config("qwen2_5_vl"))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    old = [n.replace("model.visual.", "visual.").replace("model.language_model.", "model.") for n in names]
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {o: tensors[n] for o, n in zip(old, names, strict=True)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded = load_backbone(ModelConfig(folder=tmp_path)).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
