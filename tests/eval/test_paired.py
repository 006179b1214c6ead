"""Comparisons of two runs: every test statistic by hand, and against brute force."""

from math import comb, sqrt
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.paired import Comparison, Counts, bootstrap, compare, detectable, exact_p
from eval.results import Result
from eval.scores import paired_difference, proportion
from tests.eval.test_scores import blink, result
from tests.refusal import refusal

BLINK_VAL = 1901


def counts(only_a: int, only_b: int, n: int) -> Counts:
    return Counts(both=0, only_a=only_a, only_b=only_b, neither=n - only_a - only_b)


def runs(tasks: dict[str, Counts]) -> tuple[list[Result], list[Result]]:
    """Two runs with these counts."""
    a, b = [], []
    for task, found in tasks.items():
        kinds = [(True, True)] * found.both + [(True, False)] * found.only_a + [(False, True)] * found.only_b
        for i, (right_a, right_b) in enumerate([*kinds, *[(False, False)] * found.neither]):
            a.append(result(f"{task}-{i}", task, correct=right_a))
            b.append(result(f"{task}-{i}", task, correct=right_b))
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (1, 5, 2 * (1 + 6) / 2**6),  # 0 or 1 heads of 6, twice: 0.21875
        (5, 1, 2 * (1 + 6) / 2**6),
        (0, 6, 2 / 2**6),
        (2, 5, 2 * (1 + 7 + 21) / 2**7),
        (2, 2, 1.0),  # 2 (1 + 4 + 6) / 16 is more than 1
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert exact_p(counts(only_a, only_b, 20)) == pytest.approx(p)
    assert exact_p(Counts(7, only_a, only_b, 0)) == pytest.approx(p), "items that both or neither got do not matter"


def test_mcnemar_is_a_two_sided_binomial() -> None:
    for only_a, only_b in ((3, 9), (12, 8), (30, 17)):
        n, few = only_a + only_b, min(only_a, only_b)
        assert exact_p(counts(only_a, only_b, 60)) == pytest.approx(2 * sum(comb(n, k) for k in range(few + 1)) / 2**n)


@pytest.mark.parametrize(
    ("only_a", "only_b", "points", "p", "form", "se"),
    [
        (282, 389, 5.63, "4e-05", ".0e", 1.36),  # GPT-4o over GPT-4 Turbo
        (265, 338, 3.84, "0.003", ".3f", 1.29),  # GPT-4 Turbo over GPT-4V
        (153, 166, 0.68, "0.50", ".2f", 0.94),  # LLaVA-1.5-13B over another training of it
    ],
)
def test_blink_pairs(only_a: int, only_b: int, points: float, p: str, form: str, se: float) -> None:
    """From the discordant items of models on BLINK's 1901; SE by hand sqrt((b + c - (c - b)^2 / n) / (n (n - 1)))."""
    found = paired_difference(only_a, only_b, BLINK_VAL)
    assert (round(100 * found.value, 2), round(100 * found.se, 2)) == (points, se)
    by_hand = sqrt((only_a + only_b - (only_b - only_a) ** 2 / BLINK_VAL) / (BLINK_VAL * (BLINK_VAL - 1)))
    assert found.se == pytest.approx(by_hand)
    assert format(exact_p(counts(only_a, only_b, BLINK_VAL)), form) == p


def test_pairing_narrows_the_interval() -> None:
    """GPT-4o 59.92 and GPT-4 Turbo 54.29: as separate samples the SE is sqrt(1.12^2 + 1.14^2) = 1.60, not 1.36."""
    apart = sqrt(proportion(1139, BLINK_VAL).se ** 2 + proportion(1032, BLINK_VAL).se ** 2)
    assert round(100 * apart, 2) == 1.60
    # Two models with 42 %: sqrt(2 * 0.42 * 0.58 / 1901) = 1.60, not 0.94.
    assert round(100 * sqrt(2) * proportion(798, BLINK_VAL).se, 2) == 1.60


