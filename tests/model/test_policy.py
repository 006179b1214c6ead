"""Completions as branches of shared prefixes: against a sequence of its own for each, and by hand."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.reference import plain_copy, separate_policy_loss
from data.processor import Encoded
from model.branches import Branches, branch_cost, lay_out, prompt_cost
from model.completion import Completion
from model.policy import SUMS, Old, Policy, Reading, Step, measure, update
from tests.tiny import MARKERS, encoded, mixed_samples, tiny_model

END = 7  # an end mark
READING = Reading(1.0, 1.0, frozenset([1, 2]))
WAYS = ("eps_replay", "constant_replay", "density_ratio")


def completion(number: int, tokens: int, ended: bool, at: int | None, start: bool = False) -> Completion:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(20, 480, (tokens,), generator=generator).tolist()
    if at:
        ids[at - 1] = MARKERS.start
    return Completion((*ids, END) if ended else tuple(ids), ended, at, f"draw {number}", ())


def groups(objective: str, slots: str = "always") -> tuple[list[Encoded], list[list[Completion]]]:
    """Prompts with 0 to 3 pictures; completions of all lengths, empty ones, cut ones, with latents early or late."""
    prompts = mixed_samples()
    at = None if objective == "sft" else 0
    made = [
        [completion(10 * n + i, length, ended, at) for i, (length, ended) in enumerate(shape)]
        for n, shape in enumerate(
            [[(3, True), (0, True), (5, False)], [(1, True)] * 2, [(4, True)], [(2, False)] * 3, []]
        )
    ]
    made[4] = [completion(99, 8, True, at)]
    if slots == "optional":
        places = iter([None, None, 2, 1, None, 4, 1, None, 2, 8])
        made = [
            [completion(50 + 10 * n + i, len(c.inputs), c.ended, next(places)) for i, c in enumerate(of_prompt)]
            for n, of_prompt in enumerate(made)
        ]
    return prompts, made


def policy(objective: str = "amvl", **how) -> Policy:
    return tiny_model(objective, kind=Policy, **how)


def branches_of(model: Policy, prompts: list[Encoded], completions: list[list[Completion]]) -> Branches:
    return lay_out(prompts, completions, model.recipe, model.config, model.backbone, MARKERS)


def old_of(model: Policy, branches: Branches, moved: float = 0.0, reference: bool = False) -> Old:
    """What was measured, moved a little so that ratios are other than 1 and some are clipped."""
    found = measure(model, branches, READING)
    torch.manual_seed(5)
    return Old(
        advantages=torch.randn(branches.completions),
        logps=found.logps + moved * torch.randn_like(found.logps),
        reference=found.logps + 0.5 * torch.randn_like(found.logps) if reference else None,
        z=found.z + moved * torch.randn_like(found.z),
        mean=found.mean,
        log_sigma=found.log_sigma + moved,
    )


def gradients(model: Policy, branches: Branches, old: Old, step: Step) -> tuple[dict[str, torch.Tensor], float]:
    model.zero_grad()
    losses, _ = model(partial(update, branches=branches, reading=READING, old=old, step=step))
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, total


@pytest.mark.parametrize(
    ("objective", "slots", "way", "family"),
    [
        *(("amvl", slots, way, "qwen2_5_vl") for slots in ("always", "optional") for way in WAYS),
        ("amvl", "always", "eps_replay", "qwen3_vl"),
        ("sft", "always", "eps_replay", "qwen2_5_vl"),
        ("deterministic", "always", "eps_replay", "qwen2_5_vl"),
    ],
)
def test_branches_equal_sequences_of_their_own(objective: str, slots: str, way: str, family: str) -> None:
    """Loss and every gradient, with clipped ratios and a reference, against transformers' own attention; two of its
    layers are recomputed in the backward pass."""
    model = policy(objective, family=family, checkpoint_layers=2)
    prompts, made = groups(objective, slots)
    branches = branches_of(model, prompts, made)
    old = old_of(model, branches, moved=0.15, reference=True)
    step = Step(0.05, (0.2, 0.25), 0.3, way)
    packed, loss = gradients(model, branches, old, step)
    plain = plain_copy(policy(objective, family=family))
    flat = [(prompt, one) for prompt, of_prompt in zip(prompts, made, strict=True) for one in of_prompt]
    if slots == "optional":  # recorded latents are those of the completions that have some
        z = {int(i): n for n, i in enumerate(branches.z_completion)}
        rows = torch.tensor([z.get(i, 0) for i in range(len(flat))])
        whole = replace(old, z=old.z[rows], mean=old.mean[rows], log_sigma=old.log_sigma[rows])
    else:
        whole = old
    theirs = separate_policy_loss(plain, [p for p, _ in flat], [c for _, c in flat], MARKERS, whole, step)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    compared = 0
    for name, parameter in plain.named_parameters():
        if parameter.grad is None or parameter.grad.norm() == 0:
            assert name not in packed or packed[name].abs().max() < 1e-7, name
            continue
        compared += 1
        assert (packed[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
    assert compared > 50


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", ["always", "optional"])
def test_the_ratio_is_one_at_first(way: str, slots: str) -> None:
    model = policy()
    branches = branches_of(model, *groups("amvl", slots))
    _, (sums, furthest) = update(model, branches, READING, old_of(model, branches), Step(1.0, (0.2, 0.2), 0.0, way))
    by_name = dict(zip(SUMS, sums.tolist(), strict=True))
    assert furthest <= 1e-5
    assert by_name["tokens"] == len(branches.targets) and by_name["clipped"] == by_name["latent_clipped"] == 0
    with_latents = len(branches.z_completion) * model.config.slots
    assert by_name["latents"] == (with_latents if way == "density_ratio" else 0)
    assert by_name["latent_ratio"] == pytest.approx(by_name["latents"], abs=1e-3)


@pytest.mark.parametrize(("way", "learns"), [("eps_replay", True), ("constant_replay", False), ("density_ratio", True)])
def test_who_learns(way: str, learns: bool) -> None:
    """The prior by its noise or its density, not from constants; the posterior never."""
    model = policy()
    model.freeze_unused(way)
    branches = branches_of(model, *groups("amvl"))
    found, _ = gradients(model, branches, old_of(model, branches), Step(1.0, (0.2, 0.2), 0.0, way))
    assert any(n.startswith("prior.") and g.abs().max() > 1e-6 for n, g in found.items()) == learns
    assert any(n.startswith("slots.") and g.abs().max() > 1e-6 for n, g in found.items()) == learns
    assert not any(n.startswith("posterior") for n in found)
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {
        "posterior",
        "posterior_slots",
        *(() if learns else ("prior", "slots")),
    }
    for name in ("injection.project.weight", "backbone.model.model.language_model.embed_tokens.weight"):
        assert found[name].abs().max() > 1e-6


def test_pause_slots_stand_in_every_branch() -> None:
    """And learn there."""
    model = policy("pause")
    branches = branches_of(model, *groups("pause"))
    found, _ = gradients(model, branches, old_of(model, branches), Step(1.0, (0.2, 0.2), 0.0, "eps_replay"))
    assert found["slots.table.weight"].abs().max() > 1e-6


def test_groups_are_the_sum_of_groups() -> None:
    """One by one, and a group's completions in two parts."""
    model = policy()
    prompts, made = groups("amvl")
    branches, step = branches_of(model, prompts, made), Step(0.1, (0.2, 0.2), 0.2, "eps_replay")
    old = old_of(model, branches, moved=0.1, reference=True)
    whole, loss = gradients(model, branches, old, step)
    parts = [([p], [[c]]) for p, of_prompt in zip(prompts, made, strict=True) for c in of_prompt]
    total, added, first = 0.0, {}, 0
    for number, part in enumerate(parts):
        one = branches_of(model, *part)
        last = first + len(one.targets)
        assert old.reference is not None
        own = replace(
            old,
            advantages=old.advantages[number : number + 1],
            logps=old.logps[first:last],
            reference=old.reference[first:last],
            z=old.z[number : number + 1],
        )
        found, value = gradients(model, one, own, step)
        total, first = total + value, last
        added = {n: g + added.get(n, 0) for n, g in found.items()}
    assert total == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        assert (added[name] - gradient).norm() <= 1e-5 * gradient.norm().clamp(min=1e-9), name


