"""What a path names: runs, checkpoints, exports and plain models, told apart by their weights alone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.processor import Processor
from eval import models as module
from eval.models import Model, find_model
from eval.settings import Settings
from model.attention import AttentionError
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.build import ModelError
from model.thinking import ThoughtError
from tests.conftest import PIXELS
from tests.refusal import refusal

ROOT = Path(__file__).parents[2]
ExportOf = Callable[[str], Path]


def run_with(folder: Path, exports: dict[str, Path]) -> Path:
    """A run with exports by the names of their folders."""
    (folder / "export").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    for name, export in exports.items():
        shutil.copytree(export, folder / "export" / name)
    return folder


def test_an_export(export_of: ExportOf) -> None:
    export = export_of("amvl")
    found = find_model(export)
    assert (found.folder, found.run, found.step) == (export, None, None)
    assert found.slots == json.loads((export / "latent.json").read_text())["latent"]["slots"] == 3
    assert found.latent and vars(found.recipe) == json.loads((export / "latent.json").read_text())["recipe"]


def test_a_run_with_exports(export_of: ExportOf, tmp_path: Path) -> None:
    """The newest by number, not by name; what a kill left half written or somebody named otherwise is passed over."""
    exports = {"step_900": "sft", "step_1000": "amvl", "step_2000.part": "pause", "step_3000_bf16": "pause"}
    run = run_with(tmp_path / "run", {name: export_of(objective) for name, objective in exports.items()})
    newest = find_model(run)
    assert (newest.folder, newest.run, newest.step) == (run / "export/step_1000", run, 1000)
    assert newest.id == find_model(export_of("amvl")).id
    older = find_model(run, 900)
    assert (older.folder, older.run, older.step) == (run / "export/step_900", run, 900)
    assert find_model(run / "export/step_900") == older, "an export in a run knows its run"
    assert find_model(run / "export/step_3000_bf16").run is None
    assert refusal(lambda: find_model(run, 950), ModelError) == f"{run}: nothing of step 950; there are 900, 1000"


def test_a_copy_is_the_same_model_in_another_place(export_of: ExportOf, tiny_backbone: Path, tmp_path: Path) -> None:
    for number, folder in enumerate((export_of("amvl"), tiny_backbone)):
        copy = Path(shutil.copytree(folder, tmp_path / f"copy{number}"))
        assert find_model(copy).id == find_model(folder).id


def test_other_weights_are_another_model(tiny_backbone: Path, tmp_path: Path) -> None:
    """One value of any tensor, or one of the shape."""
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))
    seen = {find_model(tiny_backbone).id}
    weights = load_file(copy / "model.safetensors")
    for name in (min(weights), max(weights), sorted(weights)[len(weights) // 2]):
        changed = weights[name].clone()
        changed.view(-1)[-1] += 1
        save_file(weights | {name: changed}, copy / "model.safetensors", {"format": "pt"})
        seen.add(find_model(copy).id)
    assert len(seen) == 4
    shutil.copy(tiny_backbone / "model.safetensors", copy / "model.safetensors")
    assert find_model(copy).id in seen
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert find_model(copy).id not in seen


def test_large_weight_files_are_told_apart_by_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece counts, the first and the last byte among them, and so does the size; other files do not."""
    monkeypatch.setattr(module, "PIECE", 64)
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    content = bytearray(module.PIECES * 256)
    path.write_bytes(content)
    (tmp_path / "README.md").write_text("a")
    seen = {module._weights(tmp_path)}
    (tmp_path / "README.md").write_text("b")
    assert module._weights(tmp_path) in seen
    places = [(len(content) - 64) * number // (module.PIECES - 1) for number in range(module.PIECES)]
    assert places[0] == 0 and places[-1] + 64 == len(content)
    for at in [0, len(content) - 1, *places]:
        content[at] ^= 1
        path.write_bytes(content)
        seen.add(module._weights(tmp_path))
        content[at] ^= 1
    assert len(seen) == 1 + len({0, len(content) - 1, *places})
    path.write_bytes(content + b"\0")
    assert module._weights(tmp_path) not in seen
    path.rename(tmp_path / "other.safetensors")
    assert module._weights(tmp_path) not in seen


def test_exports_made_twice_are_two_models(export_of: ExportOf) -> None:
    assert len({find_model(export_of(objective)).id for objective in ("amvl", "sft", "pause")}) == 3


def test_a_plain_model(tiny_backbone: Path) -> None:
    found = find_model(tiny_backbone)
    assert (found.folder, found.run, found.step, found.latent) == (tiny_backbone, None, None, False)
    assert found.recipe.latents == "none"
    model = found.load(found.effective(Settings()))
    weights, own = Qwen2_5VL.from_folder(tiny_backbone).state_dict(), model.backbone.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in weights.items())
    assert not model.training