@pytest.mark.parametrize(
    ("n", "share", "points"),
    [(1901, 0.1, 2.0), (1901, 0.2, 2.9), (1901, 0.3, 3.5), (1168, 0.2, 3.7), (1168, 0.3, 4.5), (130, 0.2, 11.0)],
)
def test_detectable_difference(n: int, share: float, points: float) -> None:
    """BLINK, VisualPuzzles and one sub-task; for the last 2.8 sqrt(0.2 / 130) = 2.8 * 0.039223 = 0.1098."""
    found = detectable(counts(round(n * share), 0, n))
    assert found is not None and round(100 * found, 1) == pytest.approx(points, abs=0.05)
    assert detectable(counts(0, 0, n)) is None


def test_detectable_difference_has_a_power_of_80_percent() -> None:
    """Simulated: of 1901 items a fifth is discordant, and the runs differ by what is called detectable."""
    d = 0.2
    true = detectable(counts(380, 0, BLINK_VAL))
    assert true is not None
    drawn = np.random.default_rng(0).multinomial(BLINK_VAL, [(d - true) / 2, (d + true) / 2, 1 - d], size=2000)
    found = [paired_difference(int(a), int(b), BLINK_VAL) for a, b, _ in drawn]
    assert np.mean([one.low > 0 for one in found]) == pytest.approx(0.8, abs=0.04)


def test_bootstrap_by_hand() -> None:
    """Differences 1, 1, 0: the mean of three draws is 0 with odds 1/27, 1/3 with 6/27, 2/3 with 12/27, 1 with 8/27.
    So SE sqrt(2/9 / 3) = 0.272166, 95 % between the values 0 and 1, p = 2/27 = 0.0741."""
    found = bootstrap([counts(0, 2, 3)], 200_000, 1)
    assert found.se == pytest.approx(sqrt(2 / 27), abs=2e-3)
    assert (found.low, found.high) == (0, 1)
    assert found.p == pytest.approx(2 / 27, abs=2e-3)


def test_bootstrap_draws_items_within_sub_tasks() -> None:
    """The same distribution as drawing the items themselves, one by one."""
    tasks = [counts(9, 21, 60), counts(4, 3, 25), counts(12, 10, 40)]
    generator = np.random.default_rng(7)
    draws = np.zeros(20_000)
    for task in tasks:
        items = np.repeat([-1, 1, 0], [task.only_a, task.only_b, task.neither])
        draws += items[generator.integers(task.n, size=(len(draws), task.n))].mean(axis=1) / len(tasks)
    found = bootstrap(tasks, 20_000, 3)
    assert found.se == pytest.approx(draws.std(), rel=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=5e-3)
    assert found.p == pytest.approx(2 * np.mean(draws <= 1e-12), abs=0.02)
    # (1 / 3) sqrt(sum of (b + c - (c - b)^2 / n) / n^2): sub-tasks count alike, whatever their size
    spread = [(t.only_a + t.only_b - (t.only_b - t.only_a) ** 2 / t.n) / t.n**2 for t in tasks]
    assert found.se == pytest.approx(sqrt(sum(spread)) / 3, rel=0.02)


def test_bootstrap_without_a_difference() -> None:
    assert bootstrap([counts(0, 0, 9)], 100, 0) == (0, 0, 0, 1)
    assert bootstrap([counts(0, 50, 50)], 999, 0) == (0, 1, 1, 2 / 1000)  # never below 2 / (draws + 1)


def test_the_seed_settles_the_bootstrap() -> None:
    tasks = [counts(9, 21, 60), counts(4, 3, 25)]
    assert bootstrap(tasks, 500, 1) == bootstrap(tasks, 500, 1) != bootstrap(tasks, 500, 2)


def test_holm_by_hand() -> None:
    """p 2/256 = 0.0078125, 2/64 = 0.03125 and 0.21875: times 3, 2 and 1. Of two alike, the second is lifted to the
    first's: 0.0078125 * 3, 0.03125 * 2, 0.03125 * 1 -> 0.0625."""
    found = compare(*runs({"a": counts(1, 5, 10), "b": counts(0, 8, 10), "c": counts(6, 0, 10)}), draws=100).tasks
    assert [t.p for t in found.values()] == pytest.approx([0.21875, 0.0078125, 0.03125])
    assert [t.p_holm for t in found.values()] == pytest.approx([0.21875, 0.0234375, 0.0625])
    found = compare(*runs({"a": counts(0, 6, 10), "b": counts(0, 8, 10), "c": counts(6, 0, 10)}), draws=100).tasks
    assert [t.p_holm for t in found.values()] == pytest.approx([0.0625, 0.0234375, 0.0625])


