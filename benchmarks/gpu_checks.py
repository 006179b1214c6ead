"""What benchmarks/gpu.py does before it times a step: the back ends must agree; then attention alone is timed."""

import gc
import importlib
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_models import FAMILY, Setting, accumulate, backbone_of, batch_of, model_of
from benchmarks.record import Row, row
from model.attention import BackEnd, Choice, Round, choose, packed_attention
from model.layout import PREFIX, Layout

# Largest error allowed against float64, of outputs and of gradients over the largest of them; in bf16 the sdpa back
# end has 0.004 and 0.018.
LIMITS = {torch.bfloat16: (0.02, 0.06), torch.float32: (1e-4, 1e-4)}
WORSE = 1.5  # how far a whole model may be from fp32, over how far it is with the sdpa back end


class DisagreementError(RuntimeError):
    """A back end is wrong: nothing is worth timing."""


def layouts_agree(setting: Setting, names: list[Choice], count: int) -> list[Row]:
    """Packed attention on random layouts against a dense reference in float64, forward and backward."""
    errors: Callable[..., tuple[float, float]] = importlib.import_module("tests.attention").errors  # wants hypothesis
    rng, rows = random.Random(0), []
    heads = [_heads(setting), (16, 2, 128), (4, 2, 64)]
    drawn = [
        [
            (rng.randint(1, 300), [rng.randint(0, 40), rng.randint(0, 40)], [rng.randint(0, 40), rng.randint(1, 40)])
            for _ in range(rng.randint(1, 5))
        ]
        for _ in range(count)
    ]
    worst: dict[str, tuple[float, float]] = {}
    for name in reversed(names):  # sdpa first, as the others' peer
        found = []
        for seed, shapes in enumerate(drawn):
            size = heads[seed % len(heads)]
            end = choose(name, {"language model": size[2]}, setting.dtype == torch.bfloat16)
            found.append(errors(end, shapes, bool(seed % 2), size, seed, setting.device, setting.dtype))
        worst[name] = max(a for a, _ in found), max(b for _, b in found)
        for what, own, peer, limit in zip(
            ("outputs", "gradients"), worst[name], worst["sdpa"], LIMITS[setting.dtype], strict=True
        ):
            if not own <= limit:  # also where it is not a number
                raise DisagreementError(f"{name}: {what} are off by {own:.3f} of the largest; {limit} is allowed")
            rows.append(row(f"{name}, {count} random layouts, error of {what}", own, peer, "sdpa", "of the largest"))
    return rows


def models_agree(setting: Setting, names: list[Choice]) -> list[Row]:
    """Loss and gradients of two full-width layers, by every back end, against fp32."""
    shape, layers, count = "7B", 2, min(4, setting.samples)

    def found(name: Choice, fp32: bool) -> tuple[float, Tensor]:
        model = model_of(backbone_of(setting, shape, name, layers=layers, fp32=fp32), "amvl")
        batch = batch_of(setting, model.backbone, "amvl", count)
        loss = accumulate(model, batch)
        return loss, torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    exact, gradients = found("sdpa", True)
    rows: list[Row] = []
    allowed: dict[str, float] = {}
    for name in reversed(names):
        loss, own = found(name, False)
        off = {
            "loss": abs(loss - exact) / abs(exact),
            "gradient": ((own - gradients).norm() / gradients.norm()).item(),
            "gradient's norm": abs(own.norm() / gradients.norm() - 1).item(),
        }
        for what, value in off.items():
            least = 1e-3 if what == "gradient" else 1e-2  # a single number may be exact by chance
            limit = max(WORSE * allowed.setdefault(what, value), least)
            if not value <= limit:
                raise DisagreementError(f"{name}: the {what} of {shape} is off by {value:.4f}; {limit:.4f} is allowed")
            peer = allowed[what]
            rows.append(row(f"{name}, {layers} layers of {shape}, error of {what}", value, peer, "sdpa", "relative"))
        gc.collect()
    return rows


