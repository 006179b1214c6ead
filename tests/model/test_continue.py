"""A run that goes on with the latent parts of an export, whatever that was trained by."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.build import ModelError, continue_latent, load_export
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import RECIPES


def fresh(folder: Path, objective: str, **sizes: int) -> LatentVLM:
    """A model of the export's backbone with latent parts of its own."""
    config = LatentConfig(**{"slots": 3, "width": 8, "head_width": 16} | sizes)
    model = LatentVLM(load_export(folder).backbone, config, RECIPES[objective])
    torch.manual_seed(9)
    model.reset_latent()
    return model


def parts(model: LatentVLM, name: str) -> dict[str, torch.Tensor]:
    return {key: x.clone() for key, x in getattr(model, name).state_dict().items()}


@pytest.mark.parametrize("before", ["deterministic", "amvl"])
@pytest.mark.parametrize("after", ["deterministic", "amvl", "elbo"])
def test_goes_on_with_what_is_there(export_of: Callable[[str], Path], before: str, after: str):
    """And a posterior that is new starts as the prior."""
    folder = export_of(before)
    model, trained = fresh(folder, after), load_export(folder)
    model.scale.zero_()
    first = parts(model, "prior")
    continue_latent(model, folder)
    sources = {"prior": "prior", "slots": "slots", "injection": "injection"}
    if after != "deterministic":
        own = before == "amvl"
        sources |= {
            "posterior": "posterior" if own else "prior",
            "posterior_slots": "posterior_slots" if own else "slots",
        }
    for name, source in sources.items():
        for key, value in parts(trained, source).items():
            assert torch.equal(parts(model, name)[key], value), f"{name}.{key}"
    assert any(not torch.equal(first[key], value) for key, value in parts(model, "prior").items())
    assert model.scale == trained.scale


@pytest.mark.parametrize("name", ["slots", "width", "head_width"])
def test_of_another_size(export_of: Callable[[str], Path], name: str):
    folder = export_of("amvl")
    with pytest.raises(ModelError, match=rf"its latent.{name} is \d+, that of the run 4; make them equal"):
        continue_latent(fresh(folder, "amvl", **{name: 4}), folder)


@pytest.mark.parametrize("before", ["sft", "pause"])
def test_nothing_to_go_on_with(export_of: Callable[[str], Path], before: str):
    folder = export_of(before)
    with pytest.raises(ModelError, match=r"has no .* to go on with; set model.latents to new"):
        continue_latent(fresh(folder, "amvl"), folder)


def test_not_an_export(export_of: Callable[[str], Path], tmp_path: Path):
    folder = Path(shutil.copytree(export_of("amvl"), tmp_path / "copy"))
    model = fresh(folder, "amvl")
    (folder / "latent.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        continue_latent(model, folder)
    (folder / "latent.json").write_text(json.dumps({"latent": {"slots": 3, "width": 8, "head_width": 16}}))
    continue_latent(model, folder)
