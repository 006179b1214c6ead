"""Scores: every statistic worked out by hand, and BLINK's published figures from its models' saved replies."""

import gzip
import json
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from eval.benchmarks.item import Benchmark, Item, Labels
from eval.record import metrics
from eval.results import Result
from eval.scores import (
    Estimate,
    Score,
    Scores,
    macro_mean,
    paired_difference,
    proportion,
    read_scores,
    score,
)
from eval.tables import markdown, table
from tests.refusal import refusal

REPLIES = Path(__file__).with_name("replies")


def result(key: str, task: str, label: str = "A", correct: bool = False, **more: Any) -> Result:
    more.setdefault("n_choices", 2)
    more.setdefault("answer", label if correct else "Z")
    return Result(key=key, task=task, label=label, correct=correct, **more)


def benchmark(results: list[Result], **more: Any) -> Benchmark:
    items = tuple(Item(r.key, r.task, "Which?", r.label, None, r.n_choices) for r in results)
    known = {"name": "blink", "split": "val", "mean": "macro", "labels": Labels("0123456789ab", "2024-07")}
    return Benchmark(**{**known, "items": items, "prompts": {}, **more})


@cache
def blink(model: str) -> tuple[Result, ...]:
    """The saved replies of a model with BLINK's own verdicts, right where the verdict equals the label of July 2024."""
    found = []
    for line in gzip.decompress((REPLIES / f"{model}.jsonl.gz").read_bytes()).splitlines():
        item = json.loads(line)
        verdict = item["official"] or ""
        read = verdict[1] if len(verdict) == 3 and verdict != "(Z)" else None
        correct, label = item["official"] == item["label"], item["label"][1]
        of = {"n_choices": item["n_choices"], "replies": [item["reply"]], "answer": read, "rule": "official"}
        found.append(result(item["idx"], item["sub_task"], label, correct, **of))
    return tuple(found)


def blink_scores(model: str) -> Scores:
    results = list(blink(model))
    return score(benchmark(results, apart=("Relative_Reflectance",)), results, {})


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # (p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964, z^2 = 3.841459
        # 8 of 10: (0.8 + 0.192073 -+ 1.959964 sqrt(0.016 + 0.009604)) / 1.384146 = (0.992073 -+ 0.313617) / 1.384146
        (8, 10, 0.490162, 0.943318),
        (0, 5, 0.0, 0.434482),  # (z^2/5) / (1 + z^2/5) = 0.768292 / 1.768292
        (5, 5, 0.565518, 1.0),
        (450, 900, 0.467403, 0.532597),
    ],
)
def test_wilson_interval(right: int, of: int, low: float, high: float) -> None:
    found = proportion(right, of)
    assert found.value == right / of
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_micro_error() -> None:
    """8 of 10: sqrt(0.8 * 0.2 / 10) = sqrt(0.016) = 0.126491."""
    assert proportion(8, 10).se == pytest.approx(0.126491, abs=1e-6)


def some(correct: int, n: int) -> Score:
    of = {"chance": None, "majority": 1.0, "majority_letter": "A", "credited": correct / n}
    return Score(n=n, correct=correct, accuracy=correct / n, low=0, high=1, **of)


def test_macro_error() -> None:
    """3 of 4 and 1 of 10: variances 0.75 * 0.25 / 4 = 0.046875 and 0.1 * 0.9 / 10 = 0.009, together 0.055875, root
    0.236379, SE half of it, 0.118189; 0.425 -+ 1.959964 * 0.118189 = 0.425 -+ 0.231647."""
    found = macro_mean([some(3, 4), some(1, 10)])
    assert found.value == pytest.approx(0.425)
    assert found.se == pytest.approx(0.118189, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.193353, 0.656647), abs=1e-6)


def test_paired_difference() -> None:
    """Of 4 items B alone gets 2 and A none: differences 0, 1, 1, 0, mean 1/2, variance 4 (1/2)^2 / 3 = 1/3."""
    found = paired_difference(0, 2, 4)
    assert found.value == 0.5 and found.se == pytest.approx(sqrt(1 / 3 / 4))
    assert (found.low, found.high) == pytest.approx((0.5 - 1.959964 * 0.288675, 1.0), abs=1e-6)  # 1.066 is cut at 1
    # 1, -1, 0: mean 0, variance 2 / 2 = 1, SE sqrt(1 / 3) = 0.577350, 1.959964 SE = 1.131586, cut at 1.
    assert paired_difference(1, 1, 3) == Estimate(value=0, se=sqrt(1 / 3), low=-1, high=1)
    # None of 9 differs: up to 1 - 0.025^(1/9) = 1 - exp(-3.688879 / 9) = 0.336267 might, either way; where all 9
    # are +1, as many might be -1, which takes twice as much.
    none, every = paired_difference(0, 0, 9), paired_difference(0, 9, 9)
    assert (none.value, none.se, none.low, none.high) == (0, 0, pytest.approx(-0.336267), pytest.approx(0.336267))
    assert (every.value, every.low, every.high) == (1, pytest.approx(1 - 2 * 0.336267, abs=1e-6), 1)
    assert paired_difference(0, 1, 1) == Estimate(value=1, se=1, low=-1, high=1)


