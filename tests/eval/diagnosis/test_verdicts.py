"""Verdicts: each of them yes, no and unclear, and left out where there is nothing to go by."""

from typing import Any

import pytest

from eval.diagnosis.findings import Alteration, Arm, Attention, Findings, Gap, Geometry, Leakage, Source, Verdict
from eval.diagnosis.said import STANDINGS, standing
from eval.diagnosis.verdicts import verdicts
from eval.scores import Estimate

K = 8
PRESENT = "Does the answer depend on the latents being there?"
HOLD = "Does the answer depend on what the latents hold?"
MARKS = "Do the marks around the latents do it alone?"
NEEDED = f"Are all {K} slots needed?"
AS_WELL = "Is the model as good at inference as in training?"
DRAWN = "Is it as good when z is drawn from the prior?"
HANDED = "Does the posterior hand over the answer?"
SPREAD = "Does the prior's spread hold the answers?"
KNOWS = "Does the prior know the answer?"
PICTURE = "Do the latents depend on the picture?"
REACHES = "Does the picture reach the answer through the latents?"
DIFFER = "Do the latents differ between items?"
ALL = [PRESENT, HOLD, MARKS, NEEDED, AS_WELL, DRAWN, HANDED, SPREAD, KNOWS, PICTURE, REACHES, DIFFER]


def about(value: float, margin: float = 0.03) -> Estimate:
    return Estimate(value=value, se=margin / 1.96, low=value - margin, high=value + margin)


def share(value: float, margin: float = 0.02) -> Estimate:
    return Estimate(value=value, se=margin / 1.96, low=max(0.0, value - margin), high=min(1.0, value + margin))


def arm(change: float, flips: float, margin: float = 0.03, p: float | None = None, moved: float | None = 0.6) -> Arm:
    """`p` as the interval has it, unless it is given."""
    return Arm(
        accuracy=share(0.8 + change),
        change=about(change, margin),
        nats=about(-2 * change, 2 * margin),
        flips=share(flips),
        moved=moved,
        p=(0.0004 if abs(change) > margin else 0.6) if p is None else p,
    )


LOST, SAME, DOUBT = arm(-0.21, 0.3), arm(0.0, 0.01, margin=0.01), arm(-0.02, 0.05)
BETTER, CHANGED = arm(0.1, 0.2), arm(-0.01, 0.2)


def altered(moved: float, alone: float, margin: float = 0.02) -> Alteration:
    return Alteration(n=400, moved=moved, change=about(-0.3), flips=share(0.5), latents_alone=share(alone, margin))


def found(**parts: Any) -> Findings:
    """Those of a model that is as it should be; `parts` take the place of its own."""
    sources = {"posterior": (0.42, 0.83), "prior_mean": (0.47, 0.81), "prior": (0.5, 0.8), "noise": (2.1, 0.41)}
    whole: dict[str, Any] = {
        "facts": {
            "model": "runs/demo/step_4000",
            "step": 4000,
            "data": "heldout",
            "objective": {"beta": 1.0, "gamma": 0.1},
            "settings": {"seed": 0, "limit": 400, "dtype": "bfloat16"},
            "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
        },
        "n": 400,
        "slots": K,
        "width": 512,
        "gap": Gap(
            sources={name: Source(nats=about(n, 0.04), accuracy=share(a)) for name, (n, a) in sources.items()},
            mean=about(0.05),
            drawn=about(0.06, 0.035),
            accuracy=about(0.02),
        ),
        "leakage": leaking(),
        "use": {
            "kept": arm(0.0, 0.0, margin=0.01, p=1.0, moved=None),
            "removed": arm(-0.21, 0.3, moved=None),
            "zero": arm(-0.16, 0.25, moved=1.0),
            "unit_noise": arm(-0.24, 0.37, moved=1.4),
            "matched_noise": arm(-0.08, 0.15),
            "data_mean": arm(-0.07, 0.12, moved=0.45),
            "first_slot": arm(-0.11, 0.17, moved=0.8),
            "shuffled": arm(-0.05, 0.1, moved=0.9),
            "other_item": arm(-0.14, 0.23, moved=0.66),
            "markers": arm(-0.17, 0.27, moved=None),
            "oracle": arm(0.02, 0.05, moved=0.12),
        },
        "by_slots": {1: arm(-0.13, 0.2), 2: arm(-0.1, 0.15), 4: arm(-0.05, 0.09)},
        "inputs": {
            "image_swap": altered(0.9, 0.2),
            "blank_image": altered(1.3, 0.3),
            "patches": altered(0.5, 0.12),
            "words": altered(0.3, 0.04),
        },
        "geometry": shape(0.45),
        "attention": Attention(
            answer_to_latents=[0.02 + 0.02 * n for n in range(12)],
            answer_to_images=[0.4 - 0.03 * n for n in range(12)],
            latents_to_images=[0.5 + 0.02 * (n % 5) for n in range(12)],
        ),
        "verdicts": [],
    }
    return Findings(**(whole | parts))