def test_a_comparison_by_hand() -> None:
    """easy: A 5 and B 7 of 8; hard: A 1 and B 1 of 2, on other items."""
    found = compare(*runs({"easy": Counts(4, 1, 3, 0), "hard": Counts(0, 1, 1, 0)}))
    assert (found.n, found.both, found.only_a, found.only_b, found.neither) == (10, 4, 2, 4, 0)
    assert (found.micro_a, found.micro_b, found.micro.value) == (0.6, 0.8, 0.2)
    assert found.micro.se == pytest.approx(sqrt((6 - 4 / 10) / 9 / 10))
    assert found.micro_p == pytest.approx(2 * (1 + 6 + 15) / 2**6)
    assert (found.macro_a, found.macro_b) == ((5 / 8 + 1 / 2) / 2, (7 / 8 + 1 / 2) / 2)
    assert found.macro.value == (2 / 8 + 0) / 2
    assert found.macro.se == pytest.approx(sqrt((4 - 4 / 8) / 64 + 2 / 4) / 2, rel=0.02)
    assert found.detectable == pytest.approx(2.8 * sqrt(0.6 / 10))
    easy = found.tasks["easy"]
    assert (easy.n, easy.only_a, easy.only_b, easy.difference) == (8, 1, 3, 0.25)
    assert (easy.accuracy_a, easy.accuracy_b) == (5 / 8, 7 / 8)
    assert easy.p == pytest.approx(2 * (1 + 4) / 2**4) and easy.detectable == pytest.approx(2.8 * sqrt(0.5 / 8))
    assert (found.draws, found.seed, found.official) == (10_000, 0, "micro")
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_verdicts() -> None:
    tasks = {"a": counts(0, 10, 40), "b": counts(2, 3, 40)}
    assert compare(*runs(tasks)).verdict == (
        # 2 (1 + 15 + 105) / 2^15 = 0.0074; variance (15 - 11^2 / 80) / 79, SE 4.619, -+ 9.05
        "B is better on these items: B - A is +13.75 points micro [+4.70, +22.80], p = 0.0074; "
        "1 of 2 sub-tasks differ after Holm's correction"
    )
    a, b = runs(tasks)
    assert compare(b, a).verdict.startswith("A is better on these items: B - A is -13.75 points micro [-22.80, -4.70]")
    same = compare(a, a, official="macro")
    assert same.verdict == (
        "No difference between A and B can be told from chance on these items: B - A is +0.00 points macro "
        "[+0.00, +0.00], p = 1; 0 of 2 sub-tasks differ after Holm's correction"
    )
    assert same.detectable is None and "several seeds" in same.caution


def test_the_verdict_is_about_the_official_average() -> None:
    """B gains in the large sub-task and A in the small one: micro says B, macro neither."""
    a, b = runs({"large": counts(0, 60, 400), "small": counts(6, 0, 40)})
    assert compare(a, b, "micro").verdict.startswith("B is better") and compare(a, b, "micro").micro_p < 1e-9
    assert compare(a, b, "macro").verdict.startswith("No difference") and compare(a, b, "macro").macro.value == 0


def test_items_are_matched_by_key() -> None:
    a, b = runs({"easy": Counts(4, 1, 3, 0), "hard": Counts(0, 1, 1, 0)})
    assert compare(a, b[::-1]) == compare(a, b)


def test_other_items_are_refused_or_left_out() -> None:
    a, b = runs({"easy": Counts(4, 1, 3, 0), "hard": Counts(0, 1, 1, 0)})
    text = refusal(lambda: compare(a[1:], b[:-2]))
    assert (
        "A has 2 items that B lacks and B has 1 that A lacks" in text and "the 7 that both have with --common" in text
    )
    found = compare(a[1:], b[:-2], common=True)
    assert (found.n, found.missing_a, found.missing_b, list(found.tasks)) == (7, 1, 2, ["easy"])
    assert "no item in common" in refusal(lambda: compare(a[:3], b[3:], common=True))
    assert "no item in common" in refusal(lambda: compare([], []))


