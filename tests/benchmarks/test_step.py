"""The step benchmark runs, on small shapes; its ways to take a step are the same step, with padding and without."""

import json

import pytest
import torch

from benchmarks import step
from benchmarks.reference import plain_copy, separate_loss, transformers_loss
from model.batch import collate
from model.latent_vlm import Weights
from model.objective import RECIPES
from tests.tiny import MARKERS, mixed_samples, tiny_model

ROW = ["case", "ours", "peer", "peer_name", "ratio", "unit"]


def test_it_runs(capsys: pytest.CaptureFixture[str]):
    sizes = {
        "prompts": 20,
        "checkpointing": 20,
        "answer": 3,
        "slots": 2,
        "tokens": 40,
        "batches": 2,
        "batch": 3,
        "repeats": 1,
    }
    step.main([f"--{name}={size}" for name, size in sizes.items()])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [list(row) for row in rows] == [ROW] * (2 * len(step.EQUAL) + len(step.MIXED))
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)


def test_nothing_is_timed_where_losses_differ():
    cases = {"sft": lambda: torch.tensor(1.0), "sft: other": lambda: torch.tensor(1.1)}
    with pytest.raises(RuntimeError, match="not the same step"):
        step.measure("", cases, [("sft", "sft: other")], 1)


def test_mixed_lengths_are_those_of_both_sources_and_all_sizes():
    items = step.mixed(20)
    assert {item.sample.text.source for item in items} == {"easy-vqa 1.0", "puzzles"}
    sides = {side for item in items for side in item.grids[:, 1].tolist()}
    assert sides == {size // step.tiny.PATCH for size in step.SIZES}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("objective", list(RECIPES))
def test_padding_changes_no_loss(objective: str, family: str):
    """Samples of many lengths in one padded batch, against each alone."""
    plain, weights = plain_copy(tiny_model(objective, family=family)), Weights(0.7, 0.4, 0.05, 0.03)
    together = separate_loss(plain, mixed_samples(), MARKERS, 3, weights)
    alone = torch.stack([separate_loss(plain, [s], MARKERS, 3, weights) for s in mixed_samples()]).sum()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_loss_is_that_of_transformers(family: str):
    model = tiny_model("sft", family=family)
    targets = sum(len(s.answer) for s in mixed_samples())
    batch = collate(mixed_samples(), model.recipe, model.config, model.backbone, MARKERS)
    (loss,), _ = model(batch, Weights(0, 0, 1 / targets, 0))
    torch.testing.assert_close(loss, transformers_loss(plain_copy(model), mixed_samples()), rtol=1e-5, atol=0)
