"""LatentVLM from a Hugging Face folder: with its weights, or as a shape without any."""

import copy
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from data.processor import Processor
from data.sample import UserError
from model import fused
from model.attention import Choice, choose
from model.backbones.backbone import Backbone
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.backbones.qwen3_vl import Qwen3VL
from model.batch import Markers
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import RECIPES, Recipe

FAMILIES: dict[str, type[Backbone]] = {cls.family: cls for cls in (Qwen2_5VL, Qwen3VL)}
WEIGHTS = "model.safetensors"
Twin = TypeVar("Twin", bound=LatentVLM)
LATENT_FACTS = "latent.json"  # of an export


class ModelError(UserError):
    """A model folder that cannot be used."""


class ModelConfig(BaseModel):
    """The backbone and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    folder: Path = Field(description="Hugging Face folder with config, weights, tokenizer and image processor")
    architecture: Path | None = Field(None, description="a config.json to plan with where the folder is not")
    latents: Literal["new", "export"] = Field(
        "new",
        description="export: go on with the slots, heads and injection of the folder, an export of another run; "
        "reinforcement learning always does",
    )
    freeze_vision: bool = Field(True, description="leave the vision tower as it is")
    checkpoint_layers: NonNegativeInt | Literal["all"] = Field(
        0, description="layers recomputed in the backward pass to save memory: the first so many, or all"
    )
    attention: Choice = Field("auto", description="back end of the language model: auto, flash, varlen or sdpa")
    vision_attention: Choice = Field("auto", description="back end of the vision tower, likewise")
    liger: Literal["auto", "on", "off"] = Field(
        "auto", description="Liger-Kernel's fused norms and feed-forward parts; auto: where it can run"
    )
    min_pixels: int = Field(56 * 56, ge=1, description="smaller images are enlarged to this many pixels")
    max_pixels: int = Field(1280 * 28 * 28, ge=1, description="larger images are shrunk to this many pixels")

    @model_validator(mode="after")
    def _pixels_in_order(self) -> "ModelConfig":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}; lower it")
        return self

    def checkpointed(self, layers: int) -> int:
        """How many of so many layers are recomputed."""
        return layers if self.checkpoint_layers == "all" else min(layers, self.checkpoint_layers)


def read_architecture(path: Path) -> tuple[type[Backbone], Any]:
    """The backbone class and configuration of a config.json; ModelError when it or its family is not there."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name a Hugging Face folder in model.folder")
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); fetch the folder again") from error
    if kind not in FAMILIES:
        raise ModelError(f"{path}: model_type {kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    try:
        return FAMILIES[kind], FAMILIES[kind].read_config(path)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def architecture_of(config: ModelConfig) -> Path:
    """The config.json of the folder or, where there is none, the one to plan with."""
    own = config.folder / "config.json"
    return own if own.is_file() or config.architecture is None else config.architecture


def load_processor(config: ModelConfig) -> Processor:
    """Tokenizer and image processor of the folder."""
    rows = read_architecture(config.folder / "config.json")[1].text_config.vocab_size
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


def check_weights(folder: Path) -> None:
    """ModelError when a weight file of a folder is missing, cut short or holds an empty tensor. Reads headers alone."""
    index = folder / f"{WEIGHTS}.index.json"
    names: dict[str, set[str]] = {}
    if index.is_file():
        for name, file in json.loads(index.read_text())["weight_map"].items():
            names.setdefault(file, set()).add(name)
    else:
        names[WEIGHTS] = set()
    for file, expected in names.items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path}: no such file; fetch the weights of the folder again")
        try:
            with safe_open(path, "pt") as tensors:
                found = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
        if absent := sorted(expected - set(found)):
            raise ModelError(f"{path}: holds no {absent[0]}, which {index.name} names; fetch the folder again")
        if empty := [name for name, shape in found.items() if 0 in shape]:
            raise ModelError(f"{path}: {empty[0]} is of size 0; export or fetch the weights again")


def load_backbone(config: ModelConfig, bf16: bool = False) -> Backbone:
    """The backbone with the folder's weights, frozen, checkpointed and attending as asked."""
    path = config.folder / "config.json"
    cls, architecture = read_architecture(path)
    check_weights(config.folder)
    language_head, vision_head = cls.head_sizes(architecture)
    attention = choose(config.attention, {"language model": language_head}, bf16)
    vision_attention = choose(config.vision_attention, {"vision tower": vision_head}, bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        backbone = cls.from_folder(config.folder, dtype, attention, vision_attention)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())  # transformers tells of misshapen weights in many lines
        raise ModelError(
            f"{config.folder}: weights and config.json disagree ({said}); fetch the folder again"
        ) from error
    obstacle = fused.missing()
    if config.liger == "on" and obstacle:
        raise ModelError(f"model.liger 'on': {obstacle}; set it to auto or off")
    if config.liger != "off" and not obstacle:
        fused.fuse(backbone.language)
    return prepare(backbone, config)


