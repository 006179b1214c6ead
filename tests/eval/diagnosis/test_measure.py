"""Gap, leakage and causal use of models built to show each of them and not to, and of numbers made by hand."""

from functools import lru_cache
from math import exp, log, sqrt

import numpy as np
import pytest
import torch

from eval.diagnosis.arms import KEPT, MARKERS, ORACLE, OWN, REMOVED, first_slots, from_altered, shown
from eval.diagnosis.cases import Case
from eval.diagnosis.collect import Collected
from eval.diagnosis.measure import answers, gap_of, inputs_of, leakage_of, mean_of, use_of
from eval.diagnosis.probe import probe_accuracy
from eval.replacements import GIVEN
from eval.scores import Z
from model.latent import Gaussian
from model.replaced import Beliefs
from tests.eval.diagnosis.built import HIDDEN, LETTERS, SHARP, SIGMA, WORDS, built, collect, items

ALL = LETTERS * 6
HALF_WRONG = "ABCDBCDA" * 3  # hints
NOT_REACHED = "every log-likelihood stays what it was to 0.0001 nats, so latents do not reach the answer"


@lru_cache
def collected(right: str = ALL, hints: str | None = None, **how) -> Collected:
    return collect(built(**how), items(right, hints))


def answer_nats(latent: float, hint: float = 0.0) -> float:
    """-log p of a letter and the end mark behind it, where so many parts of z and of the hint were seen, by hand."""
    length = sqrt(HIDDEN) * SHARP
    z = [side / sqrt(12) * latent / sqrt(latent**2 + hint**2) * length if latent else 0.0 for side in (3, -1, -1, -1)]
    letter = log(sum(map(exp, z)) + WORDS - 4) - z[0]
    return letter + log(1 + (WORDS - 1) * exp(-length))


# ---- Gap ----


def test_no_gap_where_the_prior_is_the_posterior() -> None:
    gap = gap_of(collected(posterior="prompt", prior="prompt", sigma_p=0.02, sigma_q=0.02))
    assert gap.mean and gap.drawn and gap.accuracy
    assert gap.mean.value == pytest.approx(0, abs=1e-6)
    assert -2e-5 < gap.mean.low <= 0 <= gap.mean.high < 2e-5
    assert gap.drawn.value == gap.drawn.low == gap.drawn.high == 0, "both draws have the same noise"
    assert gap.accuracy.value == 0 and gap.accuracy.low < 0 < gap.accuracy.high


def test_wide_draws_of_one_gaussian_are_no_gap() -> None:
    """However much worse than its mean they are."""
    gap = gap_of(collected(posterior="prompt", prior="prompt", sigma_p=4.0, sigma_q=4.0))
    assert gap.mean and gap.drawn
    assert gap.mean.value < -0.2 and gap.drawn.value == pytest.approx(0, abs=1e-6)


def test_a_gap_where_only_the_posterior_knows() -> None:
    gap = gap_of(collected())
    assert gap.mean and gap.drawn and gap.accuracy
    assert gap.mean.value == pytest.approx(answer_nats(0) - answer_nats(1), abs=1e-3)
    assert gap.mean.low > 1 and gap.drawn.low > 1
    assert gap.accuracy.value == 0.75 and gap.accuracy.low > 0.5
    assert gap.sources["posterior"].accuracy.value == 1 and gap.sources["prior_mean"].accuracy.value == 0.25


def test_noise_is_worse_where_z_is_used_and_no_worse_where_not() -> None:
    used = gap_of(collected(prior="prompt")).sources
    assert used["noise"].nats.low > used["prior_mean"].nats.high + 1
    assert used["noise"].accuracy.high < 0.6 and used["prior_mean"].accuracy.value == 1
    unused = gap_of(collected(prior="prompt", decoder="prompt")).sources
    assert unused["noise"].nats.value == pytest.approx(unused["prior_mean"].nats.value, abs=1e-6)
    assert unused["noise"].accuracy.value == 1