WORKED = [  # with the model without pictures, and the text baseline, right or wrong
    (result("1", "pick", "B", True, n_choices=4), True, True),
    (result("2", "pick", "B", True, n_choices=4, finish=["end", "length"]), False, True),
    (result("3", "pick", "C", n_choices=2, answer=None, finish=["length"]), False, False),
    (result("4", "pick", "A", n_choices=4, answer=None, failed="cannot be decoded"), True, False),
    (result("5", "say", "red", True, n_choices=0, groups={"difficulty": "hard"}), False, True),
    (result("6", "say", "red", n_choices=0, groups={"difficulty": "easy"}), False, True),
]


def worked(**more: Any) -> Scores:
    results = [r for r, _, _ in WORKED]
    blind = [r.model_copy(update={"correct": right}) for r, right, _ in WORKED][::-1]
    more = {"blind": blind, "text": [right for _, _, right in WORKED], "open_chance": {"say": 1 / 3}} | more
    return score(benchmark(results, apart=("say", "absent")), results, {"prompt": "p-1"}, **more)


def test_a_score_by_hand() -> None:
    found = worked().tasks["pick"]
    assert (found.n, found.correct, found.accuracy) == (4, 2, 0.5)
    assert found.chance == pytest.approx((1 / 4 + 1 / 4 + 1 / 2 + 1 / 4) / 4)
    assert (found.majority, found.majority_letter) == (0.5, "B")  # B, B, C, A
    assert (found.unresolved, found.failed, found.cut) == (1, 1, 2)
    assert found.credited == pytest.approx((2 + 1 / 2 + 1 / 4) / 4)
    assert (found.blind, found.text) == (0.5, 0.5)
    # Over blind 0, +1, 0, -1: mean 0, variance 2/3, SE sqrt(2 / 3 / 4). Over text: 0 everywhere.
    assert found.gain_over_blind and found.gain_over_blind.value == 0
    assert found.gain_over_blind.se == pytest.approx(sqrt(1 / 6))
    assert found.gain_over_text == paired_difference(0, 0, 4)


def test_both_averages_by_hand() -> None:
    """pick: 2 of 4, say: 1 of 2; figures of the six items are weighted 4 to 2."""
    found = worked()
    assert (found.n, found.official, list(found.tasks)) == (6, "macro", ["pick", "say"])
    assert (found.macro.value, found.micro.value) == (0.5, 0.5)
    assert found.macro.se == pytest.approx(sqrt(0.25 / 4 + 0.25 / 2) / 2)
    assert found.micro.se == pytest.approx(sqrt(0.25 / 6))
    assert (found.micro.low, found.micro.high) == (proportion(3, 6).low, proportion(3, 6).high)
    assert found.chance and found.blind and found.text
    pick = 5 / 16  # (1/4 + 1/4 + 1/2 + 1/4) / 4
    assert (found.chance.macro, found.chance.micro) == pytest.approx(((pick + 1 / 3) / 2, (4 * pick + 2 / 3) / 6))
    assert (found.majority.macro, found.majority.micro) == ((0.5 + 1) / 2, pytest.approx((2 + 2) / 6))
    assert (found.blind.macro, found.blind.micro) == (0.25, pytest.approx(2 / 6))
    assert (found.text.macro, found.text.micro) == (0.75, pytest.approx(4 / 6))
    # Over blind 0, 1, 0, -1, 1, 0: mean 1/6, variance (3 - 6/36) / 5; over text 0, 0, 0, 0, 0, -1: variance 1/6.
    assert found.gain_over_blind and found.gain_over_text
    assert (found.gain_over_blind.value, found.gain_over_blind.se) == pytest.approx((1 / 6, sqrt((3 - 1 / 6) / 5 / 6)))
    assert (found.gain_over_text.value, found.gain_over_text.se) == pytest.approx((-1 / 6, sqrt(1 / 6 / 6)))


