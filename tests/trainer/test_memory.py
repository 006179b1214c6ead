"""The plan of memory: against what a process takes, against trials of whole models, and its arithmetic by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.memory import CASES, compare
from model.batch import collate
from model.latent_vlm import LatentVLM
from tests.tiny import MARKERS, mixed_samples, tiny_config, tiny_model
from tests.trainer.test_plan import tiny_config as configured
from trainer.config import Config
from trainer.memory import META, Memory, Meter, activation_bytes, kept_bytes, logit_bytes, memory_of, trial

DEEP, RECOMPUTED = 10, [0, 1, 5, 10]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read as Linux tells them")
def test_plan_against_measurement():
    """Peak memory of training steps, within a tenth: of activations, with layers recomputed, and of the optimizer."""
    recomputed, few = "amvl, all layers recomputed", "amvl, few tokens"
    cases = {"amvl": {"train.tokens": 1000}, recomputed: CASES[recomputed], few: CASES[few]}
    for row in compare(cases, ranks=1):
        print(json.dumps(row))
        assert abs(row["ratio"] - 1) <= 0.10, row


def deep_config(family: str, layers: int) -> Any:
    """The small configuration with more layers."""
    config = tiny_config(family)
    config.text_config.num_hidden_layers = layers
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = ["full_attention"] * layers
    return config


def on_meta(family: str, objective: str, layers: int, recomputed: int, trained_tower: bool) -> LatentVLM:
    """A model of so many layers without memory."""
    like = tiny_model(objective, family=family)
    with META:
        backbone = type(like.backbone).from_config(deep_config(family, layers))
        backbone.vision.requires_grad_(trained_tower)
        if recomputed:
            backbone.checkpoint_layers(recomputed)
        return LatentVLM(backbone, like.config, like.recipe).train()


def peak(model: LatentVLM) -> int:
    samples = mixed_samples()
    return trial(model, collate(samples, model.recipe, model.config, model.backbone, MARKERS))


@pytest.mark.parametrize("recomputed", RECOMPUTED)
@pytest.mark.parametrize(("family", "trained"), [("qwen2_5_vl", False), ("qwen3_vl", True)])
def test_few_layers_tell_of_all(tmp_path: Path, family: str, trained: bool, recomputed: int):
    """Extrapolated from a few layers of a kind, against a trial of all; Qwen3-VL's first ones have DeepStack."""
    changes = {"model.freeze_vision": not trained, "model.checkpoint_layers": recomputed}
    latent = {"latent.slots": 4, "latent.width": 16, "latent.head_width": 32}
    deep_config(family, DEEP).save_pretrained(tmp_path)
    config = configured(tmp_path, **changes, **latent)
    whole = on_meta(family, "amvl", DEEP, recomputed, trained)
    batch = collate(mixed_samples(), whole.recipe, whole.config, whole.backbone, MARKERS)
    assert activation_bytes(config, batch, fused=False) == pytest.approx(trial(whole, batch), rel=0.01)


def test_recomputing_and_freezing_take_less():
    peaks = [peak(on_meta("qwen3_vl", "amvl", DEEP, recomputed, True)) for recomputed in RECOMPUTED]
    # Any recomputation recomputes a trained tower as well.
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert peak(on_meta("qwen3_vl", "amvl", DEEP, 0, False)) < peaks[0]
    assert peak(on_meta("qwen3_vl", "sft", DEEP, 0, True)) < peaks[0]


def test_gradients_of_weights_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    """With a backward pass per round each gradient is final at once; in a single one autograd holds the second
    round's until the first round adds its own: all of the layers'. This is what model/cut.py is for."""

    def small_batch(model: LatentVLM) -> int:
        return trial(model, collate(mixed_samples()[:1], model.recipe, model.config, model.backbone, MARKERS))

    by_rounds = small_batch(on_meta("qwen2_5_vl", "amvl", DEEP, 0, False))
    whole = on_meta("qwen2_5_vl", "amvl", DEEP, 0, False)
    layers = sum(p.nbytes for p in whole.backbone.language.layers.parameters())

    def at_once(batch, weights):
        with monkeypatch.context() as patch:
            patch.setattr("model.latent_vlm.Cut.__call__", lambda self, parts: parts)
            patch.setattr("model.latent_vlm.Cut.carried", lambda self: 0.0)
            losses, sums = LatentVLM.forward(whole, batch, weights)
            return [sum(losses)], sums

    monkeypatch.setattr(whole, "forward", at_once)
    # Gradients meet in the first round's layers, when activations of the second are gone already.
    assert small_batch(whole) > by_rounds + layers / 2


