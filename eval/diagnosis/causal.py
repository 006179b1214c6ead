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

# Arms that ask what z holds: all of them are such as the model meets. Zeros, N(0, I) and one slot in every place are
# not: answers may change because z is strange, whatever it held.
CONTENTS = ("other_item", "matched_noise", "data_mean", "shuffled")
PICTURES = ("image_swap", "blank_image")


def present(arm: Arm | None) -> Verdict | None:
    """`arm`: without latents."""
    question = "Does the answer depend on the latents being there?"
    if arm is None:
        return None
    if arm.no_effect:
        return verdict(question, "unclear", OPEN, "taking them away had no effect", arm.no_effect)
    answer, _ = _depends({"removed": arm})
    how = _effect(answer, arm)
    meaning = {
        GOOD: "the model answers worse without its latents, so it does use them",
        BAD: "the model answers better without its latents"
        if answer == "yes"
        else "the model answers as well without its latents: they cost time and bring nothing",
        OPEN: MORE,
        NOTE: "answers change when the latents go, but not clearly for the better or the worse",
    }[how]
    numbers = f"accuracy {told(arm.change)} when they are removed; {_changes(arm)}"
    return verdict(question, answer, how, meaning, numbers)


def contents(use: Mapping[str, Arm]) -> Verdict | None:
    """By the strongest of CONTENTS."""
    question = "Does the answer depend on what the latents hold?"
    every = {name: use[name] for name in CONTENTS if name in use}
    arms = {name: arm for name, arm in every.items() if arm.no_effect is None}
    idle = {name: arm.no_effect for name, arm in every.items() if arm.no_effect}
    if not arms:
        said = "; ".join(f"{name}: {why}" for name, why in idle.items())
        return verdict(question, "unclear", OPEN, "putting others in their place had no effect", said) if idle else None
    answer, name = _depends(arms)
    arm, how = arms[name], _effect(answer, arms[name])
    meaning = {
        GOOD: "the model reads what its latents hold",
        BAD: "other latents serve it better than its own"
        if answer == "yes"
        else "any latents of the kind do as well: the model does not read what they hold",
        OPEN: MORE,
        NOTE: "the model reads its latents, but not clearly to its gain",
    }[how]
    if arm.moved is not None and arm.moved < ALIKE and answer != "yes":
        meaning += "; but these latents hardly differ from its own, so there was little to read"
    if idle:
        meaning += f"; {', '.join(idle)} had no effect and does not count"
    moved = "" if arm.moved is None else f", which moves z by {arm.moved:.2f} of its length"
    of = f", the strongest of {len(arms)} arms" if len(arms) > 1 else ""
    numbers = f"accuracy {told(arm.change)} with {name}{of}{moved}; {_changes(arm)}"
    return verdict(question, answer, how, meaning, numbers)


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


def pictures(inputs: Mapping[str, Alteration]) -> Verdict | None:
    """By the way of the latents, which has no interval."""
    seen = {name: inputs[name] for name in PICTURES if name in inputs}
    if not seen:
        return None
    farthest = max(of.moved for of in seen.values())
    answer: Answer = "yes" if farthest >= FAR else "no" if farthest < NEAR else "unclear"
    how, meaning = {
        "yes": (GOOD, "other pictures make other latents"),
        "no": (BAD, "the latents are nearly the same whatever the pictures show"),
        "unclear": (OPEN, "they move, but by less than half of the way"),
    }[answer]
    moves = ", ".join(f"{of.moved:.2f} with {name} ({of.n} items)" for name, of in seen.items())
    numbers = f"the prior's mean moves by {moves}, 1 being the distance between two items (no interval)"
    return verdict("Do the latents depend on the picture?", answer, how, meaning, numbers)


def reaches(inputs: Mapping[str, Alteration]) -> Verdict | None:
    """By the answers that change when the latents alone see another picture."""
    seen = {name: inputs[name] for name in PICTURES if name in inputs}
    if not seen:
        return None
    answer: Answer = "unclear"
    if any(of.latents_alone.low > FLIPS for of in seen.values()):
        answer = "yes"
    elif all(of.latents_alone.high < FLIPS for of in seen.values()):
        answer = "no"
    how, meaning = {
        "yes": (GOOD, "what the latents saw reaches the answer"),
        "no": (BAD, "the answer comes from the prompt itself, past the latents"),
        "unclear": (OPEN, MORE),
    }[answer]
    numbers = "; ".join(
        f"with {name} {share(of.latents_alone)} of the answers change when the latents alone see it, "
        f"{share(of.flips)} when the answer sees it too"
        for name, of in seen.items()
    )
    return verdict("Does the picture reach the answer through the latents?", answer, how, meaning, numbers)


def _depends(arms: Mapping[str, Arm]) -> tuple[Answer, str]:
    """The answer, and the arm that it goes by: of those that change something the one that changes most."""
    felt = [name for name, arm in arms.items() if _felt(arm, len(arms))]
    strongest = max(felt or arms, key=lambda name: (abs(arms[name].change.value), arms[name].flips.value))
    if felt:
        return "yes", strongest
    return "no" if all(map(_idle, arms.values())) else "unclear", strongest


def _felt(arm: Arm, tries: int) -> bool:
    """Whether answers change for certain: in accuracy, p adjusted for the number of arms tried, or one by one."""
    clear = arm.change.high < 0 or arm.change.low > 0
    return (clear and arm.p * tries < LEVEL) or arm.flips.low > FLIPS


def _idle(arm: Arm) -> bool:
    """Whether they hardly do for certain."""
    return arm.change.low >= -LITTLE and arm.change.high <= LITTLE and arm.flips.high <= FLIPS


def _effect(answer: Answer, arm: Arm) -> str:
    """A dependence is good where the model answers worse without."""
    if answer != "yes":
        return {"no": BAD, "unclear": OPEN}[answer]
    return GOOD if arm.change.high < 0 else BAD if arm.change.low > 0 else NOTE


def _changes(arm: Arm) -> str:
    return f"{share(arm.flips)} of the answers change (McNemar's p {arm.p:.2g})"
