"""What a diagnosis found: plain numbers with 95 % intervals, as diagnosis.json holds them.

Shares go from 0 to 1, nats are per answer (all its tokens, the end mark too), changes are paired by item.
"""

from typing import Any

from eval.scores import Estimate, Frozen


class Source(Frozen):
    """Answers with z from one place."""

    nats: Estimate  # -log p(right answer | x, z)
    accuracy: Estimate  # the right answer is the likeliest of the candidates


class Gap(Frozen):
    """Between training, which draws z from the posterior, and inference, which has the prior alone."""

    sources: dict[
        str, Source
    ]  # posterior (z ~ q), prior_mean, prior (z ~ p), noise (z ~ N(0, I)); q where there is one
    mean: Estimate | None  # nats at the prior's mean less those with z ~ q
    drawn: Estimate | None  # nats with z ~ p less those with z ~ q
    accuracy: Estimate | None  # accuracy with z ~ q less that at the prior's mean


class Leakage(Frozen):
    """How much of the answer the posterior hands over. Wrong answers are those of the item's other candidates."""

    rate: Estimate  # answers that become the wrong answer y' shown, with z ~ q(z | x, y')
    base: Estimate  # answers that are that y' all the same, with z ~ q(z | x, y)
    excess: Estimate  # rate - base
    sensitivity: Estimate  # symmetric KL between the posteriors of the right and of a wrong answer, nats
    probe_posterior: float  # accuracy of a linear probe for the answer on the posterior's mean, cross-validated
    probe_prior: float  # on the prior's mean
    probe_majority: float  # always the commonest answer
    inflation: float  # prior's variance over the posterior's, mean over slots and dimensions
    # 1 + variance of the posterior's means over answers / its own variance: what the forward KL alone would inflate to
    inflation_by_answers: float


class Arm(Frozen):
    """One intervention on the latents, against the prior's mean."""

    accuracy: Estimate
    change: Estimate  # of the accuracy
    nats: Estimate  # change of -log p(right answer)
    flips: Estimate  # items whose likeliest answer is another
    moved: float | None  # median of |z - m| / |m|, m the prior's mean; None where there is no z
    p: float  # exact McNemar
    no_effect: str | None = None  # why this intervention is none; then it says nothing about the model


class Alteration(Frozen):
    """The prompt itself altered: how far the latents move with it, and the answers."""

    n: int
    moved: float  # mean distance of the prior's mean from its own, over that between two items
    change: Estimate  # of the accuracy, the answer seeing the altered prompt too
    flips: Estimate
    latents_alone: Estimate  # items whose answer flips if the latents alone saw the altered prompt


class Geometry(Frozen):
    """Descriptions of the prior's means; none is a score of quality."""

    effective_rank: float  # exp of the entropy of the singular values of the centred means (Roy and Vetterli 2007)
    most_rank: int  # the most it can be with so many items
    within: float | None  # mean cosine between two slots of an item; None with one slot
    across: float  # mean cosine between the same slot of two items, over all pairs
    spread: float  # root mean square distance from the data's mean, over the root mean square of the means; at most 1
    slot_spread: list[float]  # of each slot, root mean square distance, not over its length
    sigma_prior: list[float]  # mean of each slot
    sigma_posterior: list[float] | None


class Attention(Frozen):
    """Mass of the attention, mean over heads and items, by layer of the language model."""

    answer_to_latents: list[float]  # from the token that predicts the answer's first
    answer_to_images: list[float]
    latents_to_images: list[float]


class Verdict(Frozen):
    """One question in plain language."""

    question: str
    answer: str  # yes, no, or unclear
    said: str  # with the numbers it rests on


class Findings(Frozen):
    """All of it."""

    facts: dict[str, Any]  # model, step, data, objective, settings, versions
    n: int
    slots: int
    width: int
    gap: Gap
    leakage: Leakage | None  # None: the model has no posterior
    use: dict[str, Arm]
    by_slots: dict[int, Arm]  # only so many slots, the first ones
    inputs: dict[str, Alteration]
    geometry: Geometry
    attention: Attention
    verdicts: list[Verdict]
