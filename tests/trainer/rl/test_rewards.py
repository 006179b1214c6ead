"""The parts of the reward, their weights over the run, and their sum."""

import math

import pytest
import torch
from pydantic import ValidationError

from data.processor import Encoded
from data.sample import Sample, Text
from eval.benchmarks.item import Benchmark, Labels
from eval.benchmarks.shards import PROMPTS, item_of
from eval.predictions import Prediction
from eval.read_out import read_out
from model.completion import Completion
from trainer.config import explain
from trainer.rl.group import Group
from trainer.rl.rewards import AttentionConfig, RewardsConfig, accuracy, attention, form, length, rate

CHOICE = Text(question="What is seen?", answer="B", choices=("a red ball", "a green box"), task="t", source="s")
OPEN = Text(question="How many balls?", answer="Two balls", task="t", source="s")
PATTERN = RewardsConfig().format.pattern
NAN, INF = math.nan, math.inf


def sample(text: Text = CHOICE) -> Sample:
    return Sample(key="one", text=text)


def group(texts: list[str], tokens: list[int] | None = None, text: Text = CHOICE) -> Group:
    """What was said to one prompt, in so many tokens each."""
    nothing = torch.zeros(0)
    said = [Completion((7,) * n, True, None, "n", (-1.0,) * n) for n in tokens or [3] * len(texts)]
    return Group(Encoded(sample(text), nothing, nothing, nothing, nothing), said, texts)


def refusal(values: dict) -> str:
    """The line that a user sees of a fault in the settings."""
    with pytest.raises(ValidationError) as caught:
        RewardsConfig.model_validate(values)
    assert caught.value.error_count() == 1
    line = explain(caught.value)
    assert "\n" not in line
    return line


# ---- The parts ----

REPLIES = [
    "B", "(b)", "The answer is B.", r"\boxed{B}", "A green box", "A", "The answer is (A).", "C", "A and B", "no idea",
    "", "two balls", "Two  Balls.", " TWO\nBALLS ", "two", "two balls..", "It is two balls", ".", r"\boxed{Two balls}",
]  # fmt: skip


@pytest.mark.parametrize("text", [CHOICE, OPEN])
@pytest.mark.parametrize("reply", REPLIES)
def test_accuracy_is_the_verdict_of_the_evaluator(text: Text, reply: str) -> None:
    items = (item_of(sample(text)),)
    benchmark = Benchmark("b", "all", items, PROMPTS, "micro", Labels("0", "unknown"))
    said = {"one": Prediction(id="x", key="one", replies=(reply,), finish=("end",))}
    (result,) = read_out(benchmark, said)
    assert accuracy(sample(text), reply) == float(result.correct)


@pytest.mark.parametrize(
    ("text", "reply", "right"),
    [
        (CHOICE, r"It is green: \boxed{B}", 1.0),
        (CHOICE, "A green box", 1.0),
        (CHOICE, "A", 0.0),
        (CHOICE, "D", 0.0),
        (CHOICE, "", 0.0),
        (OPEN, " two  BALLS.", 1.0),
        (OPEN, "It is two balls", 0.0),
        (OPEN, "", 0.0),
    ],
)
def test_accuracy(text: Text, reply: str, right: float) -> None:
    assert accuracy(sample(text), reply) == right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{B}", 1.0),
        (r"so \boxed{B}, and no more", 1.0),
        ("\\boxed{two\nlines}", 1.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{B", 0.0),
        ("boxed{B}", 0.0),
        ("B", 0.0),
        ("", 0.0),
    ],
)
def test_form(text: str, found: float) -> None:
    assert form(text, PATTERN) == found


def test_the_form_is_a_choice() -> None:
    assert form("<answer>\nB\n</answer>", r"<answer>.+</answer>") == 1.0
    assert form(r"\boxed{B}", r"<answer>.+</answer>") == 0.0


@pytest.mark.parametrize(("tokens", "free", "earned"), [(0, 4, 0.0), (4, 4, 0.0), (5, 4, -1.0), (9, 0, -9.0)])
def test_length(tokens: int, free: int, earned: float) -> None:
    assert length(tokens, free) == earned
    assert math.copysign(1, length(free, free)) == 1, "no negative zero"


