"""Fused against unfused: a text model's outputs and gradients, the packed rounds, and weights that ZeRO-3 has split.

With --gpu the kernels run as they are. Without it Triton's interpreter runs them in a process of its own: it is
chosen when Triton is imported, and holds for the whole process.
"""

import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen3VLTextConfig, Qwen3VLTextModel

from model import fused
from model.batch import collate
from model.latent_vlm import Weights
from tests.tiny import MARKERS, mixed_samples, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTALLED = all(map(find_spec, ("liger_kernel", "triton")))
INTERPRETED = INSTALLED and DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
# The kernels round in another order; on a GPU their exponentials and roots are approximations besides.
CLOSE = 1e-5 if DEVICE == "cpu" else 1e-4

FAMILIES = {
    "qwen2_5": (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig, {}),
    "qwen3": (Qwen3VLTextModel, Qwen3VLTextConfig, {"head_dim": 16}),
}


def needs_kernels(test: Callable[..., None]) -> Callable[..., None]:
    """Interpreted in the process that test_under_the_interpreter starts, else on a GPU alone."""
    if INTERPRETED:
        return test
    missing = fused.missing() if DEVICE == "cuda" else None
    return pytest.mark.gpu(pytest.mark.skipif(missing is not None, reason=str(missing))(test))


def mend_interpreter() -> None:
    """What compiled kernels do and the interpreter (Triton 3.7 to 3.9) does not."""
    load: Any = importlib.import_module
    interpreter, tl = load("triton.runtime.interpreter"), load("triton.language")
    builder, convert = interpreter.InterpreterBuilder, interpreter._implicit_cvt
    cast, binary = builder.cast_impl, builder.binary_op

    def arguments(value: object) -> object:  # numbers become fp32 scalars, with methods such as .to
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    def casts(self: Any, source: Any, target: Any) -> Any:  # to bf16 by rounding, not by cutting off
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    def binaries(self: Any, left: Any, right: Any, operation: Any) -> Any:  # bf16 as numbers, not as their bits
        if left.dtype.scalar != tl.bfloat16:
            return binary(self, left, right, operation)
        return casts(self, binary(self, *(cast(self, x, tl.float32) for x in (left, right)), operation), tl.bfloat16)

    interpreter._implicit_cvt, builder.cast_impl, builder.binary_op = arguments, casts, binaries
    # The function of CUDA's library that the kernel calls has no interpreted form.
    load("liger_kernel.ops.rms_norm").rsqrt = lambda x: tl.math.rsqrt(x)


if INTERPRETED:
    mend_interpreter()


