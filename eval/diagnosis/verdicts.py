"""The answers of a diagnosis in plain language, each with the numbers it rests on.

eval/diagnosis/said.py has the limits, and how answers go by intervals; eval/diagnosis/causal.py the questions on cause
and effect. Shares and changes of accuracy go from 0 to 1 (-1 to 1), nats are per answer.
"""

from eval.diagnosis import causal
from eval.diagnosis.findings import Arm, Findings, Geometry, Leakage, Verdict
from eval.diagnosis.said import (
    ALIKE,
    APART,
    BAD,
    BLIND,
    GOOD,
    HANDED,
    LITTLE,
    MORE,
    NARROW,
    NATS,
    NOTE,
    OPEN,
    WIDE,
    Answer,
    share,
    told,
    verdict,
)
from eval.scores import Estimate, proportion


def verdicts(found: Findings) -> list[Verdict]:
    """One for every question that these findings have the numbers for; verdicts that they hold already do not count."""
    leakage, noise = found.leakage, found.use.get("unit_noise")
    asked = [
        causal.present(found.use.get("removed")),
        causal.contents(found.use.get(causal.CONTENTS)),
        causal.marks(found.use.get("removed"), found.use.get("markers")),
        causal.slots(found.by_slots, found.slots),
        _agrees("Is the model as good at inference as in training?", "the prior's mean", found.gap.mean, noise),
        _agrees("Is it as good when z is drawn from the prior?", "z drawn from the prior", found.gap.drawn, noise),
        _handed(leakage) if leakage else None,
        _inflated(leakage) if leakage else None,
        _knows(leakage, found.n) if leakage and leakage.probe_majority < 1 else None,  # else there is nothing to know
        causal.pictures(found.inputs.get(causal.PICTURES)),
        causal.reaches(found.inputs.get(causal.PICTURES)),
        _differ(found.geometry),
    ]
    return [one for one in asked if one is not None]


def _agrees(question: str, what: str, gap: Estimate | None, noise: Arm | None) -> Verdict | None:
    """In training z comes from the posterior, which knows the answer. Where `noise` (z ~ N(0, I)) costs hardly more
    than the prior's mean, agreement is no merit.
    """
    if gap is None:
        return None
    answer: Answer = "yes" if gap.high <= NATS else "no" if gap.low > NATS else "unclear"
    how, meaning = {
        "yes": (GOOD, "what the model learned in training is there when it is asked"),
        "no": (BAD, "the model learned to answer from latents that it does not have when it is asked"),
        "unclear": (OPEN, MORE),
    }[answer]
    numbers = f"the right answer costs {told(gap)} nats more with {what} than with the posterior (limit {NATS:g})"
    if noise is not None:
        numbers += f"; noise costs {told(noise.nats)} nats more than the prior's mean"
        if answer == "yes" and noise.nats.high <= NATS:
            how, meaning = NOTE, "as good, but so is noise in the place of z, which holds nothing"
    return verdict(question, answer, how, meaning, numbers)


def _handed(of: Leakage) -> Verdict:
    """By what the model does when the posterior is shown a wrong answer; distances and probes are told beside it."""
    answer: Answer = "yes" if of.excess.low > HANDED else "no" if of.excess.high < HANDED else "unclear"
    how, meaning = {
        "yes": (BAD, "training reads the answer off the posterior's latents, so it need not learn to find it"),
        "no": (GOOD, "the posterior's latents do not tell the model what to answer"),
        "unclear": (OPEN, MORE),
    }[answer]
    if answer == "no" and of.sensitivity.high < BLIND:
        how, meaning = (
            NOTE,
            "the posterior is the same whatever the answer: nothing to hand over, nor to learn",
        )
    numbers = (
        f"shown a wrong answer, the posterior makes the model give it {told(of.excess)} more often than else "
        f"({share(of.rate)} against {share(of.base)}; limit {HANDED:g}); the posteriors of a right and a wrong answer "
        f"are {share(of.sensitivity)} nats apart, and a linear probe reads the answer off {of.probe_posterior:.3f} of "
        f"them (always the commonest: {of.probe_majority:.3f})"
    )
    return verdict("Does the posterior hand over the answer?", answer, how, meaning, numbers)


def _inflated(of: Leakage) -> Verdict:
    """No interval: the ratios are means over items, slots and dimensions, so it is what they mean that is uncertain."""
    answer: Answer = "unclear"
    how, meaning = OPEN, "too near to 1 to tell"
    if min(of.inflation, of.inflation_by_answers) >= WIDE:
        answer, how = "yes", BAD
        meaning = "the prior spreads over what the posterior holds for different answers, instead of choosing one"
    elif of.inflation < NARROW:
        answer, how, meaning = "no", GOOD, "the prior is about as sure as the posterior"
    elif of.inflation_by_answers < NARROW:
        answer, how, meaning = "no", GOOD, "the prior is wider, but not because the answers' posteriors lie apart"
    numbers = (
        f"the prior's variance is {of.inflation:.2f} times the posterior's; covering all answers alone would make it "
        f"{of.inflation_by_answers:.2f} times (both without an interval)"
    )
    return verdict("Does the prior's spread hold the answers?", answer, how, meaning, numbers)


def _knows(of: Leakage, n: int) -> Verdict:
    """Wilson's interval over all n items: each of them is predicted once."""
    probe = proportion(round(of.probe_prior * n), n)
    answer: Answer = "unclear"
    if probe.low > of.probe_majority:
        answer = "yes"
    elif probe.high < of.probe_majority + LITTLE:
        answer = "no"
    numbers = (
        f"a linear probe on the prior's mean finds the answer in {share(probe)} of the items, always the commonest "
        f"answer in {of.probe_majority:.3f}, a probe on the posterior's mean in {of.probe_posterior:.3f}"
    )
    meaning = {
        "yes": "the answer can be read off the latents of inference; the first questions ask whether the model does",
        "no": "no linear probe of so many items finds it there; it may be there in another form",
        "unclear": MORE,
    }[answer]
    return verdict("Does the prior know the answer?", answer, NOTE, meaning, numbers)


def _differ(of: Geometry) -> Verdict:
    """A description, by the spread; no interval."""
    answer: Answer = "yes" if of.spread >= APART else "no" if of.spread < ALIKE else "unclear"
    numbers = (
        f"items lie {of.spread:.3f} of the mean's length from it; the cosine between two items' is {of.across:.3f}; "
        f"effective rank {of.effective_rank:.1f} of at most {of.most_rank} (none has an interval)"
    )
    meaning = {
        "yes": "each item has latents of its own",
        "no": "all items have nearly the same latents, so exchanging them can change little",
        "unclear": "they differ somewhat",
    }[answer]
    return verdict("Do the latents differ between items?", answer, NOTE, meaning, numbers)
