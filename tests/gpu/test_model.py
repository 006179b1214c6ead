"""Whole small models on the fused back ends, in bf16: as close to fp32 as PyTorch's own attention is, and memory."""

import copy

import pytest
import torch

from data.processor import Encoded
from model.attention import SDPA, BackEnd
from model.batch import collate
from model.branches import lay_out
from model.build import FAMILIES
from model.completion import Completion
from model.generate import Decoding, generate
from model.latent_vlm import LatentVLM, Weights
from model.policy import Old, Policy, Reading, Step, measure, update
from model.target_loss import CHUNK, TargetLoss
from model.thinking import Thinking
from tests.gpu.places import back_end, everywhere
from tests.tiny import MARKERS, Model, encoded, mixed_samples, tiny_model

WEIGHTS = Weights(beta=0.7, gamma=0.4, per_token=0.05, per_nat=0.03)
# Short ones, and two that cross the kernels' blocks in the language model and in the vision tower.
SAMPLES = [*mixed_samples(), encoded("large", [(20, 16), (8, 12)], 90, 70), encoded("words", [], 300, 33)]


def run_on(model: Model, attention: BackEnd, device: str, dtype: torch.dtype) -> Model:
    """A copy of a model on a back end and a device; its weights in a precision, its buffers in fp32, as in training."""
    model = copy.deepcopy(model)
    model.backbone = type(model.backbone)(model.backbone.model, attention, attention)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.to(device)


def results(model: LatentVLM, device: str) -> dict[str, torch.Tensor]:
    """The loss, the sums, and every gradient of one micro-step, in float64."""
    batch = collate(SAMPLES, model.recipe, model.config, model.backbone, MARKERS, seed=3).to(device)
    losses, sums = model(batch, WEIGHTS)
    total = torch.zeros((), device=device)
    for loss in losses:
        loss.backward()
        total += loss.detach()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: x.double() for n, x in {"loss": total, "sums": sums, **gradients}.items()}


