"""The fused variable-length attention kernels: flash-attn's, and PyTorch's own.

A kernel gives its output together with the log-sum-exp of the scores, and takes both back for the gradient. That is
what lets a branch attend to its prefix where it lies: attention over two sets of keys is the two outputs,
weighted by their log-sum-exps, and each part's gradient follows from the joint output and the joint log-sum-exp
(FlashAttention-2, arXiv 2307.08691, section 3.1; the same identity as in ring attention, arXiv 2310.01889).

Letters in shapes: R query rows, S key rows, H query heads, G key and value heads, D head size, B sequences.
"""

import importlib
import importlib.metadata
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

HEAD_STEP, HEAD_LIMIT = 8, 256  # head sizes that FlashAttention-2 takes: multiples of 8 up to 256
FLASH_OLDEST = (2, 7)  # the first flash-attn whose log-sum-exp is [H, R], and whose windows are two arguments


class Spans(NamedTuple):
    """Which rows of queries attend to which rows of keys: sequence b of one to sequence b of the other."""

    queries: Tensor  # [B + 1] int32, the first row of each sequence, and the end
    keys: Tensor  # [B + 1] int32
    longest_query: int
    longest_key: int
    causal: bool  # bottom-right aligned: the last query sees the last key

    def to(self, device: torch.device) -> "Spans":
        return self._replace(
            queries=self.queries.to(device, non_blocking=True), keys=self.keys.to(device, non_blocking=True)
        )


class Kernel(Protocol):
    """Attention of q [R, H, D] over k and v [S, G, D]; every sequence has at least one query and one key."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
        """-> output [R, H, D], log-sum-exp [H, R] fp32."""
        ...

    def backward(
        self, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> gradients of q, k, v, given those of the output, and output and log-sum-exp over all keys."""
        ...


class Flash:
    """The flash-attn package's variable-length functions (FlashAttention-2)."""

    def __init__(self) -> None:
        interface = importlib.import_module("flash_attn.flash_attn_interface")
        self._forward, self._backward = interface._flash_attn_varlen_forward, interface._flash_attn_varlen_backward

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be used here, or None."""
        try:
            version = importlib.metadata.version("flash-attn")
            importlib.import_module("flash_attn.flash_attn_interface")
        except importlib.metadata.PackageNotFoundError:
            return "flash-attn is not installed"
        except ImportError as error:  # most often built for another torch
            return f"flash-attn cannot be imported ({error})"
        if tuple(int(part) for part in version.split(".")[:2]) < FLASH_OLDEST:
            return f"flash-attn is {version}; {'.'.join(map(str, FLASH_OLDEST))} is the oldest that fits"
        return None

    def forward(self, q, k, v, spans, scale):
        out, lse, *_ = self._forward(q, k, v, **self._arguments(spans, scale), return_softmax=False)
        return out, lse

    def backward(self, gradient, q, k, v, out, lse, spans, scale):
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        rest = self._arguments(spans, scale) | {"deterministic": False}
        self._backward(gradient.contiguous(), q, k, v, out, lse, dq, dk, dv, **rest)
        return dq, dk, dv

    @staticmethod
    def _arguments(spans: Spans, scale: float) -> dict[str, object]:
        return {
            "cu_seqlens_q": spans.queries,
            "cu_seqlens_k": spans.keys,
            "max_seqlen_q": spans.longest_query,
            "max_seqlen_k": spans.longest_key,
            "dropout_p": 0.0,
            "softmax_scale": scale,
            "causal": spans.causal,
            "window_size_left": -1,
            "window_size_right": -1,
            "softcap": 0.0,
            "alibi_slopes": None,
        }


class Varlen:
    """The operators behind torch.nn.attention.varlen.

    That module's own function gives no gradient through the log-sum-exp and has changed its arguments between
    releases; its two operators have not (torch 2.11 to 2.13), and take what is needed here.
    """

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be used here, or None."""
        try:
            importlib.import_module("torch.nn.attention.varlen")
        except ImportError:
            return f"torch {torch.__version__} has no torch.nn.attention.varlen"
        return None

    def forward(self, q, k, v, spans, scale):
        sizes = (spans.queries, spans.keys, spans.longest_query, spans.longest_key)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *sizes, 0.0, spans.causal, False, scale=scale)
        return out, lse

    def backward(self, gradient, q, k, v, out, lse, spans, scale):
        sizes = (spans.queries, spans.keys, spans.longest_query, spans.longest_key)
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        unused = torch.empty(0, device=q.device)
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), q, k, v, out, lse, *sizes, 0.0, spans.causal, state, unused, scale=scale
        )
