"""The FLOP formula against PyTorch's own counter, to the last FLOP, and the pairs of attention against masks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.vision_utils import get_vision_window_index

from data.processor import Encoded
from model.batch import Batch, collate
from model.latent_vlm import LatentVLM, Weights
from tests.tiny import MARKERS, mixed_samples, tiny_config, tiny_model
from trainer.throughput import Flops, peak_of

WEIGHTS = Weights(1.0, 1.0, 1.0, 1.0)


class PlainLoss(nn.Module):
    """The loss without logits made a second time."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(states), targets, reduction="sum")


class Attention:
    """Notes what PyTorch's attention computes beyond the pairs it was asked for: it runs whole rectangles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = self.asked = 0  # FLOPs of the forward pass
        self.plain = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", self)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **more: object
    ) -> Tensor:
        asked = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool) if attn_mask is None else attn_mask
        asked = asked.tril() if is_causal else asked
        self.computed += 4 * q.shape[1] * q.shape[3] * asked.numel()
        self.asked += 4 * q.shape[1] * q.shape[3] * int(asked.sum())
        return self.plain(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **more)


def batch_of(model: LatentVLM, samples: list[Encoded]) -> Batch:
    return collate(samples, model.recipe, model.config, model.backbone, MARKERS)


def counted(model: LatentVLM, batch: Batch) -> int:
    """What PyTorch counts in a step, forward and backward."""
    model.target_loss = PlainLoss(model.backbone.model.lm_head)
    # Written out as matrix products: the counter does not know the fused kernels of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for loss in model(batch, WEIGHTS)[0]:
            loss.backward()
    return counter.get_total_flops()


OBJECTIVES = ("sft", "pause", "deterministic", "ntp", "amvl")


@pytest.mark.parametrize("trained", ["tower", "merger", "nothing"])
@pytest.mark.parametrize(
    ("family", "objective"),
    [*(("qwen2_5_vl", name) for name in OBJECTIVES), ("qwen3_vl", "sft"), ("qwen3_vl", "amvl")],
)
def test_formula_is_what_pytorch_counts(monkeypatch: pytest.MonkeyPatch, family: str, objective: str, trained: str):
    model = tiny_model(objective, family=family)
    for name, parameter in model.backbone.vision.named_parameters():
        parameter.requires_grad_(trained == "tower" or trained in name)
    flops = Flops(model)
    samples = [s for s in mixed_samples() if len(s.grids)]
    total = 0
    for sample in samples:  # one at a time there is no padding, so what a mask lets through is what is needed
        batch = batch_of(model, [sample])
        with monkeypatch.context() as patch:
            attention = Attention(patch)
            theirs = counted(model, batch)
        # The tower's calls have no masks, so all that is too much is the language model's: three times with backward.
        assert flops(batch) == theirs - 3 * (attention.computed - attention.asked)
        assert attention.computed > attention.asked
        total += flops(batch)
        shown = f"{family} {objective}, {trained} of vision trained, {sample.sample.key}"
        print(f"{shown}: {flops(batch):,}, PyTorch {theirs:,}")  # shown by pytest -rP
    assert flops(batch_of(model, samples)) == total


def test_recomputed_layers_and_padding_count_nothing():
    plain, recomputed = tiny_model("amvl"), tiny_model("amvl", checkpoint_layers=3)
    batch = batch_of(plain, mixed_samples())
    assert Flops(recomputed)(batch) == Flops(plain)(batch) < counted(plain, batch) < counted(recomputed, batch)


def test_the_dummy_image_counts_nothing():
    model = tiny_model("sft")
    text = [s for s in mixed_samples() if not len(s.grids)]
    batch, flops = batch_of(model, text), Flops(model)
    assert len(batch.grids) == 1
    answers = [len(s.answer) for s in text]
    shapes = [(len(s.prompt), [len(s.answer) - 1]) for s in text]
    assert flops(batch) == flops.of(shapes, [], sum(answers))


@pytest.mark.parametrize("objective", ["sft", "amvl"])
def test_a_model_without_memory_counts_the_same(objective: str):
    model = tiny_model(objective)
    with torch.device("meta"):
        shape = LatentVLM(type(model.backbone).from_config(tiny_config()), model.config, model.recipe)
    batch = batch_of(model, mixed_samples())
    slots = model.config.slots
    branches = {
        "sft": lambda answer: [answer - 1],
        "amvl": lambda answer: [slots, answer + slots, answer + slots + 1],  # prior; posterior; z in marks, answer
    }[objective]
    shapes = [(len(s.prompt), branches(len(s.answer))) for s in mixed_samples()]
    assert Flops(shape).of(shapes, batch.grids.tolist(), len(batch.targets)) == Flops(model)(batch)


def test_pairs_are_those_of_a_mask():
    """Each branch sees the prefix and itself; the mask is written out token by token."""
    flops = Flops(tiny_model("sft"))
    for prefix, branches in ((1, []), (5, [1]), (7, [3, 4, 2]), (40, [9, 1])):
        owner = [-1] * prefix + [b for b, length in enumerate(branches) for _ in range(length)]
        pairs = sum(owner[key] in (-1, owner[query]) for query in range(len(owner)) for key in range(query + 1))
        assert flops.of([(prefix, branches)], [], 0) == flops.per_token * len(owner) + flops.per_pair * pairs


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 8), (1, 6, 10), (1, 12, 14), (2, 10, 6), (1, 34, 50)])
def test_windows_are_those_of_transformers(grid: tuple[int, int, int]):
    model = tiny_model("sft")
    model.backbone.config.vision_config.window_size = 64  # 4 x 4 merged tokens of 8 x 8 patches
    flops, vision = Flops(model), model.backbone.config.vision_config
    _, bounds = get_vision_window_index(torch.tensor([grid]), vision.spatial_merge_size, 64, vision.patch_size)
    frames, rows, columns = grid
    patches = frames * rows * columns
    expected = flops.per_patch * patches + flops.per_merged * patches // 4
    expected += flops.per_full_pair * frames * (rows * columns) ** 2
    expected += flops.per_window_pair * int((bounds.diff().long() ** 2).sum())
    assert flops.images([grid]) == expected


@pytest.mark.parametrize(("frozen", "factor"), [(False, 6), (True, 4)])
def test_six_flops_a_weight_and_token(frozen: bool, factor: int):
    """The rule of thumb, 6 N a token; a frozen language model needs no gradient for its weights."""
    model = tiny_model("sft")
    layers = model.backbone.model.model.language_model.layers.requires_grad_(not frozen)
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    assert Flops(model).per_token == factor * weights


def test_peaks():
    assert peak_of("NVIDIA H200") == peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == peak_of("NVIDIA A100 80GB PCIe") == 312e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_of("Tesla T4") is None
