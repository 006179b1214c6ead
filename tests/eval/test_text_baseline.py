"""The baseline that reads and does not look."""

from data.sample import Text
from eval.text_baseline import TextBaseline


def text(question: str, answer: str, task: str = "t", choices: tuple[str, ...] | None = None) -> Text:
    return Text(question=question, answer=answer, task=task, source="s", choices=choices)


def test_the_commonest_answer_to_the_same_text() -> None:
    baseline = TextBaseline(
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
    assert baseline.answer(text("what colour?", "red")) == "blue"  # not its own answer, not the task's commonest
    assert baseline.answer(text("what shape?", "?")) == "disc"
    assert baseline.answer(text("what colour?", "?", task="other")) == "green"
    assert baseline.answer(text("how many?", "?")) == "disc"  # never seen: the task's commonest
    assert baseline.answer(text("how many?", "?", task="other")) == "green"
    assert baseline.answer(text("how many?", "?", task="unknown")) == ""
    assert baseline.answers == {"t": 3, "other": 1}


def test_it_reads_the_choices() -> None:
    seen = [text("which?", "A", choices=("1", "2")), text("which?", "B", choices=("2", "1"))]
    baseline = TextBaseline([*seen, text("which?", "B", choices=("3", "4"))])
    assert [baseline.answer(one) for one in seen] == ["A", "B"]
    assert baseline.answer(text("which?", "A", choices=("5", "6"))) == "B"


def test_ties_are_settled_by_the_alphabet() -> None:
    texts = [text("which?", answer) for answer in ("c", "b", "a", "b", "a")]
    assert TextBaseline(texts).answer(texts[0]) == TextBaseline(texts[::-1]).answer(texts[0]) == "a"


def test_it_knows_which_content_is_often_right() -> None:
    """For choices in an order it has not seen, it takes the content that was right most often."""
    seen = [text("Which?", "A", choices=("cat", "dog")), text("Which?", "A", choices=("cat", "fox"))]
    baseline = TextBaseline([*seen, text("Which?", "B", choices=("owl", "fox"))])
    assert baseline.answer(text("Which?", "A", choices=("fox", "cat"))) == "B"
    assert baseline.answer(text("Which?", "A", choices=("fox", "owl"))) == "A"
    assert baseline.answer(text("Which?", "A", choices=("bee", "ant"))) == "A", "the commonest letter of the task"


def test_nothing_read() -> None:
    assert TextBaseline([]).answers == {} and TextBaseline([]).answer(text("q", "?")) == ""
