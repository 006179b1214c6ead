"""From what a model said to verdicts, by both sets of rules, by votes and by likelihoods."""

from collections.abc import Sequence

import pytest

from data.sample import DataError
from eval.benchmarks.item import Benchmark, Item, Labels
from eval.extract import Extraction
from eval.predictions import Prediction
from eval.read_out import read as read_reply
from eval.read_out import read_out
from eval.results import Result
from tests.refusal import refusal

CHOICES = ("a red ball", "a green box", "a blue cone")


def item(key: str = "one", label: str = "B", choices: tuple[str, ...] | None = CHOICES, n: int = 3) -> Item:
    return Item(key, "Shapes", "What is seen?", label, choices, n, groups={"difficulty": "hard"})


def benchmark(*items: Item, rules: str = "blink") -> Benchmark:
    return Benchmark("b", "val", items, {}, "macro", Labels("0", "unknown"), rules)


def read(of: Item, *replies: str, rules: str = "plain", of_benchmark: str = "blink", judge=None, **more) -> Result:
    """The result of one item that these replies were given to."""
    finish = ("end",) * len(replies)
    said = Prediction(id="x", key=of.key, replies=replies, finish=finish, **more)
    (result,) = read_out(benchmark(of, rules=of_benchmark), {of.key: said}, rules, judge)
    return result


def verdict(result: Result) -> tuple[str | None, str, bool]:
    return result.answer, result.rule, result.correct


class Counting:
    """In a judge's place: keeps what it is asked, and says what it is told to."""

    def __init__(self, answer: str | None = "B") -> None:
        self.answer = answer
        self.asked: list[tuple[str, Sequence[str] | None, int, str]] = []

    def verdict(self, question: str, choices: Sequence[str] | None, n_choices: int, reply: str) -> Extraction:
        self.asked.append((question, choices, n_choices, reply))
        return Extraction(self.answer, "judge: m" if self.answer else "judge: none")


def test_a_result_is_the_item_and_what_was_said_to_it() -> None:
    found = read(item(), "The answer is (B).")
    wanted = dict(key="one", task="Shapes", groups={"difficulty": "hard"}, n_choices=3, label="B")
    assert wanted.items() <= found.model_dump().items()
    assert (found.replies, found.finish, found.scores, found.failed) == (["The answer is (B)."], ["end"], None, None)
    assert (found.answer, found.correct) == ("B", True) and found.rule != "none"
    assert verdict(read(item(label="A"), "The answer is (B)."))[::2] == ("B", False)


def test_results_are_in_the_order_of_the_benchmark_and_of_what_was_asked() -> None:
    items = [item(key) for key in ("three", "one", "two", "four")]
    said = {key: Prediction(id=key, key=key, replies=("B",), finish=("end",)) for key in ("one", "two", "three", "x")}
    assert [r.key for r in read_out(benchmark(*items), said)] == ["three", "one", "two"]


def test_the_rules_of_the_benchmark_are_those_asked_for() -> None:
    """A reply that a careful reader understands and BLINK's own code does not, and one the other way round."""
    text = "It is a green box."
    assert verdict(read(item(), text))[::2] == ("B", True)
    assert verdict(read(item(), text, rules="official"))[::2] == (None, False)
    # VisualPuzzles' own code takes the letter behind `Answer:`; BLINK's wants brackets.
    text = "Answer: C"
    assert read(item(), text, rules="official").answer is None
    assert read(item(), text, rules="official", of_benchmark="visual_puzzles").answer == "C"
    assert read(item(), "Nothing of that.").answer is None


def test_a_benchmark_without_rules_of_its_own() -> None:
    text = refusal(lambda: read(item(), "B", rules="official", of_benchmark="plain"), DataError)
    assert text == "benchmark 'plain' has no official rules; use rules 'plain'"
    assert read(item(), "B", of_benchmark="plain").correct


@pytest.mark.parametrize(
    ("replies", "answer", "rule"),
    [
        (("A", "B", "B"), "B", "vote: 2 of 3"),
        (("(C)", "C", "The answer is C."), "C", "vote: 3 of 3"),
        (("C", "A", "B"), "C", "vote: 1 of 3"),
        (("B", "A", "A", "B"), "B", "vote: 2 of 4"),
        (("A", "B", "B", "A"), "A", "vote: 2 of 4"),
        (("no idea", "nothing", "C"), "C", "vote: 1 of 3"),
        (("no idea", "no idea", "A", "B"), "A", "vote: 1 of 4"),
        (("no idea", "nothing"), None, "none"),
    ],
)
def test_votes(replies: tuple[str, ...], answer: str | None, rule: str) -> None:
    """The commonest answer, of several the first; replies without one do not vote."""
    found = read(item(), *replies)
    assert verdict(found) == (answer, rule, answer == "B")
    assert found.replies == list(replies)


def test_one_reply_is_no_vote() -> None:
    assert "vote" not in read(item(), "B").rule


