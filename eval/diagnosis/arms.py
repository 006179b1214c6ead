"""Every z that is put behind an item's prompt, by the name of its arm.

Letters in shapes: k slots, j <= k of them, d latent width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eval.diagnosis.cases import Case
from eval.replacements import GIVEN, ONE_SLOT, replacement
from model.batch import generator_of
from model.latent import Gaussian
from model.replaced import Beliefs, Latents

KEPT, REMOVED, MARKERS, ORACLE = "kept", "removed", "markers", "oracle"
SOURCES = {  # of the gap: where z comes from, and its arm
    "posterior": "posterior",
    "prior_mean": KEPT,
    "prior": "prior",
    "noise": "unit_noise",
}
OWN, GIVEN_ANSWER = "posterior", "shown"  # z ~ q(z | x, y) of the right answer, and of wrong ones, by number


def shown(number: int) -> str:
    """The arm of z ~ q(z | x, y') for the candidate of that number."""
    return f"{GIVEN_ANSWER} {number}"


def first_slots(count: int) -> str:
    """The arm with the first `count` slots of the prior's mean."""
    return f"slots {count}"


def from_altered(name: str) -> str:
    """The arm whose latents alone saw an altered prompt."""
    return f"latents {name}"


def slot_counts(k: int) -> list[int]:
    """Powers of two below k."""
    return [2**n for n in range(k.bit_length()) if 2**n < k]


def gap_arms(cases: Sequence[Case], beliefs: Mapping[str, Beliefs], seed: int) -> dict[str, dict[str, Latents]]:
    """By key, those of SOURCES: draws share their noise, so that they differ by their Gaussians alone."""
    arms: dict[str, dict[str, Latents]] = {}
    for case in cases:
        prior, posteriors = beliefs[case.key]
        noise = torch.randn(prior.mean.shape, generator=generator_of(f"{seed}/draw/{case.key}"))
        arms[case.key] = {KEPT: prior.mean}
        if len(posteriors.mean):  # without a posterior the prior's spread is not trained
            arms[case.key]["prior"] = prior.sample(noise)
        for number, mean, log_sigma in zip((OWN, *map(shown, case.wrong)), *posteriors, strict=False):
            arms[case.key][number] = Gaussian(mean, log_sigma).sample(noise)
    unit = replacement("unit_noise", list(arms), {key: beliefs[key].prior.mean for key in arms}, seed)
    return {key: of_case | {"unit_noise": unit[key]} for key, of_case in arms.items()}


def given_latents(beliefs: Mapping[str, Beliefs], seed: int) -> dict[str, dict[str, Tensor]]:
    """By arm and key, z [k, d] of those of GIVEN that so many items and slots can have."""
    means = {key: of_case.prior.mean for key, of_case in beliefs.items()}
    k = len(next(iter(means.values())))
    lost = set(ONE_SLOT) if k == 1 else set()
    if len(means) == 1:
        lost.add("other_item")
    there = [name for name in GIVEN if name not in lost]
    return {name: replacement(name, list(means), means, seed) for name in there}


def all_arms(
    cases: Sequence[Case],
    beliefs: Mapping[str, Beliefs],
    given: Mapping[str, Mapping[str, Tensor]],
    moved: Mapping[str, Mapping[str, Tensor]],
    seed: int,
) -> dict[str, dict[str, Latents]]:
    """By key, all of them; `moved`: by alteration and key, the prior's mean of the altered prompt."""
    arms = gap_arms(cases, beliefs, seed)
    for key, of_case in arms.items():
        mean, posteriors = beliefs[key].prior.mean, beliefs[key].posteriors
        of_case |= {name: z[key] for name, z in given.items()}
        of_case |= {REMOVED: None, MARKERS: mean[:0]}
        of_case |= {first_slots(count): mean[:count] for count in slot_counts(len(mean))}
        of_case |= {from_altered(name): of_key[key] for name, of_key in moved.items() if key in of_key}
        if len(posteriors.mean):
            of_case[ORACLE] = posteriors.mean[0]
    return arms