def test_without_a_posterior_there_is_no_gap_to_speak_of() -> None:
    gap = gap_of(collected(objective="deterministic", prior="prompt"))
    assert gap.mean is gap.drawn is gap.accuracy is None and "posterior" not in gap.sources
    assert gap.sources["prior_mean"].accuracy.value == 1
    assert leakage_of(collected(objective="deterministic", prior="prompt")) is None


# ---- Leakage ----


def test_a_posterior_that_copies_the_answer_leaks_all_of_it() -> None:
    leakage = leakage_of(collected("AABCD" * 8))
    assert leakage
    assert leakage.rate.value == 1 and leakage.base.value == 0 and leakage.excess.value == 1
    assert leakage.rate.low == leakage.excess.low == pytest.approx(0.025 ** (1 / 40)), "none of 40 was seen to differ"
    # Symmetric KL of two equally wide Gaussians: |difference|^2 / sigma^2. Two dimensions differ, by the hidden length.
    assert leakage.sensitivity.value == pytest.approx(4 * 2 * HIDDEN / SIGMA**2, rel=1e-3)
    assert leakage.probe_posterior == 1
    assert leakage.probe_prior == leakage.probe_majority == 0.4, "that prior is the same everywhere"


def test_a_posterior_that_ignores_the_answer_leaks_nothing() -> None:
    """Where it believes a wrong hint, the answer is that wrong one whether it is shown or not."""
    leakage = leakage_of(collected(hints=HALF_WRONG, posterior="prompt", prior="prompt"))
    assert leakage
    assert leakage.rate == leakage.base and leakage.rate.value == pytest.approx(1 / 6)
    assert leakage.excess.value == 0 and leakage.excess.low < 0 < leakage.excess.high
    assert leakage.sensitivity.value == pytest.approx(0, abs=1e-6)
    assert leakage.inflation_by_answers == pytest.approx(1, abs=1e-9)


def test_a_prior_that_reads_the_prompt_is_read_by_the_probe() -> None:
    leakage = leakage_of(collected(prior="prompt"))
    assert leakage and leakage.probe_prior == leakage.probe_posterior == 1 and leakage.probe_majority == 0.25


@pytest.mark.parametrize(("sigma_p", "wanted"), [(0.2, 4.0), (0.1, 1.0), (0.05, 0.25)])
def test_inflation_is_the_ratio_of_variances(sigma_p: float, wanted: float) -> None:
    leakage = leakage_of(collected("ABCD", posterior="prompt", sigma_p=sigma_p, sigma_q=0.1))
    assert leakage and leakage.inflation == pytest.approx(wanted, rel=1e-5)


def test_inflation_by_answers_of_the_copying_posterior() -> None:
    """All four answers are as likely: in each dimension one mean is 3/4 of the hidden length, the others -1/4."""
    leakage = leakage_of(collected())
    assert leakage and leakage.inflation_by_answers == pytest.approx(1 + 3 / 16 * HIDDEN / SIGMA**2, rel=1e-4)


def test_leakage_by_hand() -> None:
    """One slot of one dimension; the answers weigh 1/2, 1/4, 1/8 and 1/8, the right one first."""
    cases = items("AB")
    weights = {"A": [0.5, 0.25, 0.125, 0.125], "B": [0.25, 0.5, 0.125, 0.125]}
    prior = Gaussian(torch.zeros(1, 1), torch.tensor([[7.0]]).log() / 2)
    means = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    variances = torch.tensor([1.0, 4.0, 1.0, 1.0])[:, None, None]  # 7/4 on average
    beliefs = Beliefs(prior, Gaussian(means, variances.log() / 2))
    scores = {case.key: {KEPT: torch.tensor(weights[case.candidates[case.right]]).log() - 3} for case in cases}
    chosen = [(0, {1: 1, 2: 0, 3: 3}), (2, {0: 0, 2: 2, 3: 2})]  # with the right answer shown, and with each wrong one
    for case, (own, others) in zip(cases, chosen, strict=True):
        scores[case.key] |= {OWN: one_hot(own)} | {shown(wrong): one_hot(said) for wrong, said in others.items()}
    leakage = leakage_of(by_hand(cases, scores, beliefs))
    assert leakage
    assert leakage.rate.value == pytest.approx(2 / 3) and leakage.base.value == pytest.approx((0 + 1 / 3) / 2)
    assert leakage.excess.value == pytest.approx(1 / 2)
    # Both ways: (s^2 + d^2) / 2 + (1 / s^2 + d^2 / s^2) / 2 - 1 against the right one's N(0, 1).
    wanted = ((4 + 1) / 2 + (1 / 4 + 1 / 4) / 2 - 1 + 2**2 + 4**2) / 3
    assert leakage.sensitivity.value == pytest.approx(wanted, rel=1e-6)
    assert leakage.inflation == pytest.approx(4) and leakage.inflation_by_answers == pytest.approx(2)