@pytest.mark.parametrize(
    ("scores", "answer"),
    [((-3.0, -1.0, -2.0), "B"), ((-1.0, -3.0, -1.0), "A"), ((-2.0, -1.0, -1.0), "B"), ((-9.0, -9.5, -8.9), "C")],
)
def test_scores(scores: tuple[float, ...], answer: str) -> None:
    """The likeliest option; of equals the first."""
    judge = Counting()
    found = read(item(), scores=scores, judge=judge)
    assert verdict(found) == (answer, "likeliest", answer == "B")
    assert (found.scores, found.replies, judge.asked) == (list(scores), [], [])


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("two balls", True),
        ("  Two\n balls. ", True),
        ("TWO  BALLS", True),
        ("two balls..", False),
        ("two ball", False),
        ("It is two balls", False),
        ("", False),
    ],
)
def test_open_questions(reply: str, correct: bool) -> None:
    """One right text, whatever its capitals, spaces or full stop; neither rules nor a judge read it."""
    judge = Counting()
    found = read(item(label="Two balls", choices=None, n=0), reply, judge=judge)
    assert verdict(found) == ("Two balls" if correct else reply.strip() or None, "text", correct)
    assert judge.asked == []


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So it must be \\boxed{two balls}.", "Two balls"),
        ("\\boxed{three}, no: \\boxed{ Two  balls. }", "Two balls"),
        ("two balls, that is \\boxed{2}", "2"),
        ("\\boxed{}", None),
        ("$\\boxed{\\text{Two balls}}$", "Two balls"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ],
)
def test_an_open_question_may_be_answered_in_a_box(reply: str, answer: str | None) -> None:
    found = read(item(label="Two balls", choices=None, n=0), reply)
    assert verdict(found) == (answer, "box", answer == "Two balls")


@pytest.mark.parametrize(
    ("of", "reply", "answer"),
    [
        (item(), "The answer is (B).", "B"),
        (item(), "A green box", "B"),
        (item(), "no idea", None),
        (item(), "", None),
        (item(choices=None, n=4), "(D)", "D"),
        (item(label="Two balls", choices=None, n=0), " two  balls.", "Two balls"),
        (item(label="Two balls", choices=None, n=0), " three balls. ", "three balls."),
        (item(label="Two balls", choices=None, n=0), " . ", None),
    ],
)
def test_one_reply_is_read_as_the_only_one_of_an_item(of: Item, reply: str, answer: str | None) -> None:
    found = read_reply(of, reply)
    assert found.answer == answer
    result = read(of, reply)
    assert (result.answer, result.rule) == found


def test_one_reply_is_read_by_the_rules_asked_for() -> None:
    assert read_reply(item(), "It is a green box.").answer == "B"
    assert read_reply(item(), "It is a green box.", "blink", "official").answer is None
    assert read_reply(item(), "Answer: C", "visual_puzzles", "official").answer == "C"
    assert "no official rules" in refusal(lambda: read_reply(item(), "B", rules="official"), DataError)


def test_open_questions_vote() -> None:
    of = item(label="7", choices=None, n=0)
    assert verdict(read(of, "8", "7", " 7. ")) == ("7", "vote: 2 of 3", True)
    assert verdict(read(of, "8", "9", "7")) == ("8", "vote: 1 of 3", False)
    assert verdict(read(of, "", " ")) == (None, "none", False)
    assert verdict(read(of, "seven", " Seven.", "SEVEN", "7", "7")) == ("seven", "vote: 3 of 5", False), "no lean to 7"


def test_options_in_the_picture() -> None:
    assert read(item(choices=None, n=4, label="D"), "(D)").correct


@pytest.mark.parametrize("more", [{}, {"replies": ("B",), "finish": ("end",)}, {"scores": (0.0, 1.0, 0.0)}])
def test_an_item_that_could_not_be_run_has_no_answer(more: dict) -> None:
    judge = Counting()
    said = Prediction(id="x", key="one", failed="no picture", **more)
    (found,) = read_out(benchmark(item()), {"one": said}, judge=judge)  # type: ignore[arg-type]
    assert (*verdict(found), found.failed) == (None, "none", False, "no picture")
    assert judge.asked == []


def test_a_judge_reads_only_what_no_rule_reads() -> None:
    judge = Counting()
    assert verdict(read(item(), "The answer is (A).", judge=judge))[0] == "A" and judge.asked == []
    assert verdict(read(item(), "the grassy one", judge=judge)) == ("B", "judge: m", True)
    assert judge.asked == [("What is seen?", CHOICES, 3, "the grassy one")]
    assert read(item(), "the grassy one").answer is None, "without a judge nothing is read"


def test_a_judge_takes_part_in_votes() -> None:
    """Reply by reply."""
    judge = Counting()
    assert verdict(read(item(), "C", "the grassy one", "like grass", judge=judge)) == ("B", "vote: 2 of 3", True)
    assert [reply for *_, reply in judge.asked] == ["the grassy one", "like grass"]
    assert verdict(read(item(), "mossy", judge=Counting(None))) == (None, "judge: none", False)
