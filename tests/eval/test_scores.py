"""Scores, every number worked out by hand."""

import math

import pytest

from data.sample import Text
from eval.scores import Blind, Score, by_task, score, table


def text(question: str, answer: str, task: str = "t", choices: tuple[str, ...] | None = None) -> Text:
    return Text(question=question, answer=answer, task=task, source="s", choices=choices)


def prediction(correct: bool) -> dict[str, bool]:
    return {"correct": correct}


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # (p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964
        (8, 10, 0.490162, 0.943318),
        (0, 5, 0.0, 0.434482),
        (5, 5, 0.565518, 1.0),
        (450, 900, 0.467403, 0.532597),
    ],
)
def test_wilson_interval(right: int, of: int, low: float, high: float) -> None:
    found = score([True] * right + [False] * (of - right), [False] * of, [0.25] * of)
    assert (found.n, found.accuracy) == (of, right / of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_gain_is_paired() -> None:
    """Differences 0, 1, 1, 0: mean 1/2, deviation sqrt(4 * (1/2)^2 / 3), margin 1.96 * deviation / 2."""
    found = score([True, True, True, False], [True, False, False, False], [0.5, 0.25, 0.25, 0.5])
    assert (found.accuracy, found.blind, found.chance, found.gain) == (0.75, 0.25, 0.375, 0.5)
    margin = 1.96 * math.sqrt(1 / 3) / 2
    assert (found.gain_low, found.gain_high) == pytest.approx((0.5 - margin, 0.5 + margin))


def test_gain_of_opposite_differences() -> None:
    """Differences 1, -1, 0: mean 0, deviation 1, margin 1.96 / sqrt(3); the order of the pairs matters."""
    found = score([True, False, False], [False, True, False], [0.5] * 3)
    assert found.gain == 0 and (found.gain_low, found.gain_high) == pytest.approx((-1.131607, 1.131607), abs=1e-6)
    same = score([True, False, False], [True, False, False], [0.5] * 3)
    assert (same.gain, same.gain_low, same.gain_high) == (0, 0, 0)


def test_blind_gives_the_commonest_answer_to_the_same_text() -> None:
    blind = Blind(
        [
            text("what colour?", "red"),
            text("what colour?", "blue"),
            text("what colour?", "blue"),
            text("what shape?", "disc"),
            text("what shape?", "disc"),
            text("what shape?", "disc"),
            text("what colour?", "green", task="other"),
        ]
    )
    assert blind.answer(text("what colour?", "red")) == "blue"  # not its own answer, not the task's commonest
    assert blind.answer(text("what shape?", "?")) == "disc"
    assert blind.answer(text("what colour?", "?", task="other")) == "green"
    assert blind.answer(text("how many?", "?")) == "disc"  # never seen: the task's commonest
    assert blind.answer(text("how many?", "?", task="other")) == "green"
    assert blind.answer(text("how many?", "?", task="unknown")) == ""
    assert blind.answers == {"t": 3, "other": 1}


def test_blind_sees_the_choices() -> None:
    seen = [text("which?", "A", choices=("1", "2")), text("which?", "B", choices=("2", "1"))]
    blind = Blind([*seen, text("which?", "B", choices=("3", "4"))])
    assert [blind.answer(one) for one in seen] == ["A", "B"]
    assert blind.answer(text("which?", "A", choices=("5", "6"))) == "B"


def test_blind_settles_ties_by_the_alphabet() -> None:
    texts = [text("which?", answer) for answer in ("c", "b", "a", "b", "a")]
    assert Blind(texts).answer(texts[0]) == Blind(texts[::-1]).answer(texts[0]) == "a"


def test_by_task() -> None:
    """Grouped by task in the order of the items, all of them first; chance by choices, else by known answers."""
    train = [text("q1", "yes", "open"), text("q2", "no", "open"), text("q2", "maybe", "open")]
    train += [text("which?", "B", "pick", ("x", "y"))] * 2
    heldout = [
        text("which?", "B", "pick", ("x", "y")),  # blind B: right
        text("q1", "yes", "open"),  # blind yes: right
        text("q9", "no", "open"),  # blind maybe: wrong
        text("which?", "A", "pick", ("x", "y", "z", "w")),  # blind B: wrong
        text("other?", "A", "new"),  # nothing known: wrong, chance 1
        text("q2", "maybe", "open"),  # blind maybe: right
    ]
    scores = by_task([prediction(c) for c in (False, True, True, True, False, False)], heldout, Blind(train))
    assert list(scores) == ["all", "pick", "open", "new"]
    assert {name: s.n for name, s in scores.items()} == {"all": 6, "pick": 2, "open": 3, "new": 1}
    assert {name: s.accuracy for name, s in scores.items()} == {"all": 1 / 2, "pick": 1 / 2, "open": 2 / 3, "new": 0}
    assert {name: s.blind for name, s in scores.items()} == {"all": 1 / 2, "pick": 1 / 2, "open": 2 / 3, "new": 0}
    chances = {"all": (1 / 2 + 1 / 4 + 3 * (1 / 3) + 1) / 6, "pick": 3 / 8, "open": 1 / 3, "new": 1}
    assert {name: s.chance for name, s in scores.items()} == pytest.approx(chances)
    # Paired within a task: pick -1, +1; open 0, +1, -1.
    assert scores["pick"].gain_high == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2))
    assert scores["open"].gain_high == pytest.approx(1.96 * 1 / math.sqrt(3))


def test_table() -> None:
    scores = {
        "all": Score(900, 0.4304, 0.3985, 0.4630, 0.2489, 0.25, 0.1815, 0.14, 0.22),
        "relative_position": Score(7, 1.0, 0.6457, 1.0, 0.0, 0.0769, -0.125, -0.3, 0.05),
    }
    assert table(scores).splitlines() == [
        "task                     n  accuracy  interval          blind  chance    gain  interval",
        "all                    900     0.430  [0.399, 0.463]    0.249   0.250  +0.181  [+0.140, +0.220]",
        "relative_position        7     1.000  [0.646, 1.000]    0.000   0.077  -0.125  [-0.300, +0.050]",
    ]


def test_blind_knows_which_content_is_often_right() -> None:
    """For choices in an order it has not seen, it takes the content that was right most often."""
    asked = {"question": "Which?", "task": "t", "source": "s"}
    seen = [Text(answer="A", choices=("cat", "dog"), **asked), Text(answer="A", choices=("cat", "fox"), **asked)]
    blind = Blind([*seen, Text(answer="B", choices=("owl", "fox"), **asked)])
    assert blind.answer(Text(answer="A", choices=("fox", "cat"), **asked)) == "B"
    assert blind.answer(Text(answer="A", choices=("fox", "owl"), **asked)) == "A"
    assert blind.answer(Text(answer="A", choices=("bee", "ant"), **asked)) == "A", "the commonest letter of the task"