def one_hot(number: int) -> torch.Tensor:
    return torch.eye(4)[number] - 2


def by_hand(cases: list[Case], scores: dict, beliefs: Beliefs, **parts) -> Collected:
    nothing = {"given": {}, "moved": {}, "altered": {}}
    empty = torch.empty(0)
    return Collected(
        cases, {c.key: beliefs for c in cases}, scores, **nothing | parts, **dict.fromkeys(ATTENTION, empty)
    )


ATTENTION = ("answer_attention", "latent_attention")


# ---- Causal use ----


def test_a_decoder_that_ignores_z_shows_no_use() -> None:
    use, by_slots = use_of(collected(prior="prompt", decoder="prompt"))
    assert set(use) == {KEPT, *GIVEN, ORACLE, MARKERS, REMOVED}
    for name, arm in [*use.items(), *by_slots.items()]:
        assert arm.change.value == arm.flips.value == 0 and arm.accuracy.value == arm.p == 1, name
        assert arm.nats.value == pytest.approx(0, abs=1e-5)
        assert arm.change.low < 0 < arm.change.high and arm.flips.high > 0
    assert use[KEPT].no_effect is None
    for name in ("zero", "unit_noise", "data_mean", ORACLE, MARKERS, REMOVED):
        assert use[name].no_effect == NOT_REACHED, name
    assert all(arm.no_effect == NOT_REACHED for arm in by_slots.values())


def test_a_decoder_that_reads_z_needs_it() -> None:
    use, _ = use_of(collected(prior="prompt"))
    for name in (REMOVED, MARKERS, "zero", "data_mean"):
        arm = use[name]
        assert arm.accuracy.value == 0.25 and arm.change.value == -0.75 and arm.flips.value == 0.75, name
        assert arm.change.high < 0 and arm.p < 1e-4 and arm.no_effect is None
        if name != "data_mean":  # 0 but for rounding, which the size that every slot gets makes large
            assert arm.nats.value == pytest.approx(answer_nats(0, 1) - answer_nats(4, 1), abs=1e-4)
    for name in (KEPT, ORACLE):
        assert use[name].accuracy.value == 1 and use[name].change.value == 0
    assert use["zero"].moved == 1 and use[ORACLE].moved and use[REMOVED].moved is use[KEPT].moved is None


def test_the_answer_goes_with_the_latents_of_the_other_item() -> None:
    found = collected("ABCD", prior="prompt")
    said = answers(found, "other_item").choice
    whose = [int(found.given["other_item"][case.key].mean(0).argmax()) for case in found.cases]
    assert said.tolist() == whose and sorted(whose) == [0, 1, 2, 3]
    arm = use_of(found)[0]["other_item"]
    assert arm.accuracy.value == 0 and arm.flips.value == 1 and arm.no_effect is None
    # As long as its own and, as two means of four letters, at 4/3 of a right angle's cosine: |z - m|^2 = 8/3 |m|^2.
    assert arm.moved == pytest.approx(sqrt(8 / 3), rel=1e-5)


def test_an_order_of_equal_slots_is_no_intervention() -> None:
    use, _ = use_of(collected(prior="prompt"))
    for name in ("shuffled", "first_slot"):
        assert use[name].no_effect and use[name].no_effect.startswith("z of 24 of 24 items stays the prior's mean")
        assert use[name].change.value == 0