def test_other_labels_are_refused() -> None:
    a, b = runs({"easy": Counts(4, 1, 3, 0)})
    changed = [b[0], b[1].model_copy(update={"label": "D"}), b[2].model_copy(update={"task": "other"}), *b[3:]]
    text = refusal(lambda: compare(a, changed, common=True))
    assert "2 of 8 items" in text and "easy-1 for one (easy A, easy D)" in text
    assert "item easy-0 is there twice" in refusal(lambda: compare([*a, a[0]], b))


def test_two_models_on_blink() -> None:
    """GPT-4 Turbo and Qwen-VL-Max from their saved replies."""
    found = compare(blink("GPT4Turbo"), blink("QwenVLMax"), "macro")
    assert (found.n, found.both, found.only_a, found.only_b, found.neither) == (1901, 479, 553, 272, 597)
    assert (round(100 * found.macro_a, 2), round(100 * found.macro_b, 2)) == (54.61, 40.28)
    assert round(100 * found.macro.value, 2) == -14.33 and round(100 * found.micro.value, 2) == -14.78
    # (825 - 281^2 / 1901) / 1900 = 0.412349, over 1901 0.00021691, root 0.014728
    assert found.micro.se == pytest.approx(0.014728, abs=1e-6)
    assert found.macro.se == pytest.approx(0.0140, abs=2e-4)
    assert found.micro_p == pytest.approx(7.2e-23, rel=0.01) and found.macro_p == pytest.approx(2 / 10_001)
    differ = {name for name, task in found.tasks.items() if task.p_holm < 0.05}
    assert differ == {"Art_Style", "Forensic_Detection", "Jigsaw", "Visual_Correspondence", "Visual_Similarity"}
    assert found.tasks["IQ_Test"].p < 0.05  # not after the correction
    assert "5 of 14 sub-tasks differ" in found.verdict and found.verdict.startswith("A is better")


def test_two_like_models_on_blink() -> None:
    """Yi-VL-6B and CogVLM: 702 discordant items, 56 more for CogVLM, near the edge of what can be told."""
    found = compare(blink("Yi_VL_6B"), blink("cogvlm-chat"), "macro")
    assert (found.only_a, found.only_b, round(100 * found.macro.value, 2)) == (323, 379, 2.82)
    assert found.micro_p == pytest.approx(0.038, abs=5e-4) and found.macro_p == pytest.approx(0.043, abs=0.006)
    assert "0 of 14 sub-tasks differ" in found.verdict
    assert found.detectable == pytest.approx(2.8 * sqrt(702) / 1901)


counted = st.builds(Counts, *[st.integers(0, 12)] * 4).filter(lambda task: task.n > 0)


@given(st.lists(counted, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_swapping_the_runs_negates(tasks: list[Counts]) -> None:
    a, b = runs({str(i): task for i, task in enumerate(tasks)})
    with patch("gc.collect"):  # statsmodels calls it at every Holm correction, which takes longer than the rest
        there, back = compare(a, b, draws=200), compare(b, a, draws=200)
    assert there.micro.value == -back.micro.value and there.micro.se == back.micro.se
    assert (there.micro.low, there.micro.high) == (-back.micro.high, -back.micro.low)
    assert there.macro.value == pytest.approx(-back.macro.value)
    assert (there.micro_a, there.macro_a, there.micro_p) == (back.micro_b, back.macro_b, back.micro_p)
    assert there.micro.value == pytest.approx(there.micro_b - there.micro_a)
    assert there.macro.value == pytest.approx(there.macro_b - there.macro_a)
    assert there.micro.low <= there.micro.value <= there.micro.high
    for name, task in there.tasks.items():
        assert task.difference == -back.tasks[name].difference and task.p == back.tasks[name].p
        assert task.p <= task.p_holm <= 1 and task.p_holm <= task.p * len(tasks) + 1e-12
