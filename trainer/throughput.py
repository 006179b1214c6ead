"""Model FLOPs of a micro-step, and the peaks of devices: what MFU means here.

MFU is the FLOPs that the model needs over those the devices could have done in that time (PaLM, arXiv
2204.02311, appendix B). Counted are matrix products, 2 FLOPs a multiply-add: nothing computed a second time
(checkpointed layers, logits, flash attention's scores), no padding and no masked pair. Forward:

    language model   2 W per token of every round    W: weights of the decoder layers' linear layers
                     2 C V per target                lm_head; an embedding look-up counts nothing
                     4 H D per layer and pair        H heads of size D; a pair is a token and one it sees
    vision tower     2 W per patch                   patch embedding and blocks
                     2 W per merged token            mergers
                     4 H D per layer and pair        pairs share a window, or a frame where a layer is full
    latent parts     2 W per slot of a sample        heads and injection

A prefix of P tokens has P (P + 1) / 2 pairs, a branch of b tokens over it b P + b (b + 1) / 2. The backward pass
costs the same once more for a layer's input, where it needs a gradient, and once more for its weights, where they
are trained: 3 times the forward pass in all for a trained layer, twice for a frozen one that a gradient passes,
once for a frozen tower. Attention: 3 times, or once. The appendix lets every token see the whole row, so its MFU
is higher for the same speed. The dummy image of a micro-step without images is no work of the model.
"""

import math
from collections.abc import Iterable, Sequence

from torch import nn

from model.batch import Batch
from model.latent_vlm import LatentVLM
from model.layout import PREFIX

# Dense bf16 FLOP/s by the words of the device's name; NVIDIA's data sheets (theirs with sparsity, halved).
PEAKS = {
    ("h100", "pcie"): 756e12,
    ("h100", "nvl"): 835e12,
    ("h200", "nvl"): 835e12,
    ("h100",): 989e12,
    ("h200",): 989e12,
    ("a100",): 312e12,
}


def peak_of(device: str) -> float | None:
    """Peak of a device by torch.cuda.get_device_name, dense bf16 FLOP/s; None when it is not known."""
    words = set(device.lower().replace("-", " ").split())
    if "mig" in words:  # a part of a device
        return None
    return next((peak for name, peak in PEAKS.items() if words.issuperset(name)), None)


class Flops:
    """Model FLOPs of the micro-steps of one model, forward and backward; a model without memory (meta) will do.

    What is trained is read once, here; under ZeRO-3 too, because only the layers' sizes are looked at.
    """

    def __init__(self, model: LatentVLM) -> None:
        backbone, vision = model.backbone, model.backbone.vision
        text = dict(backbone.language.named_modules())
        queries = [m for name, m in text.items() if name.endswith(".q_proj") and isinstance(m, nn.Linear)]
        latent = [m for part in model.latent_modules().values() for m in part.modules()]
        self.per_token = sum(_layer(m, True) for m in text.values())
        self.per_target = _layer(backbone.model.lm_head, True)
        self.per_sample = model.config.slots * sum(_layer(m, True) for m in latent)
        self.per_pair = sum(3 * 4 * m.out_features for m in queries)

        config = backbone.config.vision_config
        self.merge = config.spatial_merge_size
        full = getattr(config, "fullatt_block_indexes", range(config.depth))
        self.window = getattr(config, "window_size", 0) // config.patch_size // self.merge * self.merge
        self.per_patch = self.per_merged = self.per_full_pair = self.per_window_pair = 0
        layer, trained = 0, False  # whether anything before the module is trained; they stand in the order they run
        for name, module in vision.named_modules():
            flops = _layer(module, trained)
            if "merger" in name:
                self.per_merged += flops
            else:
                self.per_patch += flops
            trained = trained or any(p.requires_grad for p in module.parameters(recurse=False))
            if name.endswith(".qkv") and isinstance(module, nn.Linear):
                flops = (3 if trained else 1) * 4 * module.out_features // 3
                if layer in full:
                    self.per_full_pair += flops
                else:
                    self.per_window_pair += flops
                layer += 1

    def __call__(self, batch: Batch) -> int:
        """FLOPs of a micro-step of training."""
        prefixes: list[tuple[int, list[int]]] = []
        # Branches of each sample's last prefix: the second round of a bottleneck has prefixes of its own.
        newest: dict[int, list[int]] = {}
        for layout in filter(None, (batch.first, batch.second)):
            for segment in layout.segments:
                if segment.branch == PREFIX:
                    newest[segment.sample] = []
                    prefixes.append((segment.length, newest[segment.sample]))
                else:
                    newest[segment.sample].append(segment.length)
        grids = batch.grids.tolist() if len(batch.image_rows) else []
        twice = self.per_sample * (len(prefixes) - batch.samples)  # latent parts of a sample run once
        return self.of(prefixes, grids, len(batch.targets)) - twice

    def of(self, samples: Iterable[tuple[int, Sequence[int]]], grids: Iterable[Sequence[int]], targets: int) -> int:
        """FLOPs of a micro-step from its shapes alone.

        samples: of each the tokens of its prefix, and of its branches in all rounds; grids: of each image its
        frames, rows and columns in patches; targets: tokens that are predicted, over all samples.
        """
        total = self.per_target * targets + self.images(grids)
        for prefix, branches in samples:
            tokens = prefix + sum(branches)
            pairs = _causal(prefix) + sum(b * prefix + _causal(b) for b in branches)
            total += self.per_sample + self.per_token * tokens + self.per_pair * pairs
        return total

    def images(self, grids: Iterable[Sequence[int]]) -> int:
        """FLOPs of the vision tower for images of so many (frames, rows, columns) of patches."""
        total = 0
        for frames, rows, columns in grids:
            patches = frames * rows * columns
            total += self.per_patch * patches + self.per_merged * patches // self.merge**2
            total += self.per_full_pair * frames * (rows * columns) ** 2
            if self.per_window_pair:
                total += self.per_window_pair * frames * _windows(rows, self.window) * _windows(columns, self.window)
        return total


def _layer(module: nn.Module, gradient: bool) -> int:
    """FLOPs of a layer per vector, with or without a gradient for its input; 0 for what holds no matrix."""
    if isinstance(module, nn.Linear):
        weights = module.in_features * module.out_features
    elif isinstance(module, nn.Conv3d):  # of a patch, as large as its kernel
        weights = module.in_channels * module.out_channels * math.prod(module.kernel_size)
    else:
        return 0
    return 2 * weights * (1 + gradient + module.weight.requires_grad)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _windows(length: int, window: int) -> int:
    """Sum of the squares of the window lengths along one side; the pairs of a grid are the product of both sides'."""
    return length // window * window**2 + (length % window) ** 2
