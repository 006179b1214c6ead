"""Verdicts on cause and effect: does the answer depend on the latents, and they on the picture?"""

from collections.abc import Mapping

from eval.diagnosis.findings import Alteration, Arm, Verdict
from eval.diagnosis.said import (
    ALIKE,
    BAD,
    FAR,
    FLIPS,
    GOOD,
    LITTLE,
    MORE,
    NEAR,
    NOTE,
    OPEN,
    Answer,
    share,
    told,
    verdict,
)
from eval.paired import LEVEL

# The arm that asks what z holds, and the alteration that asks what it saw: the model meets such latents and such
# pictures all the time. With zeros, noise, means, other orders or a blank picture answers may change because z or the
# picture is strange, whatever it held.
CONTENTS = "other_item"
PICTURES = "image_swap"


def present(arm: Arm | None) -> Verdict | None:
    """`arm`: without latents."""
    return _dependence(
        "Does the answer depend on the latents being there?",
        arm,
        "when they are removed",
        idle="taking them away had no effect",
        worse="the model answers worse without its latents, so it does use them",
        better="the model answers better without its latents",
        as_well="the model answers as well without its latents: they cost time and bring nothing",
        other="answers change when the latents go, but not clearly for the better or the worse",
    )


def contents(arm: Arm | None) -> Verdict | None:
    """`arm`: with latents of CONTENTS."""
    return _dependence(
        "Does the answer depend on what the latents hold?",
        arm,
        "with another item's",
        idle="putting others in their place had no effect",
        worse="the model reads what its latents hold",
        better="other latents serve it better than its own",
        as_well="another item's latents do as well: the model does not read what they hold",
        other="the model reads its latents, but not clearly to its gain",
    )


def _dependence(
    question: str, arm: Arm | None, change: str, *, idle: str, worse: str, better: str, as_well: str, other: str
) -> Verdict | None:
    """By one arm. `change`: what it does, behind the accuracy; then what it means if it does nothing, and if the model
    answers worse, better, as well, or otherwise.
    """
    if arm is None:
        return None
    if arm.no_effect:
        return verdict(question, "unclear", OPEN, idle, arm.no_effect)
    answer = _depends(arm)
    how = _effect(answer, arm)
    meaning = {GOOD: worse, BAD: better if answer == "yes" else as_well, OPEN: MORE, NOTE: other}[how]
    if arm.moved is not None and arm.moved < ALIKE and answer != "yes":
        meaning += "; but these latents hardly differ from its own, so there was little to read"
    moved = "" if arm.moved is None else f", which moves z by {arm.moved:.2f} of its length"
    return verdict(question, answer, how, meaning, f"accuracy {told(arm.change)} {change}{moved}; {_changes(arm)}")


def marks(removed: Arm | None, markers: Arm | None) -> Verdict | None:
    """Asked where the latents are worth something: else there is nothing that marks could do in their place."""
    if removed is None or markers is None or removed.change.high >= 0 or markers.no_effect:
        return None
    change = markers.change
    answer: Answer = "yes" if change.low >= -LITTLE else "no" if change.high < 0 else "unclear"
    how, meaning = {
        "yes": (BAD, "the marks around the latents do all that the latents seemed to do"),
        "no": (GOOD, "the marks alone do not make up for the latents"),
        "unclear": (OPEN, MORE),
    }[answer]
    numbers = (
        f"accuracy {told(change)} with the marks and nothing between them, "
        f"{told(removed.change)} without marks and latents"
    )
    return verdict("Do the marks around the latents do it alone?", answer, how, meaning, numbers)


def slots(by_slots: Mapping[int, Arm], count: int) -> Verdict | None:
    """`count`: that of the model. Fewer are enough where the accuracy loses no more than LITTLE for certain."""
    fewer = {number: arm for number, arm in sorted(by_slots.items()) if 0 < number < count and not arm.no_effect}
    if not fewer:
        return None
    enough = next((number for number, arm in fewer.items() if arm.change.low >= -LITTLE), None)
    shown = enough or max(fewer)
    answer: Answer = "no" if enough else "yes" if fewer[shown].change.high < 0 else "unclear"
    how, meaning = {
        "yes": (GOOD, "the last ones add to the answer too"),
        "no": (NOTE, f"the first {shown} would do, and would cost less"),
        "unclear": (OPEN, MORE),
    }[answer]
    numbers = f"accuracy {told(fewer[shown].change)} with the first {shown} of {count} slots"
    return verdict(f"Are all {count} slots needed?", answer, how, meaning, numbers)


def pictures(seen: Alteration | None) -> Verdict | None:
    """By the way of the latents with the pictures of PICTURES, which has no interval."""
    if seen is None:
        return None
    answer: Answer = "yes" if seen.moved >= FAR else "no" if seen.moved < NEAR else "unclear"
    how, meaning = {
        "yes": (GOOD, "other pictures make other latents"),
        "no": (BAD, "the latents are nearly the same whatever the pictures show"),
        "unclear": (OPEN, "they move, but by less than half of the way"),
    }[answer]
    numbers = (
        f"the prior's mean moves by {seen.moved:.2f} with another item's pictures ({seen.n} items), 1 being the "
        "distance between two items (no interval)"
    )
    return verdict("Do the latents depend on the picture?", answer, how, meaning, numbers)


def reaches(seen: Alteration | None) -> Verdict | None:
    """By the answers that change when the latents alone see the pictures of PICTURES."""
    if seen is None:
        return None
    alone = seen.latents_alone
    answer: Answer = "yes" if alone.low > FLIPS else "no" if alone.high < FLIPS else "unclear"
    how, meaning = {
        "yes": (GOOD, "what the latents saw reaches the answer"),
        "no": (BAD, "the answer comes from the prompt itself, past the latents"),
        "unclear": (OPEN, MORE),
    }[answer]
    numbers = (
        f"{share(alone)} of the answers change when the latents alone see another item's pictures, {share(seen.flips)} "
        "when the answer sees them too"
    )
    return verdict("Does the picture reach the answer through the latents?", answer, how, meaning, numbers)


def _depends(arm: Arm) -> Answer:
    """Yes where answers change for certain, in accuracy or one by one; no where they hardly do for certain."""
    clear = (arm.change.high < 0 or arm.change.low > 0) and arm.p < LEVEL
    if clear or arm.flips.low > FLIPS:
        return "yes"
    idle = arm.change.low >= -LITTLE and arm.change.high <= LITTLE and arm.flips.high <= FLIPS
    return "no" if idle else "unclear"


def _effect(answer: Answer, arm: Arm) -> str:
    """A dependence is good where the model answers worse without."""
    if answer != "yes":
        return {"no": BAD, "unclear": OPEN}[answer]
    return GOOD if arm.change.high < 0 else BAD if arm.change.low > 0 else NOTE


def _changes(arm: Arm) -> str:
    return f"{share(arm.flips)} of the answers change (McNemar's p {arm.p:.2g})"
