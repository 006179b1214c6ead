"""What is plain in running text is taken out of it, what is not stays."""

import pytest

from data.convert.text import letter_of, split_boxed, split_choices, split_reply, unlabelled
from tests.refusal import refusal

REPLIES = {
    "A dog.": ("A dog.", None),
    "<think>It barks.</think><answer>A dog</answer>": ("A dog", "It barks."),
    "<think>It barks.</think>\nA dog": ("A dog", "It barks."),
    "It barks.\n<answer> A dog </answer>": ("A dog", "It barks."),
    "<answer>A</answer> or <answer>B</answer>": ("<answer>A</answer> or <answer>B</answer>", None),
    "<think>It barks": ("<think>It barks", None),
    "It barks. The answer is a dog.": ("a dog", "It barks."),
    "It barks. So the final answer is: B": ("B", "It barks."),
    "It barks.\nTherefore, the answer is B. a dog.": ("B. a dog", "It barks."),
    "It barks.\nAnswer: B": ("B", "It barks."),
    "The answer is 3.5.": ("3.5", None),
    "The answer is on the sign. So the answer is B.": ("B", "The answer is on the sign."),
    "The answer is B. I am sure. It barks.": ("The answer is B. I am sure. It barks.", None),
    "I think the answer is B.": ("I think the answer is B.", None),
    "The answer is not clear\nto me": ("The answer is not clear\nto me", None),
    "It said answer: no": ("It said answer: no", None),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_replies(reply: str) -> None:
    assert split_reply(reply) == REPLIES[reply]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (r"I look. I see 3. Therefore, the final answer is \boxed{3}.", ("3", "I look. I see 3.")),
        (r"\boxed{\frac{1}{2}}", (r"\frac{1}{2}", None)),
        (r"First \boxed{1}, no.\n\boxed{\text{blue} car}", ("blue car", r"First \boxed{1}, no.")),
        (r"[image] \boxed{A}", ("A", "[image]")),
        (r"\boxed{3", None),
        ("3", None),
        (r"\boxed{}", ("", None)),
    ],
)
def test_boxes(reply: str, expected: tuple[str, str | None] | None) -> None:
    assert split_boxed(reply.replace(r"\n", "\n")) == expected


PLAIN = "What is it?\nA. a dog\nB. a cat\nAnswer with the letter."


@pytest.mark.parametrize("answer", ["B", "B.", "(B)", "B. a cat", "(B) A cat."])
def test_choices(answer: str) -> None:
    asked = "What is it?\nAnswer with the letter."
    assert split_choices(PLAIN, answer) == (asked, ("a dog", "a cat"), "B")


@pytest.mark.parametrize("style", ["({})", "{})", "{}:"])
def test_styles_of_choices(style: str) -> None:
    question = "\n".join(["Which?", *(f" {style.format(letter)} {n}" for n, letter in enumerate("ABCDE"))])
    assert split_choices(question, "E") == ("Which?", ("0", "1", "2", "3", "4"), "E")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (PLAIN, "C"),
        (PLAIN, "a cat"),
        (PLAIN, "B. a dog"),
        (PLAIN, "B or A"),
        ("What is it?\nA. a dog", "A"),
        ("A. a dog\nB. a cat", "A"),
        ("What?\nB. a dog\nC. a cat", "B"),
        ("What?\nA. a dog\nB) a cat", "B"),
        ("What?\nA. a dog\nor\nB. a cat", "B"),
        ("What?\nA. a dog\nB. a cat\nAnd what?\nA. hay", "B"),
        ("What?\nA. <image>\nB. <image>", "B"),
        ("What? A. a dog B. a cat", "B"),
        ("What?\nA.dog\nB.cat", "B"),
    ],
)
def test_what_may_be_no_choices(question: str, answer: str) -> None:
    assert split_choices(question, answer) == (question, None, answer)


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("B", ("x", "y"), "B"),
        ("(b)", ("x", "(B)"), "B"),
        (" y ", ("x", "Y."), "B"),
        (1, ("x", "y"), "B"),
        ("1", ("x", "y"), "B"),
        ("1", ("1", "2"), "A"),
        (0, ("1", "0"), "A"),
        ("A", ("B", "A"), "A"),
    ],
)
def test_letters(answer: str | int, choices: tuple[str, ...], letter: str) -> None:
    assert letter_of(answer, choices) == letter


@pytest.mark.parametrize("answer", ["C", 2, "z", "", "-1", "1.0", "same"])
def test_answers_that_are_no_choice(answer: str | int) -> None:
    text = refusal(lambda: letter_of(answer, ("same", "same")))
    assert repr(answer) in text and "A to B, 0 to 1" in text


def test_more_choices_than_letters() -> None:
    assert "27 choices, more than 26" in refusal(lambda: letter_of(0, ["x"] * 27))


def test_labels_of_choices() -> None:
    assert unlabelled(["A. x", "B. y"]) == ("x", "y") and unlabelled(["(A) x", "(B) y"]) == ("x", "y")
    assert unlabelled(["A. x", "y"]) == ("A. x", "y") and unlabelled(["B. x", "A. y"]) == ("B. x", "A. y")