@pytest.mark.parametrize(
    ("right", "any_right", "none", "correct", "group_solved"),
    [(True, True, 0.3, 0.3, 0.3), (False, True, 0.3, 0.0, 0.3), (False, False, 0.3, 0.0, 0.0)],
)
def test_gates(right: bool, any_right: bool, none: float, correct: float, group_solved: float) -> None:
    assert attention(0.3, right, any_right, "none") == none
    assert attention(0.3, right, any_right, "correct") == correct
    assert attention(0.3, right, any_right, "group_solved") == group_solved


# ---- Weights over the run ----


def test_a_weight_holds_for_the_whole_run() -> None:
    assert RewardsConfig().weights_at(0.7) == {"accuracy": 0.9, "format": 0.1, "length": 0.0, "attention": 1.0}
    config = RewardsConfig.model_validate({"attention": {"weight": 2}, "length": {"weight": "1e-3"}})
    assert (config.weights_at(0)["attention"], config.weights_at(1)["length"]) == (2.0, 0.001)


@pytest.mark.parametrize(
    ("share", "weight"),
    [(-1, 0.0), (0, 0.0), (0.2, 0.0), (0.3, 0.5), (0.4, 1.0), (0.5, 0.9), (0.9, 0.5), (0.95, 0.5), (1, 0.5), (7, 0.5)],
)
def test_a_weight_that_changes(share: float, weight: float) -> None:
    """At its points, between them, before and after."""
    config = RewardsConfig.model_validate({"attention": {"weight": [[0.2, 0], [0.4, 1], [0.9, 0.5]]}})
    assert config.weights_at(share)["attention"] == pytest.approx(weight)
    assert RewardsConfig.model_validate(config.model_dump(mode="json")) == config


def test_one_point_is_a_number() -> None:
    config = RewardsConfig.model_validate({"format": {"weight": [[0.5, 0.2]]}})
    assert [config.weights_at(share)["format"] for share in (0, 0.5, 1)] == [0.2] * 3


# ---- Layers ----


@pytest.mark.parametrize(
    ("count", "first", "middle", "last"),
    [
        (9, range(1), range(3, 6), range(8, 9)),
        (28, range(1), range(9, 19), range(27, 28)),
        (2, range(1), range(2), range(1, 2)),
        (1, range(1), range(1), range(1)),
    ],
)
def test_layers(count: int, first: range, middle: range, last: range) -> None:
    """The middle third has whole layers and is never empty."""
    for name, wanted in {"first": first, "middle": middle, "last": last, "all": range(count)}.items():
        assert AttentionConfig.model_validate({"layers": name}).layers_of(count) == set(wanted)


# ---- The sum ----

TEXTS = [r"\boxed{B}", "B", r"\boxed{A}", ""]
MASSES = [0.5, 0.25, 0.75, 0.1]


def test_a_group_by_hand() -> None:
    config = RewardsConfig.model_validate({"length": {"weight": 0.01, "free": 4}})
    found = group(TEXTS, tokens=[4, 6, 14, 1])
    rate(found, MASSES, config, 0.0)
    assert found.parts == {
        "accuracy": [1.0, 1.0, 0.0, 0.0],
        "format": [1.0, 0.0, 1.0, 0.0],
        "length": [0.0, -2.0, -10.0, 0.0],
        "attention": [0.5, 0.25, 0.0, 0.0],
        "attention_mass": MASSES,
    }
    assert found.weights == {"accuracy": 0.9, "format": 0.1, "length": 0.01, "attention": 1.0}
    assert found.rewards == pytest.approx([1.5, 0.9 - 0.02 + 0.25, 0.1 - 0.1, 0.0])
    assert (found.advantages, found.dropped) == ([], None), "no business of this"


@pytest.mark.parametrize(
    ("gate", "texts", "paid"),
    [
        ("none", TEXTS, MASSES),
        ("correct", TEXTS, [0.5, 0.25, 0.0, 0.0]),
        ("group_solved", TEXTS, MASSES),
        ("none", ["A", "A", "A", ""], MASSES),
        ("correct", ["A", "A", "A", ""], [0.0] * 4),
        ("group_solved", ["A", "A", "A", ""], [0.0] * 4),
    ],
)
def test_the_gate_of_a_group(gate: str, texts: list[str], paid: list[float]) -> None:
    found = group(texts)
    rate(found, MASSES, RewardsConfig.model_validate({"attention": {"gate": gate}}), 0.0)
    assert (found.parts["attention"], found.parts["attention_mass"]) == (paid, MASSES)