def differences(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Per tensor the size of the difference against that of the exact one."""
    assert found.keys() == exact.keys()
    assert all(x.isfinite().all() for x in found.values())
    sizes = {name: x.norm() for name, x in exact.items()}
    return {n: ((found[n] - exact[n]).norm() / size).item() for n, size in sizes.items() if size > 0}


@pytest.mark.parametrize("checkpoint_layers", [0, 2])
@pytest.mark.parametrize("objective", ["amvl", "sft"])
@pytest.mark.parametrize("family", list(FAMILIES))
@everywhere
def test_loss_and_gradients_are_as_close_to_fp32_as_with_sdpa(
    name: str, family: str, objective: str, checkpoint_layers: int
) -> None:
    fused, device = back_end(name)
    model = tiny_model(objective, checkpoint_layers, family=family)
    exact = results(run_on(model, SDPA, device, torch.float32), device)
    ours, theirs = (
        differences(results(run_on(model, b, device, torch.bfloat16), device), exact) for b in (fused, SDPA)
    )
    assert max(ours["loss"], theirs["loss"]) <= 0.01
    size, usual = (sum(x**2 for x in found.values()) ** 0.5 for found in (ours, theirs))
    usual_one = usual / len(theirs) ** 0.5
    worst = max(ours, key=lambda n: ours[n] / max(theirs[n], usual_one))
    print(f"error in bf16 {size / usual:.2f} times that of sdpa; {worst}: {ours[worst]:.1e}, sdpa {theirs[worst]:.1e}")
    assert size <= 1.5 * usual
    assert ours[worst] <= 3 * max(theirs[worst], usual_one)  # single tensors differ by chance


def completions(model: Policy, device: str) -> dict[str, torch.Tensor]:
    """What is measured of completions, and the gradients of an update on them, in float64."""
    made = [
        [Completion((*range(30, 30 + 3 * n + i), 7), True, 0, f"{n} {i}", ()) for i in range(3)]
        for n in range(len(SAMPLES))
    ]
    branches = lay_out(SAMPLES, made, model.recipe, model.config, model.backbone, MARKERS).to(device)
    reading = Reading(1.0, 1.0, frozenset([0, 2]))
    seen = measure(model, branches, reading)
    advantages = torch.linspace(-1, 1, branches.completions, device=device)
    old = Old(advantages, seen.logps - 0.1, seen.logps + 0.1, seen.z, seen.mean, seen.log_sigma)
    losses, (sums, _) = update(model, branches, reading, old, Step(0.05, (0.2, 0.2), 0.3, "density_ratio"))
    for loss in losses:
        loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {"logps": seen.logps, "entropy": seen.entropy, "masses": seen.masses, "policy": sums[:1], **gradients}
    return {n: x.double() for n, x in found.items()}


@everywhere
def test_completions_are_as_close_to_fp32_as_with_sdpa(name: str) -> None:
    """Measured, attention to latents and images included, and learned from."""
    fused, device = back_end(name)
    model = tiny_model(kind=Policy)
    exact = completions(run_on(model, SDPA, device, torch.float32), device)
    ours, theirs = (
        differences(completions(run_on(model, b, device, torch.bfloat16), device), exact) for b in (fused, SDPA)
    )
    for what in ("logps", "entropy", "masses"):
        assert ours[what] <= max(0.02, 3 * theirs[what]), what
    size, usual = (sum(x**2 for x in found.values()) ** 0.5 for found in (ours, theirs))
    assert size <= 1.5 * usual


def lively(family: str) -> LatentVLM:
    """A model whose replies depend on question, pictures and z."""
    model = tiny_model(family=family).eval()
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.reset_latent()
    torch.nn.init.normal_(model.prior.outer.weight)
    return model


def logits_of_replies(
    model: LatentVLM, samples: list[Encoded], forced: list[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """The logits of every token of a generation; `forced` ones choose the tokens in place of the model's own."""
    seen: list[torch.Tensor] = []
    own = model.backbone.logits

    def logits(states: torch.Tensor) -> torch.Tensor:
        seen.append(own(states))
        return seen[-1] if forced is None else forced[len(seen) - 1]

    model.backbone.logits = logits  # type: ignore[method-assign]
    generate(model, samples, MARKERS, Decoding(frozenset({2}), 6), Thinking())
    return seen


@pytest.mark.parametrize("family", list(FAMILIES))
@everywhere
def test_generation_is_as_close_to_fp32_as_with_sdpa(name: str, family: str) -> None:
    """Rounds of single tokens, over those kept before. All give the replies of fp32; their logits are compared."""
    fused, device = back_end(name)
    model = lively(family)
    samples = [encoded(f"{n}", [(8, 4 * n)] * (n % 3), 5 + 9 * n, 1, seed=n) for n in range(12)]
    exact = logits_of_replies(run_on(model, SDPA, device, torch.float32), samples)
    assert len({tuple(step.argmax(-1).tolist()) for step in exact}) > 3
    ours, theirs = (logits_of_replies(run_on(model, b, device, torch.bfloat16), samples, exact) for b in (fused, SDPA))
    for step, (a, b, right) in enumerate(zip(ours, theirs, exact, strict=True)):
        error, usual = (((x.double() - right) ** 2).mean() ** 0.5 for x in (a, b))
        print(f"token {step}: error in bf16 {error / usual:.2f} times that of sdpa, which is {usual / right.std():.1e}")
        assert error <= 1.5 * usual


@pytest.mark.gpu
def test_logits_never_exist_whole() -> None:
    """Of 8 chunks, never more than the fp32 logits of 4 at a time, forward and backward."""
    head = torch.nn.Linear(64, 100_000, bias=False, device="cuda", dtype=torch.bfloat16)
    rows = 8 * CHUNK
    states = torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 100_000, (rows,), device="cuda")
    loss_of = TargetLoss(head)
    loss_of(states[:8], targets[:8]).backward()  # before the measurement: what libraries take once and for good
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_of(states, targets).backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 4 * CHUNK * 100_000 * 4, f"{taken / 2**20:.0f} MiB"
