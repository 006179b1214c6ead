"""An export is loaded again as it was written, by plain transformers too; bad weights and steps are named."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from data.processor import Processor
from model.build import ModelConfig, ModelError, load_export, shape_only
from model.export import check, write
from model.objective import RECIPES

ROOT = Path(__file__).parents[2]
ExportOf = Callable[[str], Path]


@pytest.mark.parametrize("objective", ["sft", "pause", "deterministic", "amvl"])
def test_what_is_exported_is_loaded_again(
    export_of: ExportOf, objective: str, processor: Processor, tmp_path: Path
) -> None:
    model = load_export(export_of(objective))
    assert model.recipe == RECIPES[objective]
    again = load_export(write(model, model.state_dict(), processor, {"name": objective}, tmp_path / "again"))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


def test_plain_transformers_loads_the_backbone(export_of: ExportOf) -> None:
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(export_of("amvl"))
    ours = load_export(export_of("amvl")).backbone.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "left over", "empty", "not finite"])
def test_bad_weights_are_refused(export_of: ExportOf, tiny_backbone: Path, fault: str) -> None:
    model = load_export(export_of("amvl"))
    expected = shape_only(ModelConfig(folder=tiny_backbone), model.config, model.recipe).state_dict()
    state = dict(model.state_dict())
    check(Path("step_1"), state, expected)
    name = "prior.outer.weight"
    if fault == "missing":
        del state[name]
    elif fault == "left over":
        state["extra"] = state[name]
    else:
        state[name] = state[name][:0] if fault == "empty" else torch.full_like(state[name], float("nan"))
    with pytest.raises(ModelError, match="extra" if fault == "left over" else name):
        check(Path("step_1"), state, expected)


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model.export", str(tmp_path), "--step", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {tmp_path}: no complete checkpoint of step 7; there are []"]
