"""From what was collected to findings: gap, leakage, causal use, input dependence, geometry, attention.

Letters in shapes: N items, k slots, d latent width, A answers shown to the posterior (the right one first).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.diagnosis.arms import (
    KEPT,
    MARKERS,
    ORACLE,
    OWN,
    REMOVED,
    SOURCES,
    first_slots,
    from_altered,
    shown,
    slot_counts,
)
from eval.diagnosis.cases import Case
from eval.diagnosis.collect import Collected
from eval.diagnosis.findings import Alteration, Arm, Attention, Gap, Leakage, Source
from eval.diagnosis.probe import probe_accuracy
from eval.paired import Counts, exact_p
from eval.replacements import GIVEN, moved_by, unchanged, unmoved
from eval.scores import Estimate, Z, paired_difference, proportion
from model.attention_probe import IMAGES, LATENTS
from model.latent import Gaussian, kl

TINY = 1e-12


class Answers(NamedTuple):
    """One arm over items, in their order."""

    nats: np.ndarray  # [N] -log p(right answer)
    choice: np.ndarray  # [N] number of the likeliest candidate
    right: np.ndarray  # [N] bool


def answers(collected: Collected, arm: str) -> Answers:
    """ValueError where an item lacks the arm."""
    if missing := [case.key for case in collected.cases if arm not in collected.scores[case.key]]:
        raise ValueError(f"arm {arm}: not there for {missing[0]}")
    return _answers(collected.cases, [collected.scores[case.key][arm] for case in collected.cases])


def _answers(cases: Sequence[Case], scores: Sequence[Tensor]) -> Answers:
    choice = np.array([int(of_case.argmax()) for of_case in scores])
    nats = np.array([-float(of_case[case.right]) for case, of_case in zip(cases, scores, strict=True)])
    return Answers(nats, choice, choice == np.array([case.right for case in cases]))


def mean_of(values: np.ndarray, most: float = 0.0) -> Estimate:
    """Mean of at least two values, with a normal 95 % interval.

    most: how far from the mean a value can be at all. Where all are alike their spread is no guide: then as many as
    Clopper and Pearson (1934) allow where none of n was seen, 1 - 0.025^(1/n), may be that far away.
    """
    value, se = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    margin = Z * se if se > TINY else most * (1 - 0.025 ** (1 / len(values)))
    return Estimate(value=value, se=se, low=value - margin, high=value + margin)


def gap_of(collected: Collected) -> Gap:
    """NLL and accuracy by where z comes from, and what the way from training to inference costs."""
    there = [name for name, arm in SOURCES.items() if arm in collected.scores[collected.cases[0].key]]
    found = {name: answers(collected, SOURCES[name]) for name in there}
    sources = {
        name: Source(nats=mean_of(a.nats), accuracy=proportion(int(a.right.sum()), len(a.right)))
        for name, a in found.items()
    }
    if "posterior" not in found:
        return Gap(sources=sources, mean=None, drawn=None, accuracy=None)
    q, mean, drawn = found["posterior"], found["prior_mean"], found["prior"]
    return Gap(
        sources=sources,
        mean=mean_of(mean.nats - q.nats),
        drawn=mean_of(drawn.nats - q.nats),
        accuracy=_change(mean.right, q.right),
    )


def leakage_of(collected: Collected) -> Leakage | None:
    """None without a posterior."""
    cases = collected.cases
    if not len(collected.beliefs[cases[0].key].posteriors.mean):
        return None
    own = answers(collected, OWN).choice
    rate, base, sensitivity = (np.zeros(len(cases)) for _ in range(3))
    for n, case in enumerate(cases):
        said = [int(collected.scores[case.key][shown(wrong)].argmax()) for wrong in case.wrong]
        rate[n] = np.mean([choice == wrong for choice, wrong in zip(said, case.wrong, strict=True)])
        base[n] = np.mean([own[n] == wrong for wrong in case.wrong])
        sensitivity[n] = _symmetric_kl(collected.beliefs[case.key].posteriors)
    labels = [case.candidates[case.right] for case in cases]
    q = torch.stack([collected.beliefs[case.key].posteriors.mean[0].flatten() for case in cases]).numpy()
    p = torch.stack([collected.beliefs[case.key].prior.mean.flatten() for case in cases]).numpy()
    posterior, majority = probe_accuracy(q, labels)
    inflation, by_answers = _inflation(collected)
    return Leakage(
        rate=mean_of(rate, 1),
        base=mean_of(base, 1),
        excess=mean_of(rate - base, 1),
        sensitivity=mean_of(sensitivity),
        probe_posterior=posterior,
        probe_prior=probe_accuracy(p, labels)[0],
        probe_majority=majority,
        inflation=inflation,
        inflation_by_answers=by_answers,
    )


def _symmetric_kl(posteriors: Gaussian) -> float:
    """Mean over wrong answers of KL both ways from the right one's posterior [A, k, d], nats."""
    right = Gaussian(posteriors.mean[:1], posteriors.log_sigma[:1])
    wrong = Gaussian(posteriors.mean[1:], posteriors.log_sigma[1:])
    return float((kl(right, wrong) + kl(wrong, right)).sum((1, 2)).mean())