def leaking(excess: Estimate | None = None, **parts: float) -> Leakage:
    probes = {"probe_posterior": 0.41, "probe_prior": 0.38, "probe_majority": 0.26}
    spread = {"inflation": 1.06, "inflation_by_answers": 1.09}
    given = {"rate": share(0.08), "base": share(0.06), "sensitivity": about(1.3, 0.2)}
    return Leakage(**(given | {"excess": excess or about(0.02, 0.02)} | probes | spread | parts))


def shape(spread: float, slots: int = K, posterior: bool = True) -> Geometry:
    return Geometry(
        effective_rank=21.4,
        most_rank=399,
        within=0.31 if slots > 1 else None,
        across=0.74,
        spread=spread,
        slot_spread=[spread * (1 + 0.05 * n) for n in range(slots)],
        sigma_prior=[0.9 - 0.02 * n for n in range(slots)],
        sigma_posterior=[0.85 - 0.02 * n for n in range(slots)] if posterior else None,
    )


def judged(**parts: Any) -> Findings:
    """With their verdicts."""
    of = found(**parts)
    return of.model_copy(update={"verdicts": verdicts(of)})


def bare(**parts: Any) -> Findings:
    """Of a model without a posterior, with one slot, and asked without pictures."""
    gap = found().gap
    sources = {name: source for name, source in gap.sources.items() if name != "posterior"}
    mass = Attention(answer_to_latents=[0.1], answer_to_images=[0.0], latents_to_images=[0.0])
    use = {"removed": arm(-0.21, 0.3, moved=None), "other_item": arm(-0.1, 0.2)}
    given: dict[str, Any] = {
        "gap": Gap(sources=sources, mean=None, drawn=None, accuracy=None),
        "slots": 1,
        "use": use,
        "geometry": shape(0.3, slots=1, posterior=False),
        "attention": mass,
    }
    return judged(**(given | {"leakage": None, "by_slots": {}, "inputs": {}} | parts))


def verdict(question: str, **parts: Any) -> Verdict:
    return next(v for v in verdicts(found(**parts)) if v.question == question)


def test_a_model_as_it_should_be() -> None:
    given = verdicts(found())
    assert [v.question for v in given] == ALL
    assert {standing(v) for v in given} == {"Good", "Note"}
    assert (
        "Accuracy -0.210 [-0.240, -0.180] when they are removed; 0.300 [0.280, 0.320] of the answers" in given[0].said
    )


def test_what_is_missing_is_not_asked() -> None:
    given = [v.question for v in bare().verdicts]
    assert given == [PRESENT, HOLD, DIFFER]
    assert [v.question for v in bare(use={}).verdicts] == [DIFFER]
    assert REACHES not in [v.question for v in verdicts(found(inputs={"words": altered(0.3, 0.2)}))]


