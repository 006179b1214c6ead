"""Settings of reinforcement learning that do not fit together are refused, naming value, limit and mend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.build import ModelError
from tests.refusal import refusal
from trainer.config import Config, ConfigError, load
from trainer.rl.config import RLError, check

QUICKSTART = Path("configs/quickstart_rl.yaml")


def config(export: Path, **changes: Any) -> Config:
    fixed = {"model.folder": export, "latent": "{slots: 3, width: 8, head_width: 16}"}
    return load(QUICKSTART, [f"{key}={value}" for key, value in (fixed | changes).items()])


def test_prompts_are_shared_by_the_ranks(export_of: Callable[[str], Path]) -> None:
    found = config(export_of("amvl"))
    assert [check(found, ranks) for ranks in (1, 2, 4)] == [64, 32, 16]


@pytest.mark.parametrize(
    ("objective", "changes", "text"),
    [
        (
            "amvl",
            {"rl.rollout.prompts": 9},
            "rl.rollout.prompts is 9, for 2 ranks with as many each; set it to a multiple",
        ),
        (
            "sft",
            {"rl.rollout.slots": "optional"},
            "rl.rollout.slots is optional, and objective.name sft has no latents; ",
        ),
        ("pause", {"rl.update.latents": "constant_replay"}, "and objective.name pause has no latents; leave it out"),
        ("deterministic", {"rl.update.latents": "density_ratio"}, "set it to eps_replay or constant_replay"),
        (
            "amvl",
            {"train.tokens": 12},
            "a completion with latents takes up to 12: no room for a ",
        ),
        (
            "amvl",
            {"rl.rollout.tokens": 96},
            "is 96, and 8 completions of a prompt take up to 96; raise",
        ),
        (
            "amvl",
            {"rl.update.latents": "density_ratio", "rl.rollout.latent_temperature": 0},
            "set it above 0",
        ),
        ("amvl", {"latent.slots": 4}, "'slots': 4, 'width': 8, 'head_width': 16}; set latent to the export's"),
        ("amvl", {"objective.name": "sft"}, "set objective to the export's"),
    ],
)
def test_what_the_model_cannot_do(
    export_of: Callable[[str], Path], objective: str, changes: dict[str, Any], text: str
) -> None:
    found = config(export_of(objective), **({"objective.name": objective} | changes))
    assert text in refusal(lambda: check(found, 2), RLError)


def test_a_model_without_latent_parts_is_no_start(tiny_backbone: Path) -> None:
    text = refusal(lambda: check(config(tiny_backbone), 1), ModelError)
    assert "latent.json: cannot be read" in text and "name an export of a run" in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rl.rollout.stop": "['']"}, "rl.rollout.stop.0: '': String should have at least 1 character"),
        ({"rl.rollout.completions": 1}, "rl.rollout.completions: 1: Input should be greater than or equal to 2"),
        ({"rl.rollout.temperature": 0}, "rl.rollout.temperature: 0: Input should be greater than 0"),
        (
            {"rl.update.latent": "eps_replay"},
            "unknown key 'rl.update.latent'; the nearest valid key is 'rl.update.latents'",
        ),
        ({"rl.groups.accuracy_below": 0}, "rl.groups.accuracy_below: 0: Input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be(export_of: Callable[[str], Path], changes: dict[str, Any], text: str) -> None:
    assert text in refusal(lambda: config(export_of("amvl"), **changes), ConfigError)
