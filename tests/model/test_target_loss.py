"""The chunked loss is that of whole logits, value and gradients, and never makes them whole."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model import target_loss
from model.target_loss import TargetEntropy, TargetLoss


def problem(dtype: torch.dtype = torch.float32) -> tuple[TargetLoss, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 50, bias=False, dtype=dtype)
    return TargetLoss(head), torch.randn(23, 5, dtype=dtype, requires_grad=True), torch.randint(0, 50, (23,))


@pytest.mark.parametrize("chunk", [1, 7, 23, 1024])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_equal_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int, frozen: bool):
    monkeypatch.setattr(target_loss, "CHUNK", chunk)
    loss, states, targets = problem()
    loss.weight.requires_grad_(not frozen)
    whole = F.cross_entropy(F.linear(states, loss.weight), targets, reduction="sum")
    wanted = [states] if frozen else [states, loss.weight]
    reference = torch.autograd.grad(3 * whole, wanted)
    value = loss(states, targets).sum()
    torch.testing.assert_close(value, whole, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(3 * value, wanted), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_each_target_has_its_own_weight_and_temperature(monkeypatch: pytest.MonkeyPatch, temperature: float):
    monkeypatch.setattr(target_loss, "CHUNK", 7)
    loss, states, targets = problem()
    weights = torch.randn(len(targets))
    logs = (F.linear(states, loss.weight) / temperature).log_softmax(-1)
    reference = torch.autograd.grad(-(weights * logs[range(len(targets)), targets]).sum(), [states, loss.weight])
    ours = loss(states, targets, temperature)
    torch.testing.assert_close(ours, -logs[range(len(targets)), targets], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad((weights * ours).sum(), [states, loss.weight]), reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    entropy = TargetEntropy(loss._head[0])(states, targets, temperature)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logs).entropy(), rtol=1e-5, atol=1e-6)
    assert not entropy.requires_grad


def test_half_precision_computes_the_softmax_in_fp32():
    """No further from float64 than transformers' way (bf16 logits, upcast, cross-entropy) is."""
    loss, states, targets = problem(torch.bfloat16)
    exact = F.cross_entropy(F.linear(states.double(), loss.weight.double()), targets, reduction="sum")
    plain = F.cross_entropy(F.linear(states, loss.weight).float(), targets, reduction="sum")
    ours = loss(states, targets).sum()
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= 1.01 * abs(plain - exact)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [states, loss.weight]), torch.autograd.grad(exact, [states, loss.weight]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02)


class Largest(TorchDispatchMode):
    """The most rows of any tensor as wide as the vocabulary."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[1] == 50:
                self.rows = max(self.rows, x.shape[0])
        return out


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(target_loss, "CHUNK", 7)
    loss, states, targets = problem()
    with Largest() as seen:
        loss(states, targets).sum().backward()
    assert seen.rows == 7
    assert "weight" not in loss.state_dict()