def test_entropy_and_temperature() -> None:
    model = policy()
    branches = branches_of(model, *groups("amvl"))
    cold = measure(model, branches, replace(READING, temperature=0.5))
    warm = measure(model, branches, READING)
    assert (cold.entropy < warm.entropy).all() and (cold.entropy > 0).all()
    assert not torch.allclose(cold.logps, warm.logps)


def test_masses_are_means_over_words_and_layers() -> None:
    """Of completions without words or latents nothing goes to latents."""
    model = policy()
    prompts, made = groups("amvl", "optional")
    branches = branches_of(model, prompts, made)
    both = measure(model, branches, READING).masses
    each = [measure(model, branches, replace(READING, layers=frozenset([n]))).masses for n in (1, 2)]
    torch.testing.assert_close(both, torch.stack(each).mean(0))
    flat = [(prompt, one) for prompt, of_prompt in zip(prompts, made, strict=True) for one in of_prompt]
    for (prompt, one), (to_latents, to_images) in zip(flat, both.tolist(), strict=True):
        assert (to_latents > 0) == (one.latent_at is not None and one.latent_at < len(one.inputs))
        looked = len(prompt.grids) > 0 and len(one.inputs) > (one.latent_at or 0)
        assert (to_images > 0) == looked


def test_costs_are_the_tokens_of_the_rounds() -> None:
    model = policy()
    for slots in ("always", "optional"):
        prompts, made = groups("amvl", slots)
        branches = branches_of(model, prompts, made)
        slots_of_prior = model.config.slots * len(prompts)
        wanted = sum(prompt_cost(p, 0) for p in prompts) + slots_of_prior
        wanted += sum(branch_cost(c, model.config.slots) for of_prompt in made for c in of_prompt)
        assert branches.tokens == wanted


def test_nothing_but_empty_completions() -> None:
    """Without latents an empty completion has no token to run; the round has one all the same."""
    model = policy("sft")
    empty = Completion((END,), True, None, "", ())
    branches = branches_of(model, [encoded("a", [(4, 4)], 9, 4)], [[empty, empty]])
    assert branches.layout.tokens == 1 and len(branches.targets) == 2
    found = measure(model, branches, READING)
    assert found.logps.isfinite().all() and (found.masses == 0).all()
