"""Memory of one rank before anything is allocated: model states by ZeRO-3's arithmetic, activations by a trial run.

The trial is the training step itself on PyTorch's meta device, forward and backward, on a batch of the size in
question; every tensor that the code makes is counted while it lives. Nothing is assumed about what transformers keeps.
"""

import weakref
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from model.attention import BackEnd
from model.batch import Batch
from model.build import architecture_of, read_architecture, shape_only
from model.latent_vlm import LatentVLM, Weights
from model.target_loss import CHUNK
from trainer.config import Config
from trainer.zero import settings

META = torch.device("meta")
FEW = 4  # layers of a kind in a trial; every further one takes as much as the last
# DeepSpeed's defaults (numbers of elements), which the settings file may change.
DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_max_live_parameters": 1e9,
    "stage3_prefetch_bucket_size": 5e7,
    "sub_group_size": 1e9,
}


class Memory(NamedTuple):
    """Bytes of one rank."""

    weights: float
    node_copy: float  # ZeRO++'s second copy
    gradients: float
    optimizer: float
    buckets: float  # gradients on their way to the others
    gathered: float  # weights of others, while they are needed
    copies: float  # of weights while they arrive, and of a bucket while it is reduced
    activations: float
    step: float  # what the optimizer's step takes beside its state
    on_cpu: float  # optimizer and gradients, when they are offloaded

    @property
    def peak(self) -> float:
        """The most at any time: in the backward pass, or in the optimizer's step."""
        states = self.weights + self.node_copy + self.gradients + self.optimizer + self.buckets
        return states + max(self.activations + self.gathered + self.copies, self.step)


def memory_of(config: Config, total: int, trained: int, ranks: int, activations: float, gpu: bool) -> Memory:
    """Memory of a rank of `ranks`, for a model of so many parameters (ZeRO, arXiv 1910.02054, section 3.1)."""
    zero = DEFAULTS | settings(config)["zero_optimization"]
    width, mine = (2 if config.train.bf16 else 4), trained / ranks
    states = 12 * mine  # fp32 weights and AdamW's two moments; DeepSpeed keeps its own weights in fp32 training too
    # fp32 gradients of a sub-group; on the CPU AdamW takes two more copies, on a GPU its kernel is fused.
    step = min(mine, zero["sub_group_size"]) * 4 * (1 if gpu else 3)
    bucket = width * min(trained, zero["reduce_bucket_size"])
    # DeepSpeed puts what arrives together, and sorts a bucket by rank into a second one; gloo copies that once more. On
    # a GPU both can be on their way at once.
    arriving = width * min(total, zero["stage3_prefetch_bucket_size"]) if ranks > 1 else 0
    copies = arriving + bucket if gpu else max(arriving, 2 * bucket)
    node, offload = config.deepspeed.hpz_partition_size, config.deepspeed.offload_optimizer
    return Memory(
        weights=width * total / ranks,
        node_copy=width * total / node if node > 1 else 0,
        gradients=0 if offload else width * mine,
        optimizer=0 if offload else states,
        # A GPU gives the whole bucket away at once, a CPU what is written to.
        buckets=width * zero["reduce_bucket_size"] if gpu else bucket,
        gathered=width * min(total, zero["stage3_max_live_parameters"]) if ranks > 1 else 0,
        copies=copies,
        activations=activations,
        step=0 if offload else step,
        on_cpu=states + (width + 4) * mine if offload else 0,
    )


def logit_bytes(targets: int, vocabulary: int, width: int) -> float:
    """Logits of a chunk of targets in the weights' type, in fp32, and their gradient in fp32."""
    return min(targets, CHUNK) * vocabulary * (width + 8)


def kept_bytes(prefix_tokens: int, text: Any, width: int) -> float:
    """Keys and values of all layers that a second round attends to."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * prefix_tokens * text.num_hidden_layers * text.num_key_value_heads * head * width


def activation_bytes(config: Config, batch: Batch, fused: bool) -> float:
    """The most that one micro-step holds beside weights and their gradients.

    Trials of a few layers give what a recomputed layer and what a kept one takes. fused: by a fused back end.
    """
    layers = read_architecture(architecture_of(config.model))[1].text_config.num_hidden_layers
    recomputed = config.model.checkpointed(layers)
    counts = [recomputed, layers - recomputed]
    few = [min(n, FEW) for n in counts]
    first = _trial(config, batch, fused, *few)
    total = float(first)
    for kind, rest in enumerate(n - f for n, f in zip(counts, few, strict=True)):
        if rest:
            more = list(few)
            more[kind] += min(rest, FEW)
            total += (_trial(config, batch, fused, *more) - first) / min(rest, FEW) * rest
    return total


def _trial(config: Config, batch: Batch, fused: bool, recomputed: int, kept: int) -> int:
    model_config = config.model.model_copy(update={"checkpoint_layers": recomputed})
    model = shape_only(model_config, config.latent, config.objective.recipe, layers=recomputed + kept)
    model.to(torch.bfloat16 if config.train.bf16 else torch.float32)
    if fused:
        model.backbone.attention = BackEnd("varlen", "in a trial without memory", _StandIn())
    return trial(model.train(), batch)


def trial(model: LatentVLM, batch: Batch) -> int:
    """Peak bytes of a micro-step of a model on the meta device, beside weights and their gradients."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            # ZeRO-3 takes a gradient away as soon as it is whole, into the bucket.
            parameter.register_post_accumulate_grad_hook(_drop)
    with Meter(len(batch.image_rows), chain(model.parameters(), model.buffers())) as meter:
        losses, _ = model(batch, Weights(1.0, 1.0, 1.0, 1.0))
        for loss in losses:
            loss.backward()
    return meter.peak


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _StandIn:
    """A fused kernel as far as memory goes: its output, the log-sum-exps, and fp32 sums of the queries' gradient."""

    def forward(self, q, k, v, spans, scale):
        return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)

    def backward(self, gradient, q, k, v, out, lse, spans, scale):
        torch.empty_like(q, dtype=torch.float32)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class Meter(TorchDispatchMode):
    """Bytes of the tensors without storage that are alive, now and at most.

    Numbers that code looks at (token ids, rows, sizes of images) are real and on the CPU; where they meet a tensor
    without storage, they become one.
    """

    def __init__(self, image_rows: int, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.image_rows, self.live, self.peak = image_rows, 0, 0
        self._known = {x.untyped_storage()._cdata for x in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(self._without_storage, (args, kwargs))
            if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
                args = (args[0], self._rows(args[1]), *args[2:])
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_meta:
                self._count(x.untyped_storage())
        return out

    @staticmethod
    def _without_storage(x: Any) -> Any:
        return x.to(META) if isinstance(x, Tensor) and x.dim() and not x.is_meta else x

    def _rows(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """A mask of images has no values here, but as many as there are image tokens."""
        rows: list[Tensor | None] = []
        for x in indices:
            if x is not None and x.dtype == torch.bool:
                rows += [torch.empty(self.image_rows, dtype=torch.long, device=META) for _ in range(x.dim())]
            else:
                rows.append(x)
        return rows

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size