CASES = [
    (PRESENT, "yes", "Good", {"use": {"removed": LOST}}),
    (PRESENT, "yes", "Bad", {"use": {"removed": BETTER}}),
    (PRESENT, "yes", "Note", {"use": {"removed": CHANGED}}),
    (PRESENT, "no", "Bad", {"use": {"removed": SAME}}),
    (PRESENT, "unclear", "Open", {"use": {"removed": DOUBT}}),
    (HOLD, "yes", "Good", {"use": {"other_item": LOST}}),
    (HOLD, "yes", "Bad", {"use": {"other_item": BETTER}}),
    (HOLD, "yes", "Note", {"use": {"other_item": CHANGED}}),
    (HOLD, "no", "Bad", {"use": {"other_item": SAME}}),
    (HOLD, "unclear", "Open", {"use": {"other_item": DOUBT}}),
    (MARKS, "yes", "Bad", {"use": {"removed": LOST, "markers": SAME}}),
    (MARKS, "no", "Good", {"use": {"removed": LOST, "markers": LOST}}),
    (MARKS, "unclear", "Open", {"use": {"removed": LOST, "markers": DOUBT}}),
    (NEEDED, "yes", "Good", {"by_slots": {1: LOST, 2: LOST}}),
    (NEEDED, "no", "Note", {"by_slots": {1: LOST, 2: SAME, 4: SAME}}),
    (NEEDED, "unclear", "Open", {"by_slots": {1: LOST, 2: DOUBT}}),
    (HANDED, "yes", "Bad", {"leakage": leaking(about(0.3))}),
    (HANDED, "no", "Good", {"leakage": leaking(about(0.01))}),
    (HANDED, "unclear", "Open", {"leakage": leaking(about(0.05))}),
    (SPREAD, "yes", "Bad", {"leakage": leaking(inflation=4.0, inflation_by_answers=5.0)}),
    (SPREAD, "no", "Good", {"leakage": leaking(inflation=1.0, inflation_by_answers=5.0)}),
    (SPREAD, "no", "Good", {"leakage": leaking(inflation=4.0, inflation_by_answers=1.01)}),
    (SPREAD, "unclear", "Open", {"leakage": leaking(inflation=1.3, inflation_by_answers=1.3)}),
    (KNOWS, "yes", "Note", {"leakage": leaking(probe_prior=0.6)}),
    (KNOWS, "no", "Note", {"leakage": leaking(probe_prior=0.2)}),
    (KNOWS, "unclear", "Note", {"leakage": leaking(probe_prior=0.27)}),
    (PICTURE, "yes", "Good", {"inputs": {"image_swap": altered(0.9, 0.2)}}),
    (PICTURE, "no", "Bad", {"inputs": {"image_swap": altered(0.02, 0.2)}}),
    (PICTURE, "unclear", "Open", {"inputs": {"image_swap": altered(0.3, 0.2)}}),
    (REACHES, "yes", "Good", {"inputs": {"image_swap": altered(0.9, 0.2)}}),
    (REACHES, "no", "Bad", {"inputs": {"image_swap": altered(0.9, 0.01)}}),
    (REACHES, "unclear", "Open", {"inputs": {"image_swap": altered(0.9, 0.05)}}),
    (DIFFER, "yes", "Note", {"geometry": shape(0.5)}),
    (DIFFER, "no", "Note", {"geometry": shape(0.05)}),
    (DIFFER, "unclear", "Note", {"geometry": shape(0.2)}),
]


@pytest.mark.parametrize(("question", "answer", "how", "parts"), CASES)
def test_answers(question: str, answer: str, how: str, parts: dict[str, Any]) -> None:
    given = verdict(question, **parts)
    assert (given.answer, standing(given)) == (answer, how) and how in STANDINGS


@pytest.mark.parametrize(("question", "kind"), ((AS_WELL, "mean"), (DRAWN, "drawn")))
@pytest.mark.parametrize(
    ("gap", "answer", "how"),
    (
        (0.05, "yes", "Good"),
        (-0.4, "yes", "Good"),
        (0.2, "no", "Bad"),
        (0.1, "unclear", "Open"),
        (0.08, "unclear", "Open"),
    ),
)
def test_the_gap_goes_by_its_interval(question: str, kind: str, gap: float, answer: str, how: str) -> None:
    given = verdict(question, gap=found().gap.model_copy(update={kind: about(gap)}))
    assert (given.answer, standing(given)) == (answer, how)
    assert f"{gap:+.3f} [{gap - 0.03:+.3f}, {gap + 0.03:+.3f}]" in given.said