def test_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        text = refusal(lambda path=path: find_model(path), ModelError)
        assert text == (
            f"{path}: neither a run, a checkpoint, an export nor a Hugging Face model; name one, e.g. runs/quickstart"
        )
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    text = refusal(lambda: find_model(tmp_path), ModelError)
    assert text.startswith(f"{tmp_path}/config.json: model_type 'llava' is not supported; the families are ")


def test_a_step_of_what_is_no_run(export_of: ExportOf, tiny_backbone: Path) -> None:
    for path in (export_of("amvl"), tiny_backbone):
        text = refusal(lambda path=path: find_model(path, 3), ModelError)
        assert text == f"{path}: not a run, so it has no step 3; leave out --step, or name the run"


def test_weights_that_are_not_whole(export_of: ExportOf, tiny_backbone: Path, tmp_path: Path) -> None:
    for number, folder in enumerate((export_of("amvl"), tiny_backbone)):
        copy = Path(shutil.copytree(folder, tmp_path / f"copy{number}"))
        path = copy / "model.safetensors"
        os.truncate(path, path.stat().st_size - 1)
        text = refusal(lambda copy=copy: find_model(copy), ModelError)
        assert text.startswith(f"{path}: not a whole safetensors file (") and text.endswith("; fetch it again")
        path.unlink()
        text = refusal(lambda copy=copy: find_model(copy), ModelError)
        assert text == f"{path}: no such file; fetch the weights of the folder again"


def test_facts_of_an_export_that_cannot_be_read(export_of: ExportOf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export_of("amvl"), tmp_path / "copy"))
    (copy / "latent.json").write_text("{")
    text = refusal(lambda: find_model(copy), ModelError)
    assert text.startswith(f"{copy}/latent.json: cannot be read (") and text.endswith("fetch the folder again")


def test_what_is_left_to_the_model(export_of: ExportOf, tiny_backbone: Path) -> None:
    given = Settings(seed=5, tokens=77, prompt="p")
    found = find_model(export_of("amvl")).effective(given)
    filled = dict(latents="mean", dtype="fp32", attention="sdpa", vision_attention="sdpa", **PIXELS)
    assert found == given.model_copy(update=filled)
    plain = find_model(tiny_backbone).effective(given)
    size = json.loads((tiny_backbone / "preprocessor_config.json").read_text())["size"]
    assert (plain.min_pixels, plain.max_pixels) == (size["shortest_edge"], size["longest_edge"])
    assert plain.latents == "off", "there are none"
    assert find_model(export_of("sft")).effective(given).latents == "off"
    assert find_model(export_of("pause")).effective(given).latents == "mean"
    assert find_model(export_of("amvl")).effective(Settings(latents="vote:3", dtype="bf16")).dtype == "bf16"


def test_pixels_by_the_old_names(tiny_backbone: Path, tmp_path: Path) -> None:
    """As the published folders of Qwen2.5-VL have them."""
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))
    path = copy / "preprocessor_config.json"
    values = json.loads(path.read_text())
    del values["size"]
    path.write_text(json.dumps(values | {"min_pixels": 3136, "max_pixels": 12845056}))
    found = find_model(copy)
    settings = found.effective(Settings())
    assert (settings.min_pixels, settings.max_pixels) == (3136, 12845056)
    size = found.processor(settings).image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (3136, 12845056)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, (4096, 65536)),
        ({"min_pixels": 100}, (100, 65536)),
        ({"max_pixels": 10**6}, (4096, 10**6)),
        ({"min_pixels": 5000, "max_pixels": 6000}, (5000, 6000)),
        ({"min_pixels": 70_000}, (70_000, 70_000)),
        ({"max_pixels": 1000}, (1000, 1000)),
    ],
)
def test_pixels(export_of: ExportOf, given: dict, wanted: tuple[int, int]) -> None:
    """One limit that is set moves the model's other one where it has to; the processor keeps to both."""
    found = find_model(export_of("amvl"))
    settings = found.effective(Settings(**given))
    assert (settings.min_pixels, settings.max_pixels) == wanted
    size = found.processor(settings).image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == wanted


@pytest.mark.parametrize("latents", ["sample:1", "vote:2"])
@pytest.mark.parametrize("objective", ["sft", "pause", "deterministic", None])
def test_draws_from_a_model_without_a_spread(export_of, tiny_backbone, objective, latents) -> None:
    model = find_model(export_of(objective) if objective else tiny_backbone)
    text = refusal(lambda: model.effective(Settings(latents=latents)), ThoughtError)
    assert text.endswith("this model has no trained spread to draw from; use mean or off")


