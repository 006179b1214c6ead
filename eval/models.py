"""What is evaluated: a run, a checkpoint of it, an export, or a plain Hugging Face model."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml
from transformers import Qwen2VLImageProcessorPil

from data.processor import Processor
from data.sample import DataError
from eval.settings import Settings
from model.attention import choose
from model.build import LATENT_FACTS, ModelError, check_weights, load_export, load_plain, read_architecture
from model.latent_vlm import LatentVLM
from model.objective import RECIPES, Recipe
from model.thinking import check

PIECES, PIECE = 16, 2**20  # of a weight file are looked at to tell it from others


@dataclass(frozen=True)
class Model:
    """A folder that can be loaded, and what is known of it without doing so."""

    folder: Path  # Hugging Face layout; an export has latent.json as well
    id: str  # tells it apart from every other
    run: Path | None  # that it belongs to
    step: int | None

    @property
    def latent(self) -> bool:
        return (self.folder / LATENT_FACTS).is_file()

    @property
    def slots(self) -> int:
        """k, or 0 without latents."""
        return int(_json(self.folder / LATENT_FACTS)["latent"]["slots"]) if self.latent else 0

    @property
    def recipe(self) -> Recipe:
        facts = _json(self.folder / LATENT_FACTS) if self.latent else None
        return Recipe(**facts["recipe"]) if facts else RECIPES["sft"]

    @property
    def objective(self) -> dict[str, Any]:
        """What it was trained by; empty of a plain model."""
        found: dict[str, Any] = _json(self.folder / LATENT_FACTS)["objective"] if self.latent else {}
        return found

    @property
    def results(self) -> Path:
        """Where its evaluations are, one folder each."""
        if self.run:
            return self.run / "eval" / self.folder.name
        return Path("runs") / "eval" / f"{self.folder.resolve().name}-{self.id[:8]}"

    def has_data(self, name: Literal["train", "heldout"], value: Any) -> bool:
        """Whether this is what the config of its run names so."""
        return self.run is not None and value == yaml.safe_load((self.run / "config.yaml").read_text())["data"][name]

    def data(self, name: Literal["train", "heldout"]) -> Any:
        """What the config of its run names as training or held-out data; DataError where it names none."""
        flag = {"train": "--train", "heldout": "--data"}[name]
        if self.run is None:
            raise DataError(
                f"{self.folder}: stands outside a run, so its data.{name} is not known; name the set with {flag}"
            )
        path = self.run / "config.yaml"
        found = yaml.safe_load(path.read_text())["data"][name]
        if found is None:
            raise DataError(f"{path}: data.{name} is not set; name the set with {flag}")
        return found

    def effective(self, settings: Settings) -> Settings:
        """The same settings with what is left to the model filled in; an error where it cannot do so."""
        check(self.recipe, settings.thinking)
        cuda = torch.cuda.is_available()
        bf16 = settings.dtype == "bf16" or (settings.dtype == "auto" and cuda)
        family, config = read_architecture(self.folder / "config.json")
        language, vision = family.head_sizes(config)
        smallest, largest = self._pixels()
        filled = {
            "latents": settings.latents if self.recipe.latents != "none" else "off",
            "dtype": "bf16" if bf16 else "fp32",
            "attention": choose(settings.attention, {"language model": language}, bf16).name,
            "vision_attention": choose(settings.vision_attention, {"vision tower": vision}, bf16).name,
            "min_pixels": settings.min_pixels or min(smallest, settings.max_pixels or smallest),
            "max_pixels": settings.max_pixels or max(largest, settings.min_pixels or largest),
        }
        return settings.model_copy(update=filled)

    def _pixels(self) -> tuple[int, int]:
        """The limits it was trained with, or those of its image processor."""
        if self.latent:
            facts = _json(self.folder / LATENT_FACTS)
            return facts["min_pixels"], facts["max_pixels"]
        try:
            size = Qwen2VLImageProcessorPil.from_pretrained(str(self.folder)).size
        except (OSError, ValueError) as error:
            raise self._without_processor(error) from error
        return size["shortest_edge"], size["longest_edge"]

    def processor(self, settings: Settings) -> Processor:
        """With effective settings."""
        assert settings.min_pixels and settings.max_pixels
        try:
            return Processor(str(self.folder), settings.min_pixels, settings.max_pixels)
        except (OSError, ValueError) as error:
            raise self._without_processor(error) from error

    def _without_processor(self, error: Exception) -> ModelError:
        return ModelError(f"{self.folder}: no tokenizer or image processor ({error}); fetch it again")

    def load(self, settings: Settings) -> LatentVLM:
        """With effective settings, on the CPU."""
        transformers.utils.logging.disable_progress_bar()  # it would draw through that of the evaluation
        load = load_export if self.latent else load_plain
        return load(self.folder, settings.dtype == "bf16", settings.attention, settings.vision_attention).eval()

    def ends(self, processor: Processor) -> frozenset[int]:
        """Token ids that end a reply."""
        path = self.folder / "generation_config.json"
        more = _json(path).get("eos_token_id") if path.is_file() else None
        return frozenset([processor.end, *(more if isinstance(more, list) else [more] if more is not None else [])])


def find_model(path: Path, step: int | None = None) -> Model:
    """What a path names: a run (its newest step, or `step`), a checkpoint, an export or a plain model.

    A checkpoint that was not exported yet is exported into its run first.
    """
    inside = (path / "config.yaml").is_file() or (path / "checkpoints").is_dir() or (path / "export").is_dir()
    if step is not None and not inside:
        raise ModelError(f"{path}: not a run, so it has no step {step}; leave out --step, or name the run")
    if (path / LATENT_FACTS).is_file():
        return _export(path)
    if (path / "complete.json").is_file() and re.fullmatch(r"step_\d+", path.name):
        return _of_run(path.parent.parent, _step(path))
    if inside:
        return _of_run(path, step)
    if (path / "config.json").is_file():
        read_architecture(path / "config.json")
        check_weights(path)
        return Model(path, _id(path, _weights(path)), None, None)
    raise ModelError(
        f"{path}: neither a run, a checkpoint, an export nor a Hugging Face model; name one, e.g. runs/quickstart"
    )


def every_step(model: Model) -> Iterator[Model]:
    """All that are left of the run that a model belongs to, the earliest first; those not exported yet are."""
    if model.run:
        for step in sorted(_steps(model.run) | set(_exports(model.run))):
            yield _of_run(model.run, step)


def _exports(run: Path) -> dict[int, Path]:
    """Folders by step."""
    there = (p.parent for p in run.glob(f"export/*/{LATENT_FACTS}"))
    return {_step(folder): folder for folder in there if re.fullmatch(r"step_\d+", folder.name)}


def _steps(run: Path) -> set[int]:
    """Of complete checkpoints."""
    complete = (p.parent for p in run.glob("checkpoints/*/complete.json"))
    return {_step(folder) for folder in complete if re.fullmatch(r"step_\d+", folder.name)}


def _of_run(run: Path, step: int | None) -> Model:
    exports = _exports(run)
    steps = _steps(run) | set(exports)
    wanted = max(steps, default=None) if step is None else step
    if wanted in exports:
        return _export(exports[wanted])
    if steps and wanted not in steps:
        raise ModelError(f"{run}: nothing of step {wanted}; there are {', '.join(map(str, sorted(steps)))}")
    from model.export import config_of, export, find  # DeepSpeed takes seconds to import

    checkpoint = find(run, wanted)
    return _export(export(checkpoint, config_of(run, checkpoint), run / "export" / checkpoint.name))


def _export(folder: Path) -> Model:
    check_weights(folder)
    run = folder.parent.parent
    inside = (run / "config.yaml").is_file() and re.fullmatch(r"step_\d+", folder.name)
    facts = _json(folder / LATENT_FACTS)
    return Model(folder, _id(folder, facts["id"]), run if inside else None, _step(folder) if inside else None)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch the folder again") from error


def _id(folder: Path, weights: str) -> str:
    """Of the weights, and of every small file beside them: tokenizer, chat template, end marks, image processor."""
    digest = hashlib.sha256(weights.encode())
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".txt", ".model") and p.is_file()
    ):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _weights(folder: Path) -> str:
    """Of sizes and spread pieces of the weight files (not all of 100 GB is read)."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for number in range(PIECES):
                file.seek(max(0, size - PIECE) * number // (PIECES - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()