def prepare(backbone: Backbone, config: ModelConfig) -> Backbone:
    """Freeze and checkpoint as asked."""
    backbone.vision.requires_grad_(not config.freeze_vision)
    if layers := config.checkpointed(backbone.config.text_config.num_hidden_layers):
        backbone.checkpoint_layers(layers)
    return backbone


def shape_only(config: ModelConfig, latent: LatentConfig, recipe: Recipe, layers: int | None = None) -> LatentVLM:
    """The model on the meta device, parameters with shapes but no memory, with all or its first layers."""
    cls, architecture = read_architecture(architecture_of(config))
    text = architecture.text_config
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        return LatentVLM(prepare(cls.from_config(architecture), config), latent, recipe)


def twin(model: LatentVLM, kind: type[Twin]) -> Twin:
    """Another model of the same architecture, attention and fused modules, without memory (meta device)."""
    backbone = model.backbone
    with torch.device("meta"):
        config = copy.deepcopy(backbone.config)
        empty = type(backbone).from_config(config, backbone.attention, backbone.vision_attention)
        if fused.is_fused(backbone.language):
            fused.fuse(empty.language)
        return kind(empty, model.config, model.recipe)


def load_export(
    folder: Path, bf16: bool = False, attention: Choice = "auto", vision_attention: Choice = "auto"
) -> LatentVLM:
    """An exported checkpoint (Hugging Face folder, latent.json, latent.safetensors); its latent parts in fp32."""
    facts = latent_facts(folder)
    config = ModelConfig(folder=folder, attention=attention, vision_attention=vision_attention)
    model = LatentVLM(load_backbone(config, bf16), LatentConfig(**facts["latent"]), Recipe(**facts["recipe"]))
    load_latent(model, folder)
    return model


def latent_facts(folder: Path) -> dict[str, Any]:
    """What an export says of its latent parts; ModelError when it is none."""
    try:
        facts: dict[str, Any] = json.loads((folder / LATENT_FACTS).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / LATENT_FACTS}: cannot be read ({error}); name an export of a run") from error
    return facts


def load_latent(model: LatentVLM, folder: Path) -> None:
    """Give a model the latent parts of an export; ModelError when they are others."""
    missing = model.load_state_dict(load_file(folder / "latent.safetensors"), strict=False)
    wrong = [n for n in missing.missing_keys if not n.startswith("backbone.")] + missing.unexpected_keys
    if wrong:
        raise ModelError(f"{folder}/latent.safetensors: weights missing or left over: {wrong}; export again")


def continue_latent(model: LatentVLM, folder: Path) -> None:
    """Start a model's latent parts as an export's, of whatever objective; ModelError when they are of another size.

    A posterior that the export has not starts as its prior.
    """
    facts = latent_facts(folder)
    there, here = facts["latent"], model.config.model_dump()
    if differ := [name for name in ("slots", "width", "head_width") if there[name] != here[name]]:
        name = differ[0]
        raise ModelError(f"{folder}: its latent.{name} is {there[name]}, that of the run {here[name]}; make them equal")
    found = load_file(folder / "latent.safetensors")
    for own, other in (("posterior.", "prior."), ("posterior_slots.", "slots.")):
        if not any(name.startswith(own) for name in found):
            found |= {own + n.removeprefix(other): x.clone() for n, x in found.items() if n.startswith(other)}
    wanted = {
        f"{part}.{name}" for part, module in model.latent_modules().items() for name, _ in module.named_parameters()
    }
    if missing := sorted(wanted - set(found)):
        name = facts.get("objective", {}).get("name", "another")
        raise ModelError(f"{folder}: of objective {name}, has no {missing[0]} to go on with; set model.latents to new")
    model.load_state_dict({name: found[name] for name in wanted} | {"scale": found["scale"]}, strict=False)


def load_plain(
    folder: Path, bf16: bool = False, attention: Choice = "auto", vision_attention: Choice = "auto"
) -> LatentVLM:
    """Any Hugging Face folder of a known family, without latents: the model that others are compared with."""
    config = ModelConfig(folder=folder, attention=attention, vision_attention=vision_attention)
    return LatentVLM(load_backbone(config, bf16), LatentConfig(), RECIPES["sft"])