def test_bounds_by_hand() -> None:
    """pick without and with the credit of 1/2 + 1/4: 2/4 and 2.75/4; nothing is missing in say."""
    bounds = worked().bounds
    assert (bounds.macro.low, bounds.micro.low) == (0.5, 0.5)
    assert (bounds.macro.high, bounds.micro.high) == pytest.approx(((2.75 / 4 + 0.5) / 2, 3.75 / 6))


def test_means_without_a_sub_task() -> None:
    """Of sub-tasks that are there alone, and not when nothing is left."""
    assert list(worked().apart) == ["say"]
    rest = worked().apart["say"]
    assert (rest.macro.value, rest.macro.se) == (0.5, pytest.approx(sqrt(0.25 / 4)))
    assert rest.micro == proportion(2, 4)
    results = [r for r, _, _ in WORKED if r.task == "say"]
    assert score(benchmark(results, apart=("say",)), results, {}).apart == {}


def test_groups() -> None:
    found = worked().groups
    assert {kind: list(group) for kind, group in found.items()} == {"difficulty": ["easy", "hard"]}
    assert (found["difficulty"]["hard"].accuracy, found["difficulty"]["easy"].accuracy) == (1, 0)


def test_what_is_not_known_is_none() -> None:
    found = worked(blind=None, text=None, open_chance=None)
    assert (found.blind, found.text, found.gain_over_blind, found.gain_over_text) == (None,) * 4
    assert found.chance is None and found.tasks["say"].chance is None and found.tasks["pick"].chance == 5 / 16
    assert found.tasks["pick"].gain_over_blind is None
    unread = [result("1", "say", "red", n_choices=0, answer=None)]
    assert score(benchmark(unread), unread, {}).bounds.micro.high == 0


def test_ties_of_the_majority_go_to_the_first_letter() -> None:
    results = [result(str(i), "t", letter) for i, letter in enumerate("CBACB")]
    assert score(benchmark(results), results, {}).tasks["t"].majority_letter == "B"


def test_options_by_likelihood_have_no_reply_to_read() -> None:
    results = [result("1", "t", correct=True, scores=[-1.0, -2.0], rule="score"), result("2", "t", scores=[-2.0, -1.0])]
    found = score(benchmark(results), results, {})
    assert (found.unresolved, found.failed, found.cut, found.micro.value) == (0, 0, 0, 0.5)


def test_warnings() -> None:
    results = [result(str(i), "t", correct=i > 0) for i in range(5)]
    assert score(benchmark(results, warnings=("1 item lacks a picture",)), results, {}).warnings == [
        "1 item lacks a picture"
    ]
    part = score(benchmark(results), results[1:], {}).warnings
    assert part[0].startswith("4 of the 5 items were evaluated") and part[1].startswith("macro: every sub-task is all")
    assert len(part) == 2


def test_refusals() -> None:
    results = [r for r, _, _ in WORKED]
    asked = benchmark(results)
    assert "no results" in refusal(lambda: score(asked, [], {}))
    other = [r.model_copy(update={"label": "D"}) for r in results]
    for blind in ([], results[1:], other):
        assert "without pictures has other items or labels" in refusal(
            lambda b=blind: score(asked, results, {}, blind=b)
        )


def test_scores_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(worked().model_dump_json(indent=1), encoding="utf-8")
    assert read_scores(path) == worked()
    path.write_text('{"all": {}}')
    assert "not the scores of an evaluation" in refusal(lambda: read_scores(path))
    assert "cannot be read" in refusal(lambda: read_scores(tmp_path / "absent.json"))


def test_table() -> None:
    results = [r for r, _, _ in WORKED]
    told = {"prompt": "blink/\nofficial-1", "mode": "generate", "batch": 8}
    found = score(benchmark(results, apart=("say",), warnings=("1 item\nlacks a picture",)), results, told)
    # Wilson of 2 in 4: (0.5 + 0.480182 -+ 1.959964 sqrt(0.0625 + 0.060023)) / 1.960365 = 0.5 -+ 0.349959;
    # of 1 in 2 0.5 -+ 0.405469, of 1 in 1 from 1 / (1 + z^2) = 0.206549, of 3 in 6 0.5 -+ 0.312374.
    # Macro: 1.959964 * 0.216506 = 0.424345; without say 1.959964 * 0.25 = 0.489991.
    assert table(found).splitlines() == [
        "blink val: 6 items, labels 0123456789ab (2024-07), prompt blink/ official-1, mode generate",
        "points             n  accuracy           95 %  unresolved  chance  majority",
        "pick               4     50.00   [15.0, 85.0]           1   31.25     50.00",
        "say                2     50.00    [9.5, 90.5]           0       -    100.00",
        "difficulty: easy   1      0.00    [0.0, 79.3]           0       -    100.00",
        "difficulty: hard   1    100.00  [20.7, 100.0]           0       -    100.00",
        "macro (official)   6     50.00    [7.6, 92.4]           1       -     75.00",
        "micro              6     50.00   [18.8, 81.2]           1       -     66.67",
        "macro without say  4     50.00    [1.0, 99.0]",
        "micro without say  4     50.00   [15.0, 85.0]",
        "unresolved 1, failed 1, cut off 2 of 6 items",
        "unresolved and failed counted wrong (as above) or at chance: macro 50.00 to 59.38, micro 50.00 to 62.50",
        "warning: 1 item lacks a picture",
    ]


