"""The one door to attention, registered with transformers: the language model's packed rows, the vision tower's chunks.

Three back ends give the same result (tests/model/test_attention.py, tests/gpu): `flash` (the flash-attn package) and
`varlen` (PyTorch's own fused kernel) want a GPU and half precision, `sdpa` runs anywhere.

Letters in shapes: T tokens of the row, H query heads, G key and value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data.sample import UserError
from model import attention_padded, attention_varlen
from model.attention_padded import PaddedPlan
from model.attention_probe import Probe
from model.attention_varlen import VarlenPlan
from model.kernels import HEAD_LIMIT, HEAD_STEP, Flash, Kernel, Varlen
from model.layout import Layout

NAME = "packed"
KERNELS: dict[str, type[Flash] | type[Varlen]] = {"flash": Flash, "varlen": Varlen}
CAPABILITY = (8, 0)  # the oldest GPU that the fused kernels run on (Ampere)

Choice = Literal["auto", "flash", "varlen", "sdpa"]


class AttentionError(UserError):
    """A back end that cannot be used."""


@dataclass(frozen=True)
class BackEnd:
    """One way to compute attention."""

    name: str
    why: str
    kernel: Kernel | None = None  # None: PyTorch's scaled_dot_product_attention

    def plan(self, layout: Layout, earlier: Any) -> PaddedPlan | VarlenPlan:
        """How one round is computed, given the plan of the round before."""
        device = layout.positions.device
        if self.kernel:
            return VarlenPlan.of(layout, earlier, self.kernel).to(device)
        return PaddedPlan.of(layout, earlier).to(device)

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


SDPA = BackEnd("sdpa", "exact on any machine")


def choose(asked: Choice, heads: dict[str, int], bf16: bool) -> BackEnd:
    """The back end for `heads` (head size by the name of what has it); AttentionError where it cannot run.

    auto takes the first of flash, varlen and sdpa that can.
    """
    reasons = {name: _obstacle(name, heads, bf16) for name in KERNELS}
    if asked == "auto":
        free = [name for name, reason in reasons.items() if reason is None]
        if not free:
            return BackEnd("sdpa", "; ".join(f"no {name}: {reason}" for name, reason in reasons.items()))
        passed = "".join(f"; no {name}: {reason}" for name, reason in reasons.items() if reason and name != free[0])
        return BackEnd(free[0], "the first that runs here" + passed, KERNELS[free[0]]())
    if asked == "sdpa":
        return BackEnd("sdpa", "as configured")
    if reason := reasons[asked]:
        raise AttentionError(f"attention {asked!r}: {reason}; set it to auto or sdpa")
    return BackEnd(asked, "as configured", KERNELS[asked]())


def _obstacle(name: str, heads: dict[str, int], bf16: bool) -> str | None:
    for part, size in heads.items():
        if size % HEAD_STEP or size > HEAD_LIMIT:
            return f"the {part}'s head size {size} is not a multiple of {HEAD_STEP} up to {HEAD_LIMIT}"
    if not torch.cuda.is_available():
        return "no CUDA GPU"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return f"{torch.cuda.get_device_name()} is older than compute capability {CAPABILITY[0]}.{CAPABILITY[1]}"
    if not bf16:
        return "it wants bf16, train.precision is fp32"
    return KERNELS[name].missing()


@dataclass(frozen=True)
class Round:
    """One pass of the language model: its plan, what the round before left, and what this one leaves behind.

    Nothing in it changes after the pass, so that checkpointed layers find the same when they run again.
    """

    layout: Layout
    plan: PaddedPlan | VarlenPlan
    past: dict[int, Any] | None  # the memory of the round before
    # Per layer the keys and values for later rounds, with their gradient. Written once, by the layer's first run.
    memory: dict[int, Any] = field(default_factory=dict)
    probe: Probe | None = None  # measures attention on the way

    @classmethod
    def of(
        cls,
        back_end: BackEnd,
        layout: Layout,
        earlier: "Round | None" = None,
        cut: Callable[[Any], Any] = lambda x: x,
        probe: Probe | None = None,
    ) -> "Round":
        """The round of a layout (on its device), after an earlier one, whose memory it sees through a cut.

        ValueError for a probe in a round that runs prefixes.
        """
        if probe and not earlier:
            raise ValueError("a probe in a round that runs prefixes; measure in a later round, of branches alone")
        plan = back_end.plan(layout, earlier.plan if earlier else None)
        return cls(layout, plan, cut(earlier.memory) if earlier else None, probe=probe)

    def fork(self, parents: list[list[int]]) -> "Round":
        """What this round leaves behind, with other branches: per sample, the kept branch that each of its new branches
        continues (PREFIX: none, it begins behind the prefix). Samples without any are left out, the others numbered
        anew. For rounds without a gradient.
        """
        plan, memory = self.plan.fork(parents, self.memory)
        return Round(self.layout.kept(parents), plan, None, memory)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, G, T, D]
    value: Tensor,  # [1, G, T, D]
    attention_mask: None,
    scaling: float,
    *,
    round_: Round,
    **_: object,
) -> tuple[Tensor, None]:
    """One layer's attention in one round. Returns [1, T, H, D]."""
    layer = cast(int, module.layer_idx)
    past = round_.past[layer] if round_.past is not None else None
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
    out, memory = round_.plan.attend(q, k, v, past, scaling)
    round_.memory.setdefault(layer, memory)
    if (probe := round_.probe) and layer in probe.layers:
        assert past is not None  # Round.of refuses the others
        with torch.no_grad():
            probe.found[layer] = round_.plan.probe(q, k, past, scaling, probe)
    return out[None], None


def register_vision(back_end: BackEnd) -> str:
    """The name under which transformers finds a back end for the vision tower."""

    def attention(module, query, key, value, attention_mask, scaling, *, cu_seq_lens_q, max_length_q, **_):
        """One layer of the vision tower: [1, H, T, D], chunks by their bounds -> [1, T, H, D]."""
        q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
        if back_end.kernel is None:
            return attention_padded.attend_chunks(q, k, v, cu_seq_lens_q, scaling)[None], None
        bounds, longest = cu_seq_lens_q.to(torch.int32), int(max_length_q)
        return attention_varlen.attend_chunks(q, k, v, bounds, longest, scaling, back_end.kernel)[None], None

    # transformers hands the tower's row over whole, with the bounds of its chunks, only to names that hold "flash".
    name = f"chunked_flash_{back_end.name}"
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    return name


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
