"""LatentVLM from a Hugging Face folder: with its weights, or as a shape without any."""

import json
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.processor import Processor
from data.sample import UserError
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.batch import Markers
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import Recipe

FAMILIES = {Qwen2_5VL.family: Qwen2_5VL}


class ModelError(UserError):
    """A model folder that cannot be used."""


class ModelConfig(BaseModel):
    """The backbone and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    folder: Path = Field(description="Hugging Face folder with config, weights, tokenizer and image processor")
    freeze_vision: bool = Field(True, description="leave the vision tower as it is")
    checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    min_pixels: int = Field(56 * 56, ge=1, description="smaller images are enlarged to this many pixels")
    max_pixels: int = Field(1280 * 28 * 28, ge=1, description="larger images are shrunk to this many pixels")

    @model_validator(mode="after")
    def _pixels_in_order(self) -> "ModelConfig":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}; lower it")
        return self


def family_of(folder: Path) -> type[Qwen2_5VL]:
    """The backbone class for a folder; ModelError when the folder or its family is not there."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name a Hugging Face folder in model.folder")
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); fetch the folder again") from error
    if kind not in FAMILIES:
        raise ModelError(f"{path}: model_type {kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def load_processor(config: ModelConfig) -> Processor:
    """Tokenizer and image processor of the folder."""
    rows = family_of(config.folder).read_config(str(config.folder)).text_config.vocab_size
    try:
        processor = Processor(str(config.folder), config.min_pixels, config.max_pixels)
    except (OSError, ValueError) as error:
        raise ModelError(f"{config.folder}: no tokenizer or image processor ({error}); fetch it again") from error
    if len(processor.tokenizer) > rows:
        raise ModelError(
            f"{config.folder}: {len(processor.tokenizer)} tokens with the latent marks for {rows} embedding rows; "
            "enlarge the embedding of the folder"
        )
    return processor


def markers_of(processor: Processor) -> Markers:
    """Ids of the latent start and end marks."""
    return Markers(processor.latent_start, processor.latent_end)


def load_backbone(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Qwen2_5VL:
    """The backbone with the folder's weights, frozen and checkpointed as asked."""
    backbone = family_of(config.folder).from_folder(str(config.folder), dtype)
    backbone.vision.requires_grad_(not config.freeze_vision)
    if config.checkpointing:
        backbone.checkpoint_layers()
    return backbone


def shape_only(config: ModelConfig, latent: LatentConfig, recipe: Recipe) -> LatentVLM:
    """The model on the meta device: parameters with shapes, no memory."""
    cls = family_of(config.folder)
    with torch.device("meta"):
        model = LatentVLM(cls.from_config(cls.read_config(str(config.folder))), latent, recipe)
    model.backbone.vision.requires_grad_(not config.freeze_vision)
    return model