def test_so_many_slots_are_worth_what_they_weigh() -> None:
    """The first j alone, beside one hint."""
    _, by_slots = use_of(collected(prior="prompt"))
    assert list(by_slots) == [1, 2]
    for count, arm in by_slots.items():
        assert arm.nats.value == pytest.approx(answer_nats(count, 1) - answer_nats(4, 1), abs=1e-5)
        assert arm.moved is None and arm.no_effect is None
    assert by_slots[1].nats.value > by_slots[2].nats.value > 0


def test_an_arm_that_an_item_lacks_is_an_error() -> None:
    found = collected("ABCD")
    with pytest.raises(ValueError, match=r"arm latents words: not there for item-00"):
        answers(found, from_altered("words"))
    with pytest.raises(ValueError, match=r"not there"):
        answers(found, first_slots(4))


# ---- Inputs, intervals, probe ----


def test_inputs_by_hand() -> None:
    """Two of three items are altered. Means move by 1 and 3, where the other item's is 4 and 12 away."""
    cases = items("ABC")
    mean = torch.zeros(2, 4)
    beliefs = Beliefs(Gaussian(mean, mean), Gaussian(mean[None][:0], mean[None][:0]))
    first, second, third = (case.key for case in cases)
    scores = {key: {KEPT: one_hot(n)} for n, key in enumerate((first, second, third))}  # all right
    for key, said in ((first, 0), (second, 3)):
        scores[key][from_altered("words")] = one_hot(said)
    far = torch.eye(2, 4)[:1] * torch.tensor([[1.0], [0.0]])  # of length 1

    parts = {
        "given": {"other_item": {first: 4 * far, second: 12 * far, third: 100 * far}},
        "moved": {"words": {first: far, second: 3 * far}, "patches": {first: far}},
        "altered": {"words": {first: one_hot(2), second: one_hot(3)}, "patches": {first: one_hot(0)}},
    }
    found = inputs_of(by_hand(cases, scores, beliefs, **parts))
    assert list(found) == ["words"], "one item alone says nothing"
    words = found["words"]
    assert words.n == 2 and words.moved == pytest.approx(4 / 16)
    assert words.change.value == -1 and words.flips.value == 1 and words.latents_alone.value == 0.5


def test_means_and_their_intervals() -> None:
    found = mean_of(np.array([1.0, 2.0, 3.0, 6.0]))
    se = sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert (found.value, found.se) == (3, pytest.approx(se))
    assert (found.low, found.high) == (pytest.approx(3 - Z * se), pytest.approx(3 + Z * se))
    alike = mean_of(np.ones(10), most=1)
    assert alike.se == 0 and alike.high - 1 == 1 - alike.low == pytest.approx(1 - 0.025**0.1)
    assert mean_of(np.ones(10)).low == 1


def test_the_probe_reads_what_is_there() -> None:
    generator = np.random.default_rng(0)
    labels = [LETTERS[n % 4] for n in range(80)]
    noise = generator.normal(size=(80, 6))
    told = noise + 8 * np.eye(6)[[LETTERS.index(letter) for letter in labels]]
    assert probe_accuracy(told, labels) == (1, 0.25)
    accuracy, majority = probe_accuracy(noise, labels)
    assert majority == 0.25 and accuracy < 0.45
    wide = generator.normal(size=(80, 400))
    assert probe_accuracy(wide, labels)[0] < 0.45, "more dimensions than items: only those not fitted to are counted"


def test_the_probe_leaves_rare_answers_out() -> None:
    """One item of a fifth answer does not turn it off, nor change what it says of the others."""
    points = np.eye(3)[[0] * 10 + [1] * 5 + [2] * 4]
    assert probe_accuracy(points, ["A"] * 10 + ["B"] * 5 + ["C"] * 4) == (1, 10 / 15)
    assert probe_accuracy(points, ["A"] * 19) == (1, 1)
    assert probe_accuracy(points, ["A"] * 18 + ["B"]) == (1, 1), "one alone cannot be held out"