def test_table_beside_the_baselines() -> None:
    lines = table(worked()).splitlines()
    assert lines[1].split()[-6:] == ["blind", "over", "blind", "text", "over", "text"]
    assert lines[3].endswith("100.00   0.00    +50.00 [-48.0, +100.0]  100.00    -50.00 [-100.0, +48.0]")
    assert lines[6].split()[-3:] == ["75.00", "25.00", "75.00"]  # no gain of the macro average


def test_markdown() -> None:
    results = [result("1", "a|b\nc", correct=True), result("2", "d\\|e")]
    lines = markdown(score(benchmark(results, mean="micro"), results, {})).splitlines()
    assert lines[0] == "blink val: 2 items, labels 0123456789ab (2024-07)" and lines[1] == ""
    assert lines[2] == "| points | n | accuracy | 95 % | unresolved | chance | majority |"
    assert lines[3] == "|---|---:|---:|---:|---:|---:|---:|"
    assert lines[4].startswith("| a\\|b c | 1 | 100.00 |") and lines[5].startswith("| d\\\\\\|e | 1 | 0.00 |")
    assert [line.split(" | ")[0] for line in lines[6:8]] == ["| macro", "| micro (official)"]
    assert lines[8] == "" and lines[9] == "- unresolved 0, failed 0, cut off 0 of 2 items"
    assert lines[10].startswith("- warning: macro: every sub-task")


def test_metrics() -> None:
    found = metrics(worked())
    assert found["eval/blink/macro"] == found["eval/blink/micro"] == found["eval/blink/task/pick"] == 0.5
    assert found["eval/blink/macro_se"] == worked().macro.se
    assert found["eval/blink/without/say/micro"] == 0.5 and found["eval/blink/group/difficulty/hard"] == 1
    assert found["eval/blink/blind/macro"] == 0.25 and found["eval/blink/cut"] == 2


def test_metrics_of_names_that_mlflow_refuses() -> None:
    names = ["a:b", "a?b", "..", "x//y", "", "é" * 400, "Multi-view_Reasoning", "two words.1"]
    results = [result(str(i), name, correct=i == 0) for i, name in enumerate(names)]
    found = metrics(score(benchmark(results), results, {}))
    for name in found:
        _validate_metric_name(name)
    tasks = [name.removeprefix("eval/blink/task/") for name in found if "/task/" in name]
    assert tasks[:5] == ["a_b", "a_b_", "_", "x/_/y", "__"] and tasks[6:] == names[6:]
    assert len(tasks) == len(names) and found["eval/blink/task/a_b"] == 1 and found["eval/blink/task/a_b_"] == 0


BLINK = {  # items, choices and GPT-4 Turbo's accuracy on the validation set, as published (arXiv 2404.12390)
    "Art_Style": (117, 2, 79.49),
    "Counting": (120, 4, 57.50),
    "Forensic_Detection": (132, 4, 63.64),
    "Functional_Correspondence": (130, 4, 24.62),
    "IQ_Test": (150, 4, 32.67),
    "Jigsaw": (150, 2, 69.33),
    "Multi-view_Reasoning": (133, 2, 52.63),
    "Object_Localization": (122, 2, 52.46),
    "Relative_Depth": (124, 2, 66.13),
    "Relative_Reflectance": (134, 3, 32.84),
    "Semantic_Correspondence": (139, 4, 30.94),
    "Spatial_Relation": (143, 2, 69.23),
    "Visual_Correspondence": (172, 4, 52.33),
    "Visual_Similarity": (135, 2, 80.74),
}


def test_blink_as_published() -> None:
    found = blink_scores("GPT4Turbo")
    assert {name: s.n for name, s in found.tasks.items()} == {name: n for name, (n, _, _) in BLINK.items()}
    assert found.n == 1901
    for name, (_, choices, accuracy) in BLINK.items():
        assert round(100 * found.tasks[name].accuracy, 2) == accuracy, name
        assert found.tasks[name].chance == pytest.approx(1 / choices), name
    assert round(100 * found.macro.value, 2) == 54.61