def _inflation(collected: Collected) -> tuple[float, float]:
    """(prior's variance over the posterior's, 1 + variance of the posterior's means over answers / its own variance).

    Means over items, slots and dimensions; answers weigh as likely as the model takes them for at the prior's mean.
    """
    ratios, expected = [], []
    for case in collected.cases:
        beliefs = collected.beliefs[case.key]
        asked = torch.tensor([case.right, *case.wrong])
        weights = collected.scores[case.key][KEPT][asked].softmax(0)[:, None, None]  # [A, 1, 1]
        means, own = beliefs.posteriors.mean.double(), (2 * beliefs.posteriors.log_sigma.double()).exp()
        within = (weights * own).sum(0)
        between = (weights * (means - (weights * means).sum(0)) ** 2).sum(0)
        ratios.append(float(((2 * beliefs.prior.log_sigma.double()).exp() / within).mean()))
        expected.append(float((1 + between / within).mean()))
    return float(np.mean(ratios)), float(np.mean(expected))


def use_of(collected: Collected) -> tuple[dict[str, Arm], dict[int, Arm]]:
    """(interventions by name, with so many slots alone), each against the prior's mean."""
    there = collected.scores[collected.cases[0].key]
    names = [name for name in (KEPT, *GIVEN, ORACLE, MARKERS, REMOVED) if name in there]
    k = len(collected.beliefs[collected.cases[0].key].prior.mean)
    return (
        {name: _arm(collected, name, _distance(collected, name)) for name in names},
        {count: _arm(collected, first_slots(count), None) for count in slot_counts(k)},
    )


def _arm(collected: Collected, name: str, moved: Tensor | None) -> Arm:
    kept, found = answers(collected, KEPT), answers(collected, name)
    only_kept, only_found = int((kept.right & ~found.right).sum()), int((found.right & ~kept.right).sum())
    both, n = int((kept.right & found.right).sum()), len(kept.right)
    counts = Counts(both, only_kept, only_found, n - both - only_kept - only_found)
    no_effect = None
    if name != KEPT:
        pairs = ((of_case[KEPT].tolist(), of_case[name].tolist()) for of_case in collected.scores.values())
        no_effect = (unchanged(name, moved) if moved is not None else None) or unmoved(pairs)
    return Arm(
        accuracy=proportion(int(found.right.sum()), n),
        change=paired_difference(only_kept, only_found, n),
        nats=mean_of(found.nats - kept.nats),
        flips=proportion(int((found.choice != kept.choice).sum()), n),
        moved=None if moved is None else float(moved.median()),
        p=exact_p(counts),
        no_effect=no_effect,
    )


def _distance(collected: Collected, name: str) -> Tensor | None:
    """|z - m| / |m| of each item [N], m the prior's mean; None for arms without a z of k slots."""
    means = {case.key: collected.beliefs[case.key].prior.mean for case in collected.cases}
    if name == ORACLE:
        return moved_by({key: collected.beliefs[key].posteriors.mean[0] for key in means}, means)
    return moved_by(collected.given[name], means) if name in GIVEN else None


def inputs_of(collected: Collected) -> dict[str, Alteration]:
    """Alterations that apply to two items at least."""
    found = {}
    others = collected.given.get("other_item")
    for name, moved in collected.moved.items():
        chosen = [case for case in collected.cases if case.key in moved]
        if len(chosen) < 2 or others is None:
            continue
        means = {case.key: collected.beliefs[case.key].prior.mean for case in chosen}
        distance = sum(float((moved[key] - m).norm()) for key, m in means.items())
        between = sum(float((others[key] - m).norm()) for key, m in means.items())
        kept = _answers(chosen, [collected.scores[c.key][KEPT] for c in chosen])
        seen = _answers(chosen, [collected.altered[name][c.key] for c in chosen])
        alone = _answers(chosen, [collected.scores[c.key][from_altered(name)] for c in chosen])
        found[name] = Alteration(
            n=len(chosen),
            moved=distance / max(between, TINY),
            change=_change(kept.right, seen.right),
            flips=proportion(int((seen.choice != kept.choice).sum()), len(chosen)),
            latents_alone=proportion(int((alone.choice != kept.choice).sum()), len(chosen)),
        )
    return found


def _change(before: np.ndarray, after: np.ndarray) -> Estimate:
    """Of the accuracy, paired."""
    return paired_difference(int((before & ~after).sum()), int((after & ~before).sum()), len(before))


def attention_of(collected: Collected) -> Attention:
    """Means over items; those on pictures over items that have some."""
    answer = collected.answer_attention
    pictured = torch.tensor([len(case.item.grids) > 0 for case in collected.cases[: len(answer)]])
    images = answer[pictured, :, IMAGES] if pictured.any() else answer[:1, :, IMAGES] * 0
    slots = collected.latent_attention[pictured] if pictured.any() else collected.latent_attention[:1] * 0
    return Attention(
        answer_to_latents=answer[:, :, LATENTS].mean(0).tolist(),
        answer_to_images=images.mean(0).tolist(),
        latents_to_images=slots.mean(0).tolist(),
    )