def test_back_ends_that_cannot_be(export_of: ExportOf) -> None:
    model = find_model(export_of("amvl"))
    for name in ("attention", "vision_attention"):
        text = refusal(lambda name=name: model.effective(Settings(**{name: "flash"})), AttentionError)
        assert text == "attention 'flash': no CUDA GPU; set it to auto or sdpa"


def test_a_model_is_loaded_as_set(export_of: ExportOf) -> None:
    found = find_model(export_of("amvl"))
    for dtype, wanted in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = found.load(found.effective(Settings(dtype=dtype)))
        assert {p.dtype for p in model.backbone.parameters()} == {wanted}
        assert {p.dtype for p in model.prior.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_a_plain_model_without_its_processor(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))
    (copy / name).unlink()
    found = find_model(copy)
    text = refusal(lambda: found.processor(found.effective(Settings())), ModelError)
    assert text.startswith(f"{copy}: no tokenizer or image processor (") and text.endswith("; fetch it again")


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (None, set()),
        ({}, set()),
        ({"eos_token_id": None}, set()),
        ({"eos_token_id": 0}, {0}),
        ({"eos_token_id": [7, 9]}, {7, 9}),
    ],
)
def test_ends(tiny_backbone: Path, tmp_path: Path, processor: Processor, content: dict | None, more: set[int]) -> None:
    """The tokenizer's, and what the folder's generation config adds."""
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))
    (copy / "generation_config.json").unlink(missing_ok=True)
    if content is not None:
        (copy / "generation_config.json").write_text(json.dumps(content))
    assert find_model(copy).ends(processor) == {processor.end} | more


TRAIN = """
import argparse, json, sys
import deepspeed
from deepspeed.comm import torch as backend
from tests.model.checkpoints import train

backend.build_shm_op = lambda: None  # takes a minute to compile, and is for several ranks
deepspeed.init_distributed()
arguments = argparse.Namespace(**json.loads(sys.argv[1]))
train(arguments, "one", 1, **{"model.folder": arguments.backbone, "train.precision": "fp32"})
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_backbone: Path) -> Path:
    """A run with two real checkpoints, of steps 0 and 1, and no export."""
    folder = tmp_path_factory.mktemp("runs")
    places = {"folder": str(folder), "shards": str(tiny_shards), "backbone": str(tiny_backbone)}
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"}
    command = [sys.executable, "-c", TRAIN, json.dumps(places)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ranks, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not (folder / "one" / "export").exists()
    return folder / "one"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def same_weights(found: Model, run: Path, step: int) -> bool:
    wanted = torch.load(run / f"weights_{step}.pt")
    own = found.load(found.effective(Settings())).state_dict()
    return set(own) == set(wanted) and all(torch.equal(own[name], wanted[name]) for name in own)


def test_a_run_is_exported_on_the_way(run: Path) -> None:
    """Its newest step; the same export serves the next time."""
    found = find_model(run)
    assert (found.folder, found.run, found.step) == (run / "export/step_1", run, 1)
    assert same_weights(found, run, 1)
    assert find_model(run) == found == find_model(run / "checkpoints/step_1") == find_model(found.folder)


def test_a_step_is_exported_on_the_way(run: Path) -> None:
    found = find_model(run, 0)
    assert (found.folder, found.run, found.step) == (run / "export/step_0", run, 0)
    assert not (run / "export/step_1").exists()
    newest = find_model(run)
    assert newest.step == 1 and newest.id != found.id, "a checkpoint newer than every export"
    assert refusal(lambda: find_model(run, 2), ModelError) == f"{run}: nothing of step 2; there are 0, 1"


def test_a_checkpoint_by_its_folder(run: Path) -> None:
    found = find_model(run / "checkpoints/step_0")
    assert (found.folder, found.run, found.step) == (run / "export/step_0", run, 0)


def test_a_checkpoint_that_was_not_finished_is_passed_over(run: Path) -> None:
    (run / "checkpoints/step_1/complete.json").unlink()
    assert find_model(run).step == 0


def test_a_run_without_anything(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    text = refusal(lambda: find_model(run), ModelError)
    assert text == f"{run}: no complete checkpoint; there is none of any step"


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "tokenizer.json"])
def test_what_a_reply_depends_on_beside_the_weights(
    export_of: ExportOf, tiny_backbone: Path, tmp_path: Path, name: str
) -> None:
    """Another chat template, tokenizer or end mark is another model: its replies are not those of the one before."""
    for number, folder in enumerate((export_of("amvl"), tiny_backbone)):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        assert find_model(copy).id == find_model(folder).id
        with (copy / name).open("a") as file:
            file.write("\n")
        assert find_model(copy).id != find_model(folder).id