def text_model(family: str, **changed: object) -> Any:
    """A small random model, with an epsilon that shows."""
    cls, config, own = FAMILIES[family]
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-2}
    head = own.get("head_dim", 12)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [head // 2 - 4, 2, 2]}
    model = cls._from_config(config(**{**sizes, **heads, **own, "rope_parameters": rope, **changed}))
    random_weights(model)
    return model.to(DEVICE).train()


def random_weights(model: nn.Module) -> None:
    """Norms away from 1, biases away from 0."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, mean=float(name.endswith("norm.weight")), std=0.3)


def results(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output and every gradient, that of the input embeddings with them.

    The last addition hands one gradient tensor to the output's norm and to the embeddings: no kernel may write to it.
    """
    model = copy.deepcopy(model).to(dtype)
    generator = torch.Generator().manual_seed(1)
    embeddings, goal = (torch.randn(2, 9, 48, generator=generator).bfloat16().to(DEVICE, dtype) for _ in range(2))
    out = model(inputs_embeds=embeddings.requires_grad_(), use_cache=False).last_hidden_state
    ((out + embeddings) * goal).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), "embeddings": embeddings.grad, **found}


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Per tensor the size of the difference against that of b."""
    assert a.keys() == b.keys()
    return {name: ((a[name].double() - b[name].double()).norm() / b[name].double().norm()).item() for name in b}


def worst(found: dict[str, float]) -> tuple[float, str]:
    return max((value, name) for name, value in found.items())


@pytest.mark.skipif(not INSTALLED, reason="needs liger-kernel and triton: `make test KERNELS=1` installs them")
@pytest.mark.skipif(INTERPRETED, reason="the tests below run the kernels in this process")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " 1 skipped" in done.stdout, "only this test may be skipped there"


@needs_kernels
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_equals_unfused(family: str, checkpointing: bool) -> None:
    model = text_model(family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = results(model, torch.float32)
    fused.fuse(model)
    value, name = worst(differences(results(model, torch.float32), expected))
    print(f"{family}: worst relative difference in fp32 {value:.1e}, of {name}")  # shown by pytest -rP
    assert value <= CLOSE


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_rounds_no_worse_in_bf16(family: str) -> None:
    model = text_model(family).bfloat16()
    exact = results(model, torch.float64)
    unfused = differences(results(model, torch.bfloat16), exact)
    fused.fuse(model)
    ours = differences(results(model, torch.bfloat16), exact)
    ratios = {name: ours[name] / unfused[name] for name in exact}
    value, name = worst(ratios)
    total = sum(x**2 for x in ours.values()) ** 0.5 / sum(x**2 for x in unfused.values()) ** 0.5
    print(f"{family}: error in bf16 {total:.2f} times that of the unfused model, at most {value:.2f} times, of {name}")
    assert total <= 1.2
    assert value <= 2  # of single tensors; the smallest hold 16 numbers, so chance moves their ratio


@needs_kernels
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_packed_rounds_are_the_same(family: str) -> None:
    """Last states go to heads and to the next round, and remembered keys and values get gradients of later rounds."""
    found = []
    for change in (None, fused.fuse):
        model = tiny_model(checkpoint_layers=1, family=family).to(DEVICE)
        if change:
            change(next(m for m in model.modules() if type(m) in (Qwen2_5_VLTextModel, Qwen3VLTextModel)))
        batch = collate(mixed_samples()[:3:2], model.recipe, model.config, model.backbone, MARKERS, seed=3)
        losses, _ = model(batch.to(DEVICE), Weights(beta=0.7, gamma=0.4, per_token=0.05, per_nat=0.03))
        total = torch.zeros((), device=DEVICE)
        for loss in losses:
            loss.backward()
            total += loss.detach()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
        found.append({"loss": total, **gradients})
    value, name = worst(differences(found[1], found[0]))
    print(f"worst relative difference of loss and {len(found[0]) - 1} gradients {value:.1e}, of {name}")
    assert value <= CLOSE


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_stay_the_objects_they_are(family: str) -> None:
    model = text_model(family).eval()
    before, names = dict(model.named_parameters()), list(model.state_dict())
    fused.fuse(model)
    after = dict(model.named_parameters())
    assert list(model.state_dict()) == names
    assert all(after[name] is parameter for name, parameter in before.items())
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("LigerRMSNorm") == {"qwen2_5": 5, "qwen3": 9}[family]
    assert kinds.count("SwiGLU") == 2
    assert not any(module.training for module in model.modules())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    deepspeed.init_distributed(verbose=False)
    yield
    torch.distributed.destroy_process_group()


@needs_kernels
def test_split_weights_train_the_same(alone: None) -> None:
    """Under deepspeed.zero.Init weights are split before the modules are exchanged, and gathered for each module."""
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    losses: list[list[float]] = []
    for change in (None, fused.fuse):
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = text_model("qwen3")
        if change:
            change(model)
        parameters = dict(model.named_parameters())
        assert all(p.numel() == 0 and hasattr(p, "ds_tensor") for p in parameters.values())
        with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0):
            random_weights(model)
        engine, *_ = deepspeed.initialize(model=model, config=settings)
        generator = torch.Generator().manual_seed(1)
        embeddings, goal = (torch.randn(1, 9, 48, generator=generator).to(engine.device) for _ in range(2))
        losses.append([])
        for _ in range(4):
            loss = (engine(inputs_embeds=embeddings, use_cache=False).last_hidden_state - goal).square().mean()
            engine.backward(loss)
            engine.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.8 * losses[0][0], "nothing was learned, so equality would say little"
    value = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    print(f"worst relative difference of {len(losses[0])} losses under ZeRO-3 {value:.1e}")
    assert value <= CLOSE


def gelu() -> Any:
    return text_model("qwen2_5", hidden_act="gelu")


def other_norm() -> Any:
    model = text_model("qwen3")
    model.layers[1].input_layernorm = nn.LayerNorm(48)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (gelu, r"layers\.0\.mlp is Qwen2MLP, not gate, up and down projections with SiLU"),
        (other_norm, r"layers\.1\.input_layernorm is LayerNorm, not an RMSNorm"),
        (lambda: nn.Linear(2, 2), "Linear has no layers"),
    ],
)
def test_other_shapes_are_refused(build: Any, reason: str) -> None:
    model = build()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=reason) as error:
        fused.fuse(model)
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == kinds