def test_weights_are_those_of_the_share() -> None:
    config = RewardsConfig.model_validate({"accuracy": {"weight": [[0, 1], [1, 0]]}, "attention": {"weight": 0}})
    found = group(TEXTS)
    for share in (0.0, 0.25, 1.0):
        rate(found, MASSES, config, share)
        assert found.weights == {"accuracy": 1 - share, "format": 0.1, "length": 0.0, "attention": 0.0}
        assert found.rewards == pytest.approx([1.1 - share, 1 - share, 0.1, 0.0])
        assert found.parts["attention"] == [0.5, 0.25, 0.0, 0.0], "kept although it has no weight"


@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("mass", [NAN, INF, -INF])
def test_a_part_that_is_not_finite(mass: float, weight: float) -> None:
    """Its completion alone has no finite reward; a closed gate keeps it out."""
    config = RewardsConfig.model_validate({"attention": {"weight": weight}})
    found = group(TEXTS)
    rate(found, [mass, 0.25, mass, 0.1], config, 0.0)
    assert [math.isfinite(reward) for reward in found.rewards] == [False, True, True, True]
    assert found.rewards[1:] == pytest.approx([0.9 + 0.25 * weight, 0.1, 0.0])


def test_an_open_question() -> None:
    found = group(["two balls.", "three balls", ""], text=OPEN)
    rate(found, [0.5, 0.5, 0.5], RewardsConfig(), 0.0)
    assert found.rewards == pytest.approx([1.4, 0.0, 0.0])


def test_a_mass_for_every_completion() -> None:
    with pytest.raises(ValueError):
        rate(group(TEXTS), MASSES[:3], RewardsConfig(), 0.0)


# ---- Settings that cannot be used ----

FORMS = "write a number, or a list of points [share of steps, weight]"


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        ("much", f"not a weight; {FORMS}"),
        (None, f"not a weight; {FORMS}"),
        ([0.1, 0.2], f"not a weight; {FORMS}"),
        ([[0, 1, 2]], f"not a weight; {FORMS}"),
        ([], "no points; write a number, or at least one [share of steps, weight]"),
        (-1, "weight -1.0 is not from 0 to 1000; choose one that is"),
        (1001, "weight 1001.0 is not from 0 to 1000; choose one that is"),
        (NAN, "weight nan is not from 0 to 1000; choose one that is"),
        ([[0, 1], [1, INF]], "weight inf is not from 0 to 1000; choose one that is"),
        ([[0, 1], [200, 0]], "share 200.0 is not from 0 to 1; write it as a part of the run's steps"),
        ([[NAN, 1]], "share nan is not from 0 to 1; write it as a part of the run's steps"),
        ([[0.5, 1], [0.1, 0]], "share 0.1 comes after 0.5; write the points with rising shares"),
        ([[0.5, 1], [0.5, 0]], "share 0.5 comes after 0.5; write the points with rising shares"),
    ],
)
@pytest.mark.parametrize("part", ["accuracy", "format", "length", "attention"])
def test_weights_that_cannot_be_used(part: str, weight: object, why: str) -> None:
    assert refusal({part: {"weight": weight}}) == f"{part}.weight: {weight!r}: {why}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"format": {"pattern": "(B"}}, "format.pattern: '(B': not a regular expression (missing ), unterminated"),
        ({"format": {"pattern": ""}}, "format.pattern: '': String should have at least 1 character"),
        ({"length": {"free": -1}}, "length.free: -1: Input should be greater than or equal to 0"),
        ({"attention": {"gate": "right"}}, "attention.gate: 'right': Input should be 'none', 'correct' or 'group_solv"),
        ({"attention": {"layers": "mid"}}, "attention.layers: 'mid': Input should be 'first', 'middle', 'last' or"),
    ],
)
def test_settings_that_cannot_be_used(values: dict, line: str) -> None:
    assert refusal(values).startswith(line)


def test_unknown_keys_are_refused() -> None:
    for values in ({"lenght": {}}, {"attention": {"layer": "all"}}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            RewardsConfig.model_validate(values)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RewardsConfig().attention.weight = 0.5  # type: ignore[misc]
