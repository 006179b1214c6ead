"""Liger-Kernel's fused RMSNorm and SwiGLU (arXiv 2410.10989) in a language model that is already built.

Submodules are exchanged; nothing of transformers is. The parameters stay the objects they are, under the names they
have, so exports and checkpoints do not change, and weights that deepspeed.zero.Init has split stay split.
"""

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class SwiGLU(nn.Module):
    """The feed-forward part of a layer, with silu(gate) * up and its gradient as one kernel each."""

    def __init__(self, mlp: nn.Module, silu_mul: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (mlp.get_submodule(name) for name in PROJECTIONS)
        self.silu_mul = silu_mul

    def forward(self, x: Tensor) -> Tensor:
        # The backward kernel writes the gradients over gate and up. That is right as long as nothing else reads
        # them: linear layers do not save their outputs, and a graph is gone through once (no retain_graph).
        out: Tensor = self.down_proj(self.silu_mul(self.gate_proj(x), self.up_proj(x)))
        return out


def missing() -> str | None:
    """Why the fused modules cannot be used here, or None."""
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        importlib.import_module("liger_kernel.transformers")
    except ImportError as error:  # most often a Triton that does not fit
        return f"liger-kernel cannot be imported ({error})"
    return None


def is_fused(language_model: nn.Module) -> bool:
    """Whether its modules were exchanged."""
    return any(isinstance(module, SwiGLU) for module in language_model.modules())


def fuse(language_model: nn.Module) -> None:
    """Exchange the norms and feed-forward parts of a Qwen2_5_VLTextModel or Qwen3VLTextModel.

    Before deepspeed.initialize, whose hooks go by module, and outside of deepspeed.zero.Init. ValueError for any
    other shape; the model is then as it was.
    """
    places = list(_places(language_model))
    for path in places:
        _check(path, language_model.get_submodule(path))
    norm_type = importlib.import_module("liger_kernel.transformers").LigerRMSNorm
    silu_mul = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply
    for path in places:
        old = language_model.get_submodule(path)
        if path.endswith("mlp"):
            new: nn.Module = SwiGLU(old, silu_mul)
        else:
            # casting_mode: statistics in fp32, the product with the weight in the input's type, as in transformers.
            # in_place would write the gradient of the input over that of the output. The last norm's output has
            # several readers, and an addition hands one gradient tensor to both of its inputs.
            new = norm_type(0, eps=old.variance_epsilon, casting_mode="llama", in_place=False)
            new.weight = old.weight
        owner, _, name = path.rpartition(".")
        setattr(language_model.get_submodule(owner), name, new.train(old.training))


def _places(language_model: nn.Module) -> Iterator[str]:
    """Paths of the submodules to exchange."""
    if not isinstance(getattr(language_model, "layers", None), nn.ModuleList):
        raise ValueError(f"{type(language_model).__name__} has no layers; only a Qwen-VL text model can be fused")
    for path, module in language_model.named_modules():
        names = [name for name, _ in module.named_children()]
        yield from (f"{path}.{name}".lstrip(".") for name in names if name == "mlp" or name.endswith("norm"))


def _check(path: str, module: nn.Module) -> None:
    """ValueError unless the module computes what its fused counterpart does."""
    kind = type(module).__name__
    if path.endswith("mlp"):
        parts = dict(module.named_children())
        fits = set(parts) == {*PROJECTIONS, "act_fn"} and isinstance(parts["act_fn"], type(ACT2FN["silu"]))
        wanted = "gate, up and down projections with SiLU"
    else:
        names = [name for name, _ in module.named_parameters()]
        fits = kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and names == ["weight"]
        wanted = "an RMSNorm with weight and variance_epsilon"
    if not fits:
        raise ValueError(f"{path} is {kind}, not {wanted}; run this model without fused modules")