def test_a_tensor_counts_while_it_lives():
    weight = nn.Parameter(torch.empty(100, 100, device=META))
    with Meter(0, [weight]) as meter:
        a = torch.empty(1000, device=META)
        assert meter.live == 4000
        b = a.view(10, 100)[2:]
        assert meter.live == 4000  # a view is no memory of its own
        _ = weight.t()[:50]
        assert meter.live == 4000  # nor are weights
        c = b + 1
        assert meter.live == 4000 + 3200
        del a
        assert meter.live == 4000 + 3200  # the view holds it
        del b
        assert meter.live == 3200
        c += 1
        assert meter.live == 3200
        del c
    assert meter.live == 0
    assert meter.peak == 4000 + 3200


def test_numbers_on_the_cpu_meet_tensors_without_storage():
    with Meter(3, []) as meter:
        rows = torch.tensor([0, 2])
        table = torch.empty(5, 8, device=META)
        assert table[rows].shape == (2, 8)
        assert table[torch.zeros(5, dtype=torch.bool)].shape == (3, 8)  # as many rows as there are image tokens
    assert meter.peak >= 5 * 8 * 4 + 2 * 8 * 4


def zero(**changes: object) -> Config:
    return configured(Path("no/such/folder"), **{"train.precision": "bf16"} | changes)


def test_states_are_divided_by_ranks():
    one, eight = (memory_of(zero(), 8000, 4000, ranks, 10.0, True) for ranks in (1, 8))
    assert (one.weights, one.gradients, one.optimizer) == (2 * 8000, 2 * 4000, 12 * 4000)  # ZeRO's 16 bytes a number
    assert one.step == 4 * 4000
    for part in ("weights", "gradients", "optimizer", "step"):
        assert getattr(eight, part) == getattr(one, part) / 8, part
    assert eight.activations == one.activations == 10
    assert (one.gathered, eight.gathered) == (0, 2 * 8000)
    assert one.node_copy == one.on_cpu == 0
    wide = memory_of(zero(**{"train.precision": "fp32"}), 8000, 4000, 8, 10.0, False)
    assert (wide.weights, wide.gradients, wide.optimizer) == (4 * 1000, 4 * 500, 12 * 500)


def test_buckets():
    """A GPU holds a bucket of DeepSpeed's default size; what is in it is copied to be sent, by gloo once more. Weights
    that arrive, 50 million at once, are there twice; on a CPU nothing is sent at the same time."""
    large = memory_of(zero(), 10**10, 10**10, 8, 0.0, True)
    assert (large.buckets, large.gathered, large.copies) == (2 * 5e8, 2 * 1e9, 2 * 5e8 + 2 * 5e7)
    small = memory_of(zero(), 6000, 4000, 8, 0.0, True)
    assert (small.buckets, small.gathered, small.copies) == (2 * 5e8, 2 * 6000, 2 * 4000 + 2 * 6000)
    cpu = memory_of(zero(), 6000, 4000, 8, 0.0, False)
    assert (cpu.buckets, cpu.gathered, cpu.copies) == (2 * 4000, 2 * 6000, 2 * 2 * 4000)
    assert memory_of(zero(), 10_000, 4000, 8, 0.0, False).copies == 2 * 10_000
    assert memory_of(zero(), 10_000, 4000, 1, 0.0, True).copies == 2 * 4000


def test_offload_moves_gradients_and_optimizer_to_the_cpu():
    memory = memory_of(zero(**{"deepspeed.offload_optimizer": True}), 8000, 4000, 4, 10.0, True)
    assert (memory.gradients, memory.optimizer, memory.step) == (0, 0, 0)
    assert memory.on_cpu == (12 + 2 + 4) * 1000
    assert memory.peak < memory_of(zero(), 8000, 4000, 4, 10.0, True).peak


def test_a_node_has_a_second_copy_of_the_weights():
    memory = memory_of(zero(**{"deepspeed.hpz_partition_size": 8}), 8000, 4000, 64, 10.0, True)
    assert memory.node_copy == 2 * 8000 / 8
    assert memory.peak == memory_of(zero(), 8000, 4000, 64, 10.0, True).peak + memory.node_copy


def test_the_peak_is_in_the_backward_pass_or_in_the_step():
    memory = Memory(1, 2, 4, 8, 16, gathered=32, copies=64, activations=128, step=0, on_cpu=10**6)
    assert memory.peak == 31 + 32 + 64 + 128
    assert memory._replace(step=1000).peak == 31 + 1000


def test_logits_and_kept_keys_by_hand():
    assert logit_bytes(10, 500, 2) == 10 * 500 * (2 + 4 + 4)
    assert logit_bytes(5000, 500, 2) == 1024 * 500 * 10  # a chunk at a time
    text = tiny_config("qwen3_vl").text_config
    assert kept_bytes(7, text, 2) == 2 * 7 * 3 * 2 * 32 * 2  # keys and values, layers, heads of size 32, bytes
    assert kept_bytes(7, tiny_config().text_config, 2) == 2 * 7 * 3 * 2 * 16 * 2


def test_a_trial_leaves_nothing_behind():
    model = on_meta("qwen2_5_vl", "amvl", 3, 0, True)
    first = peak(model)
    assert all(p.grad is None for p in model.parameters())
    assert peak(model) == first