@pytest.mark.parametrize("question", (AS_WELL, DRAWN))
def test_agreement_is_no_merit_where_noise_does_as_well(question: str) -> None:
    given = verdict(question, use={"unit_noise": SAME})
    assert (given.answer, standing(given)) == ("yes", "Note") and "so is noise" in given.said
    assert "noise costs +0.480 [+0.420, +0.540] nats more" in verdict(question).said
    far = found().gap.model_copy(update={"mean": about(0.5), "drawn": about(0.5)})
    assert standing(verdict(question, gap=far, use={"unit_noise": SAME})) == "Bad"


def test_a_posterior_that_does_not_see_the_answer_hands_nothing_over_and_teaches_nothing() -> None:
    given = verdict(HANDED, leakage=leaking().model_copy(update={"sensitivity": about(0.001, 0.001)}))
    assert (given.answer, standing(given)) == ("no", "Note") and "the same whatever the answer" in given.said


def test_a_clear_interval_needs_a_clear_test_too() -> None:
    """Of few items the exact test can be less sure than the interval."""
    assert verdict(HOLD, use={"other_item": arm(-0.04, 0.04, p=0.02)}).answer == "yes"
    assert verdict(HOLD, use={"other_item": arm(-0.04, 0.04, p=0.06)}).answer == "unclear"


STRANGE = ("zero", "unit_noise", "first_slot", "shuffled", "matched_noise", "data_mean")


def test_strange_latents_do_not_show_what_is_read() -> None:
    """They may disturb a model that reads nothing: another item's are such as it always has."""
    strange = dict.fromkeys(STRANGE, LOST)
    assert verdict(HOLD, use=strange | {"other_item": SAME}).answer == "no"
    assert HOLD not in [v.question for v in verdicts(found(use=strange))]


def test_a_blank_picture_does_not_show_what_is_seen() -> None:
    """It may move the latents of a model that tells no two pictures apart."""
    inputs = {"image_swap": altered(0.02, 0.01), "blank_image": altered(1.5, 0.4)}
    for question in (PICTURE, REACHES):
        assert verdict(question, inputs=inputs).answer == "no"
        assert question not in [v.question for v in verdicts(found(inputs={"blank_image": altered(1.5, 0.4)}))]


def test_latents_that_hardly_move_are_told() -> None:
    said = verdict(HOLD).said
    assert "-0.140 [-0.170, -0.110] with another item's, which moves z by 0.66" in said
    still = arm(0.0, 0.0, margin=0.01, moved=0.04)
    assert "little to read" in verdict(HOLD, use={"other_item": still}).said
    assert "little to read" not in said


def test_marks_are_asked_about_only_where_latents_are_worth_something() -> None:
    for removed in (SAME, DOUBT, BETTER):
        assert MARKS not in [v.question for v in verdicts(found(use={"removed": removed, "markers": SAME}))]


def test_an_arm_without_effect_says_nothing_about_the_model() -> None:
    idle = SAME.model_copy(update={"no_effect": "z of 400 of 400 items stays the prior's mean to 0.1%"})
    for question, name in ((PRESENT, "removed"), (HOLD, "other_item")):
        given = verdict(question, use={name: idle})
        assert (given.answer, standing(given)) == ("unclear", "Open") and "stays the prior's mean" in given.said
    assert MARKS not in [v.question for v in verdicts(found(use={"removed": LOST, "markers": idle}))]
    assert NEEDED not in [v.question for v in verdicts(found(by_slots={4: idle}))]


def test_where_all_answers_are_alike_there_is_nothing_to_know() -> None:
    given = verdicts(found(leakage=leaking(probe_prior=1.0, probe_posterior=1.0, probe_majority=1.0)))
    assert [v.question for v in given] == [question for question in ALL if question != KNOWS]


def test_no_minus_zero() -> None:
    assert "-0.000" not in verdict(PRESENT, use={"removed": arm(-0.0001, 0.0, margin=0.0)}).said
