"""The configuration of a run: YAML files with `extends:`, dotted overrides, checked as a whole before anything runs."""

import difflib
import math
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from data.sample import UserError
from data.stream import DataConfig
from model.build import ModelConfig
from model.latent import LatentConfig
from model.objective import ObjectiveConfig
from trainer.health import HealthConfig
from trainer.redact import redact
from trainer.rl.config import RLConfig
from trainer.schedule import ScheduleConfig
from trainer.tracking import TrackingConfig
from trainer.watch import WatchConfig
from trainer.zero import DeepSpeedConfig

BATCH = "global_batch"  # stands for ranks x train.accumulation where a run goes on


class ConfigError(UserError):
    """A configuration that cannot be used."""


class RunConfig(BaseModel):
    """The run as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$", description="folder of the run below `folder`")
    folder: Path = Field(Path("runs"), description="where runs live")
    accept: tuple[str, ...] = Field(
        (), description="keys that may differ from the checkpoint's when the run goes on; global_batch is one more"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of first weights, sample order and noise")

    @property
    def path(self) -> Path:
        return self.folder / self.name


class TrainConfig(ScheduleConfig):
    """The optimisation."""

    tokens: int = Field(ge=1, description="tokens through the language model per rank and micro-step, at most")
    accumulation: int = Field(1, ge=1, description="micro-steps per step")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, fp32 elsewhere")
    log_every: int = Field(10, ge=1, description="steps")
    save_every: int = Field(1000, ge=1, description="steps")
    save_in_background: bool = Field(
        True, description="write the copy of a checkpoint while training goes on; false: wait until it is on the disk"
    )
    keep_last: int = Field(3, ge=1, description="newest checkpoints that are kept")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of steps it divides are kept for good")
    record: bool = Field(False, description="write the samples of every step to the run's folder samples/")
    profile: tuple[int, ...] | None = Field(None, description="first and last step of a torch profiler trace, or null")

    @field_validator("profile")
    @classmethod
    def _profiles_steps_of_the_run(
        cls, profile: tuple[int, ...] | None, info: ValidationInfo
    ) -> tuple[int, ...] | None:
        steps = info.data.get("steps", math.inf)  # not there when it is faulty itself
        if profile is not None and not (len(profile) == 2 and 1 <= profile[0] <= profile[1] <= steps):
            raise ValueError(f"write two steps, the first and the last to record: [first, last] from 1 to {steps}")
        return profile

    @property
    def bf16(self) -> bool:
        """fp32 is twice as fast as bf16 on a CPU, and bf16 many times faster on a GPU."""
        return {"auto": torch.cuda.is_available(), "bf16": True, "fp32": False}[self.precision]


class Config(BaseModel):
    """Everything a run depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    latent: LatentConfig = LatentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    tracking: TrackingConfig = TrackingConfig()
    watch: WatchConfig = WatchConfig()
    health: HealthConfig = HealthConfig()
    rl: RLConfig | None = None  # null: supervised training

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that loads again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: Path, overrides: list[str]) -> Config:
    """Read, merge and check a configuration. ConfigError with one line when it cannot be used."""
    values = _read(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write it as dotted.key=value")
        try:
            _merge(values, _nest(key.split("."), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not YAML ({error})") from error
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from error
    valid = [BATCH, *valid_keys(Config)]
    for key in config.run.accept:
        if not any(one == key or one.startswith(f"{key}.") for one in valid):
            near = difflib.get_close_matches(key, valid, 1, cutoff=0.0)
            raise ConfigError(f"{path}: run.accept: there is no key {key!r}; the nearest is {near[0]!r}")
    return config


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path}: extends itself; take one `extends` out of {', '.join(map(str, seen))}")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise ConfigError(f"{path}: no such config file" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; write keys and values")
    parent = values.pop("extends", None)
    return _merge(_read(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Put changes into base, key by key and depth by depth."""
    for key, value in changes.items():
        old = base.get(key)
        base[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return base


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nest(keys[1:], value) if keys[1:] else value}


def explain(error: ValidationError) -> str:
    """The first fault of a configuration in one line, an unknown key with its nearest valid one."""
    unknown = [e for e in error.errors() if e["type"] == "extra_forbidden"]
    fault = (unknown or error.errors())[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, valid_keys(Config), 1, cutoff=0.0)
        return f"unknown key {key!r}; the nearest valid key is {near[0]!r}"
    if fault["type"] == "missing":
        return f"{key}: missing; set it in the file or as {key}=value"
    return redact(f"{key}: {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}")


def valid_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a configuration."""
    keys = []
    for name, field in model.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        inner = [kind for kind in kinds if issubclass(kind, BaseModel)]
        keys += [key for kind in inner for key in valid_keys(kind, f"{prefix}{name}.")] or [prefix + name]
    return keys