def attention_alone(setting: Setting, names: list[Choice]) -> list[Row]:
    """One layer's attention of an amvl step, forward and backward: the back ends, and one mask over the whole row."""
    with torch.device("meta"):
        shape = FAMILY.from_config(setting.config("7B"))
    batch, size = batch_of(setting, shape, "amvl"), _heads(setting)
    assert batch.second is not None
    layouts = (batch.first, batch.second)
    parts = [
        [torch.randn(1, h, layout.tokens, size[2], device=setting.device, dtype=setting.dtype) for h in heads]
        for layout in layouts
        for heads in [(size[0], size[1], size[1])]
    ]
    ends = [choose(name, {"language model": size[2]}, setting.dtype == torch.bfloat16) for name in names]
    ways: dict[str, Callable[[], Tensor]] = {end.name: _packed(end, layouts, parts) for end in ends}
    ways["one mask"] = _masked(layouts, parts)
    reference = ways["sdpa"]()
    seconds = {name: _seconds(setting, name, way, reference) for name, way in ways.items()}
    case = f"attention alone, {batch.tokens} tokens, forward and backward"
    pairs = [(name, peer) for name in ways for peer in ("sdpa", "one mask") if name != peer]
    return [row(f"{name}, {case}", seconds[name], seconds[peer], peer, "s") for name, peer in pairs]


def _heads(setting: Setting) -> tuple[int, int, int]:
    text = setting.config("7B").text_config
    heads = text.num_attention_heads
    return heads, text.num_key_value_heads, text.hidden_size // heads


class _Layer(torch.nn.Module):
    layer_idx = 0


def _packed(end: BackEnd, layouts: tuple[Layout, Layout], parts: list[list[Tensor]]) -> Callable[[], Tensor]:
    first = end.plan(layouts[0], None)
    plans = first, end.plan(layouts[1], first)  # once a step, not once a layer

    def run() -> Tensor:
        memory, outputs = None, []
        for layout, plan, rows in zip(layouts, plans, parts, strict=True):
            round_ = Round(layout, plan, memory)
            q, k, v = (x.detach().requires_grad_() for x in rows)
            outputs.append(packed_attention(_Layer(), q, k, v, None, 0.1, round_=round_)[0])
            memory = round_.memory
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        return torch.cat(outputs, 1).detach()

    return run


def _masked(layouts: tuple[Layout, Layout], parts: list[list[Tensor]]) -> Callable[[], Tensor]:
    """Both rounds as one row, heads repeated: what packing costs where attention knows a mask alone."""
    segments = [(s, number) for number, layout in enumerate(layouts) for s in layout.segments]
    of = [(s.sample, s.branch, number) for s, number in segments for _ in range(s.length)]
    sample, branch, number_of = torch.tensor(of, device=parts[0][0].device).T
    mine = sample[:, None] == sample
    own = mine & (branch[:, None] == branch) & (number_of[:, None] == number_of)
    mask = own.tril() | (mine & (branch[:, None] != PREFIX) & (branch == PREFIX))
    row_parts = [torch.cat(pair, 2) for pair in zip(*parts, strict=True)]
    heads = row_parts[0].shape[1]

    def run() -> Tensor:
        q, k, v = (x.repeat_interleave(heads // x.shape[1], 1).requires_grad_() for x in row_parts)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.1)
        out.backward(torch.ones_like(out))
        return out.detach().transpose(1, 2)

    return run


def _seconds(setting: Setting, name: str, way: Callable[[], Tensor], reference: Tensor) -> float | None:
    """Median seconds; None where memory does not hold it."""
    times, limit = [], 2 * LIMITS[setting.dtype][0]
    try:
        off = ((way() - reference).abs().max() / reference.abs().max()).item()
        if not off <= limit:
            raise DisagreementError(f"{name}: outputs are off sdpa's by {off:.3f} of the largest; {limit} is allowed")
        for _ in range(2 + 5 * setting.repeats):
            setting.synchronize()
            start = time.perf_counter()
            way()
            setting.synchronize()
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    return statistics.median(times[2:])