def test_blink_baselines() -> None:
    """The authors print 38.09 for guessing: (7 * 50 + 6 * 25 + 33.33) / 14 = 38.095. The commonest letters are those of
    the labels of July 2024."""
    found = blink_scores("GPT4Turbo")
    assert found.chance and found.chance.macro == pytest.approx((7 / 2 + 6 / 4 + 1 / 3) / 14)
    assert round(100 * found.majority.macro, 2) == 42.06
    reflectance = found.tasks["Relative_Reflectance"]
    assert (round(100 * reflectance.majority, 1), reflectance.majority_letter) == (38.8, "C")
    assert "".join(s.majority_letter for s in found.tasks.values()) == "BABCBABBACAAAB"  # IQ_Test: 40 each of B, C, D


@pytest.mark.parametrize(
    ("model", "macro", "correct", "unresolved"),
    [
        ("GPT4Turbo", 54.61, 1032, 14),
        ("QwenVLMax", 40.28, 751, 298),
        ("Yi_VL_6B", 38.72, 728, 2),
        ("cogvlm-chat", 41.54, 784, 0),
        ("instructblip_7b", 39.72, 750, 0),
        ("llava_v1.5_7b", 37.13, 691, 139),
    ],
)
def test_blink_models(model: str, macro: float, correct: int, unresolved: int) -> None:
    """Macro from BLINK's own verdicts; and what the means without a sub-task and the bounds are of."""
    results, found = blink(model), blink_scores(model)
    assert round(100 * found.macro.value, 2) == macro
    assert (found.micro, found.unresolved) == (proportion(correct, 1901), unresolved)
    rest = [s.accuracy for name, s in found.tasks.items() if name != "Relative_Reflectance"]
    assert found.apart["Relative_Reflectance"].macro.value == pytest.approx(fmean(rest))
    credit = sum(1 / r.n_choices for r in results if r.answer is None)
    assert found.bounds.micro.high == pytest.approx((correct + credit) / 1901)


def test_blink_errors() -> None:
    """Of GPT-4o, from its published accuracies: one SE of both averages, and 1.96 of two sub-tasks."""
    points = [82.91, 49.17, 79.55, 40.77, 31.33, 55.33, 59.40, 59.84, 74.19, 37.31, 53.96, 69.23, 75.00, 72.59]
    sizes = [n for n, _, _ in BLINK.values()]
    tasks = [some(round(share * n / 100), n) for share, n in zip(points, sizes, strict=True)]
    macro, micro = macro_mean(tasks), proportion(sum(s.correct for s in tasks), 1901)
    assert (round(100 * macro.value, 2), round(100 * macro.se, 2)) == (60.04, 1.07)
    assert (round(100 * micro.value, 2), round(100 * micro.se, 2)) == (59.92, 1.12)
    assert round(1.96 * 100 * proportion(59, 120).se, 1) == 8.9
    assert round(1.96 * 100 * proportion(129, 172).se, 1) == 6.5


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_estimates_lie_between_their_bounds(data: st.DataObject) -> None:
    read = st.tuples(st.sampled_from("abc"), st.sampled_from("ABCD"), st.sampled_from(["A", "B", None]), st.booleans())
    items = data.draw(st.lists(read, min_size=1, max_size=30))
    results, blind = [], []
    for i, (task, label, answer, other) in enumerate(items):
        results.append(result(str(i), task, label, answer == label, answer=answer, n_choices=4))
        blind.append(result(str(i), task, label, other, n_choices=4))
    found = score(benchmark(results, apart=("a",)), results, {}, blind=blind, text=[b.correct for b in blind])
    for mean in (found.macro, found.micro, *(m for a in found.apart.values() for m in (a.macro, a.micro))):
        assert 0 <= mean.low <= mean.value <= mean.high <= 1 and mean.se >= 0
    for bound, mean in ((found.bounds.macro, found.macro), (found.bounds.micro, found.micro)):
        assert bound.low == pytest.approx(mean.value) and bound.low <= bound.high <= 1
    for one in found.tasks.values():
        assert one.low <= one.accuracy <= one.high and one.accuracy <= one.credited
        assert one.blind is not None and one.gain_over_blind == one.gain_over_text and one.gain_over_blind is not None
        assert one.gain_over_blind.value == pytest.approx(one.accuracy - one.blind)
        assert one.gain_over_blind.low <= one.gain_over_blind.value <= one.gain_over_blind.high
    assert sum(s.n for s in found.tasks.values()) == found.n == len(items)
    assert found.chance and (found.chance.macro, found.chance.micro) == (0.25, 0.25)
