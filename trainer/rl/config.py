"""The settings of reinforcement learning: rollouts and updates; rewards and groups have theirs beside them."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.sample import UserError
from model.build import latent_facts
from model.latent import LatentConfig
from model.objective import Recipe
from trainer.rl.advantages import GroupsConfig
from trainer.rl.rewards import RewardsConfig

if TYPE_CHECKING:
    from trainer.config import Config


class RLError(UserError):
    """Settings of reinforcement learning that do not fit the run."""


class RolloutConfig(BaseModel):
    """How completions are drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = Field(64, ge=1, description="prompts of a rollout over all ranks, each of which takes as many")
    completions: int = Field(8, ge=2, le=1000, description="of each prompt, G")
    max_new_tokens: int = Field(1024, ge=1, description="a completion is cut there")
    temperature: float = Field(1.0, gt=0, le=100, description="of the tokens; the policy is the one with it")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that tokens are drawn from")
    latent_temperature: float = Field(
        1.0, ge=0, le=100, description="times the prior's standard deviation; 0: its mean"
    )
    slots: Literal["always", "optional"] = Field(
        "always", description="always: latents before the completion; optional: where it writes the start mark itself"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="texts that end a completion")
    weights: Literal["auto", "gathered", "sharded"] = Field(
        "auto",
        description="gathered: every rank has all weights for a rollout; sharded: gathered layer by layer, the ranks "
        "in step; auto: gathered where they fit",
    )
    tokens: int = Field(
        65_536, ge=1, description="tokens of a batch of completions per rank, at most, as if all were of full length"
    )


class UpdateConfig(BaseModel):
    """How the policy learns from a rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minibatches: int = Field(1, ge=1, description="parts of a rollout, one optimizer step each")
    passes: int = Field(1, ge=1, description="times that a rollout is gone through")
    clip_below: float = Field(0.2, gt=0, lt=1, description="a ratio counts down to 1 less this")
    clip_above: float = Field(
        0.2, gt=0, description="a ratio counts up to 1 plus this (higher: DAPO, arXiv 2503.14476)"
    )
    kl: float = Field(0.0, ge=0, description="weight of the KL divergence to the model at the start; 0: none is loaded")
    latents: Literal["eps_replay", "constant_replay", "density_ratio"] = Field(
        "eps_replay",
        description="eps_replay: recorded noise through the prior as it is now; constant_replay: recorded latents, the "
        "prior does not learn; density_ratio: recorded latents and the ratio of their densities",
    )


class RLConfig(BaseModel):
    """Reinforcement learning from an export (model.folder), with the samples of data.train as prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    groups: GroupsConfig = GroupsConfig()
    update: UpdateConfig = UpdateConfig()
    pages: int = Field(20, ge=0, description="rollouts from one page of completions to the next; 0: none")

    @property
    def steps_per_rollout(self) -> int:
        return self.update.minibatches * self.update.passes


def completion_cost(config: "Config") -> int:
    """Tokens of the longest completion behind its prompt: the prior's slots, latents with their marks, and text."""
    assert config.rl
    slots = 0 if config.objective.recipe.latents == "none" else config.latent.slots
    return 2 * slots + 2 + config.rl.rollout.max_new_tokens


def check(config: "Config", ranks: int) -> int:
    """The prompts of a rollout per rank. RLError for what does not fit together."""
    assert config.rl
    _fits_model(config)
    _fits_budgets(config)
    rollout, update = config.rl.rollout, config.rl.update
    if rollout.prompts % ranks:
        raise RLError(
            f"rl.rollout.prompts is {rollout.prompts}, for {ranks} ranks with as many each; set it to a multiple"
        )
    mine = rollout.prompts // ranks
    if update.minibatches > mine:
        raise RLError(
            f"rl.update.minibatches is {update.minibatches}, more than the {mine} prompts of a rank; lower it"
        )
    return mine


def _fits_model(config: "Config") -> None:
    """RLError unless model.folder has such latents, and they can be drawn and reinforced so."""
    assert config.rl
    rollout, update, recipe = config.rl.rollout, config.rl.update, config.objective.recipe
    facts, name = latent_facts(config.model.folder), config.objective.name
    first = {"sigma"}  # which says nothing any more
    for key, there, here in (
        ("latent", LatentConfig(**facts["latent"]).model_dump(exclude=first), config.latent.model_dump(exclude=first)),
        ("objective", vars(Recipe(**facts["recipe"])), vars(recipe)),
    ):
        if there != here:
            raise RLError(
                f"{config.model.folder}: its {key} is {there}, and that of the run {here}; set {key} to the export's"
            )
    if recipe.bottleneck:
        raise RLError("objective.bottleneck: completions of such a model cannot be reinforced; take a model without")
    if recipe.rounds == 1 and rollout.slots == "optional":
        raise RLError(f"rl.rollout.slots is optional, and objective.name {name} has no latents; set it to always")
    if recipe.rounds == 1 and update.latents != "eps_replay":
        raise RLError(f"rl.update.latents is {update.latents}, and objective.name {name} has no latents; leave it out")
    if update.latents == "density_ratio" and recipe.latents != "posterior":
        raise RLError(
            f"rl.update.latents is density_ratio, and objective.name {name} has no trained spread; "
            "set it to eps_replay or constant_replay"
        )
    if update.latents == "density_ratio" and not rollout.latent_temperature:
        raise RLError(
            "rl.rollout.latent_temperature is 0, and rl.update.latents density_ratio: no spread has no density; set it "
            "above 0"
        )


def _fits_budgets(config: "Config") -> None:
    """RLError unless micro-steps and batches have room."""
    assert config.rl
    rollout, most = config.rl.rollout, completion_cost(config)
    if config.train.accumulation != 1:
        raise RLError(
            f"train.accumulation is {config.train.accumulation}: an update takes as many micro-steps of train.tokens "
            "as it needs; set it to 1, and rl.update.minibatches for more steps"
        )
    if most >= config.train.tokens:
        raise RLError(
            f"train.tokens is {config.train.tokens}, and a completion with latents takes up to {most}: no room for a "
            "prompt; raise it or lower rl.rollout.max_new_tokens"
        )
    if rollout.completions * most >= rollout.tokens:
        raise RLError(
            f"rl.rollout.tokens is {rollout.tokens}, and {rollout.completions} completions of a prompt take up to "
            f"{rollout.completions * most}; raise it, or lower rl.rollout.completions or max_new_tokens"
        )
