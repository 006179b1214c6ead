"""Configuration: merging, overrides, and one clear line for every fault."""

from pathlib import Path

import pytest
import yaml

from tests.refusal import refusal
from trainer.config import Config, ConfigError, load, valid_keys

QUICKSTART = Path("configs/quickstart.yaml")


def fault(path: Path, *overrides: str) -> str:
    message = refusal(lambda: load(path, list(overrides)), ConfigError)
    assert str(path) in message or overrides[0] in message
    return message


def test_every_shipped_config_loads_and_prints_itself():
    paths = sorted(Path("configs").glob("*.yaml"))
    assert QUICKSTART in paths
    for path in paths:
        config = load(path, [])
        assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_overrides_reach_their_key_and_nothing_else():
    plain, changed = load(QUICKSTART, []), load(QUICKSTART, ["train.lr=1e-3", "objective.name=elbo"])
    assert changed.train.lr == 1e-3
    assert changed.objective.name == "elbo"
    assert changed.model_dump(exclude={"train", "objective"}) == plain.model_dump(exclude={"train", "objective"})
    assert changed.train.steps == plain.train.steps


def test_steps_to_profile_load_again():
    config = load(QUICKSTART, ["train.profile=[2,875]"])
    assert config.train.profile == (2, 875)
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config
    assert load(QUICKSTART, []).train.profile is None


def test_extends_merges_depth_by_depth(tmp_path: Path):
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {QUICKSTART.resolve()}\ntrain: {{steps: 7}}\n")
    config = load(child, [])
    assert config.train.steps == 7
    assert config.train.tokens == load(QUICKSTART, []).train.tokens


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.gama=1", "nearest valid key is 'objective.gamma'"),
        ("trian.lr=1", "unknown key 'trian'"),
        ("latent.slot=4", "nearest valid key is 'latent.slots'"),
        ("train.steps=many", "train.steps: 'many'"),
        ("train.lr=-3", "greater than 0"),
        ("data.workers=65", "less than or equal to 64"),
        ("train.steps=0", "greater than or equal to 1"),
        ("objective.name=amvi", "amvl"),
        ("model.min_pixels=999999999", "max_pixels"),
        ("train.steps", "dotted.key=value"),
        ("train.steps=[1", "not YAML"),
        ("run.name=a/b", "run.name"),
        ("train.profile=[0,3]", "train.profile: [0, 3]"),
        ("train.profile=[4,3]", "[first, last] from 1 to 875"),
        ("train.profile=[875,876]", "[first, last] from 1 to 875"),
        ("train.profile=[3]", "write two steps"),
        ("train.profile=3", "train.profile: 3"),
    ],
)
def test_faults_are_named(override: str, words: str):
    assert words in fault(QUICKSTART, override)


def test_missing_and_broken_files_are_named(tmp_path: Path):
    assert "did you mean configs/quickstart.yaml" in fault(Path("configs/quikstart.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    assert "not YAML" in fault(broken)
    broken.write_text("- 1\n- 2")
    assert "keys and values" in fault(broken)
    broken.write_text("extends: broken.yaml")
    assert "extends itself" in fault(broken)
    broken.write_text("run: {name: x}")
    assert "missing" in fault(broken)


def test_valid_keys_are_those_of_the_models():
    keys = valid_keys(Config)
    assert "objective.kl_reduction" in keys
    assert "deepspeed.offload_optimizer" in keys
    assert len(keys) == len(set(keys)) > 30
