"""How a benchmark is asked: everything that can change a reply, and what only changes the time it takes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data.sample import UserError
from model.attention import Choice
from model.thinking import FORMS, Thinking


class SettingsError(UserError):
    """Settings that cannot be used."""


class Settings(BaseModel):
    """Where None, the benchmark's or the model's own is taken, and written into the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["generate", "score", "prior"] = Field(
        "generate",
        description="generate: write a reply and read it; score: the likeliest of the options; "
        "prior: no answer, the prior's means alone (for eval/interventions.py)",
    )
    latents: str = Field("mean", description=FORMS)
    prompt: str | None = Field(None, description="one of the benchmark's prompts")
    blind: bool = Field(False, description="without the pictures")
    max_new_tokens: int | None = Field(None, ge=1, le=1_000_000, description="a reply is cut there")
    temperature: float = Field(0.0, ge=0, le=100, description="of the tokens; 0: the likeliest")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that tokens are drawn from")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of tokens and latents")
    stop: tuple[str, ...] = Field((), description="texts that end a reply")
    min_pixels: int | None = Field(None, ge=1, description="smaller images are enlarged to this many pixels")
    max_pixels: int | None = Field(None, ge=1, description="larger images are shrunk to this many pixels")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, fp32 elsewhere")
    attention: Choice = Field("auto", description="back end of the language model: auto, flash, varlen or sdpa")
    vision_attention: Choice = Field("auto", description="back end of the vision tower, likewise")
    tokens: int = Field(16_384, ge=1, description="tokens of a batch, pictures counted; one item at least")
    processes: int | None = Field(None, ge=1, le=1024, description="that share the items; default: one per GPU")
    zero3: bool = Field(False, description="spread the weights over the ranks that deepspeed started")

    @field_validator("latents")
    @classmethod
    def _latents_are_known(cls, latents: str) -> str:
        try:
            kind = Thinking.parse(latents).kind
        except UserError as error:
            raise ValueError(str(error)) from error
        if kind == "given":  # eval/interventions.py has them, and asks past this
            raise ValueError("latents 'given': z has to come from somewhere; eval/run_interventions.py puts some in")
        return latents

    @field_validator("stop")
    @classmethod
    def _stops_hold_something(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every reply; leave it out")
        return stop

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}; lower it")
        drawn = self.temperature > 0 or self.top_p < 1 or self.stop or self.max_new_tokens
        if self.mode == "score" and drawn:
            raise ValueError("mode score writes no reply: leave out temperature, top_p, stop and max_new_tokens")
        if self.mode == "score" and self.thinking.kind == "optional":
            raise ValueError(
                f"latents {self.latents}: mode score writes nothing that could ask for them; use mean or off"
            )
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p {self.top_p} without a temperature draws nothing; set temperature")
        if self.zero3 and self.processes:
            raise ValueError("zero3 runs in the ranks that deepspeed started; leave out processes")
        return self

    @property
    def thinking(self) -> Thinking:
        return Thinking.parse(self.latents)
