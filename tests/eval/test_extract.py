"""What is read out of a reply: agreement with BLINK's authors, hard cases, and no text that breaks the rules."""

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sample import LETTERS
from eval.extract import BENCHMARKS, Extraction, extract
from eval.plain import PLAIN as RULES
from tests.refusal import refusal

HERE = Path(__file__).parent
REPLIES = sorted((HERE / "replies").glob("*.jsonl.gz"))
CASES = [json.loads(line) for line in (HERE / "extraction_cases.jsonl").read_text(encoding="utf-8").splitlines()]

POINTS = ["Point A", "Point B", "Point C", "Point D"]
LATTER = ["the second image", "the third image"]
IMAGES = ["the first image", "the second image", "the third image", "the fourth image"]
CLOSER = ["A is closer", "B is closer"]
DARKER = ["A is darker", "B is darker", "About the same"]
YES, SIDES, BOXES = ["yes", "no"], ["left", "right"], ["Box A", "Box B"]
SUMS, COUNTS = ["5", "15", "25", "50"], ["4", "3", "5", "6"]
PICTURES = ["picture A", "picture B", "picture C", "picture D"]
WORDS = ["Art", "Party", "Artist", "Part of a car"]


def plain(reply: str, choices: list[str] | None = None, n_choices: int = 4) -> Extraction:
    return extract(reply, "plain", "plain", len(choices) if choices else n_choices, choices)


# ---- The bars ----


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def verdict(row: dict[str, Any]) -> str | None:
    """The letter that BLINK's authors read, `(C) Point C` being C; None for `(Z)`, none, and letters not on offer."""
    official = row["official"] or ""
    letter = official[1:2] if official[:1] == "(" and official[2:3] == ")" else ""
    return letter if letter and letter in LETTERS[: row["n_choices"]] else None


def test_agreement_with_the_authors_of_blink() -> None:
    """At least 98.5 % of all replies, and 93 % of those where their rules gave nothing and an LLM was asked."""
    asked, right = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for path in REPLIES:
        model = path.name.removesuffix(".jsonl.gz")
        for row in rows(path):
            judged = extract(row["reply"], "blink", "official", row["n_choices"], row["choices"]).rule == "asks an LLM"
            answer = extract(row["reply"], "blink", "plain", row["n_choices"], row["choices"]).answer
            for key in {(model, False), ("all", False), (model, judged), ("all", judged)}:
                asked[key] += 1
                right[key] += answer == verdict(row)
    for (model, judged), total in sorted(asked.items()):
        share = 100 * right[model, judged] / total
        print(f"{model:20} {'where an LLM was asked' if judged else 'all replies':22} {total:6} {share:7.2f} %")
    assert len(REPLIES) == 6 and asked["all", False] == 6 * 1901
    assert right["all", False] >= 0.985 * asked["all", False]
    assert right["all", True] >= 0.93 * asked["all", True]


def test_official_rules_equal_the_saved_verdicts() -> None:
    """Where BLINK's rules give a letter, it is the saved one, but for two verdicts on a bare C."""
    differ = 0
    for path in REPLIES:
        for row in rows(path):
            found = extract(row["reply"], "blink", "official", row["n_choices"], row["choices"])
            differ += found.rule != "asks an LLM" and found.answer != verdict(row)
    assert differ == 2


# ---- The hard cases ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_hard_cases(case: dict[str, Any]) -> None:
    benchmark = {"blink": "blink", "visualpuzzles": "visual_puzzles"}[case["benchmark"]]
    expected = None if case["needs_judge"] or case["random_fallback"] else case["expected"]
    for choices in [case["choices"], None] if case["options_in_image"] else [case["choices"]]:
        n_choices = len(case["choices"])
        assert (extract(case["raw"], benchmark, "plain", n_choices, choices).answer or "none") == case["human"]
        found = extract(case["raw"], benchmark, "official", n_choices, choices)
        assert (found.answer or "none") == (expected or "none")
        assert (found.rule == "asks an LLM") == case["needs_judge"]
        assert (found.rule == "random letter") == case["random_fallback"]


def test_there_are_all_hard_cases() -> None:
    assert len(CASES) == 46


OFFICIAL = [
    ("blink", "(B)", 2, "B", "bare letter"),
    ("blink", "E", 4, None, "letter not on offer"),
    ("blink", " B", 2, None, "asks an LLM"),
    ("blink", "(A) or (B)\n\nso (B) it is", 2, "B", "last paragraph"),
    ("blink", "(A) it is\n\nI am done.", 2, "A", "whole reply"),
    ("blink", "I choose (B).", 2, None, "asks an LLM"),
    ("blink", "I choose (C) here", 2, None, "asks an LLM"),
    ("visual_puzzles", "Answer: (b) or Answer: (c)", 4, "C", "Answer: (X)"),
    ("visual_puzzles", "Answer: Both", 4, "B", "Answer: X"),
    ("visual_puzzles", "Final Answer: D", 4, "D", "Final Answer: X"),
    ("visual_puzzles", "f(a) and g(z)", 4, "A", "(X)"),
    ("visual_puzzles", "see b) there", 4, "B", "X)"),
    ("visual_puzzles", "so $C$", 4, "C", "$X$"),
    ("visual_puzzles", "It is D. Yes", 4, "D", "X."),
    ("visual_puzzles", "c", 4, "C", "short reply"),
    ("visual_puzzles", "a b c", 4, None, "random letter"),
]


@pytest.mark.parametrize(("benchmark", "reply", "n_choices", "answer", "rule"), OFFICIAL)
def test_official_rules(benchmark: str, reply: str, n_choices: int, answer: str | None, rule: str) -> None:
    assert extract(reply, benchmark, "official", n_choices, None) == Extraction(answer, rule)


def test_official_option_texts() -> None:
    texts = ["red", "dark red", "blue", "Green"]
    assert extract("ANSWER: BLUE", "visual_puzzles", "official", 4, texts) == Extraction("C", "answer: option text")
    assert extract("first red then blue", "visual_puzzles", "official", 4, texts) == Extraction("C", "last option text")
    assert extract("dark red", "visual_puzzles", "official", 4, texts) == Extraction("A", "last option text")
    assert extract("no colour", "visual_puzzles", "official", 4, texts) == Extraction(None, "random letter")


# ---- The plain rules, one by one ----

PLAIN: list[tuple[str, str, list[str] | None, str | None]] = [
    ("bare letter", "C:", POINTS, "C"),
    ("bare letter", "[C]", POINTS, "C"),
    ("bare letter", "B<|im_end|>\n<|im_start|>user\nAnswer: C", POINTS, "B"),
    ("bare letter", "E", POINTS, None),
    ("bare letter", "(d)", POINTS, "D"),
    ("bare letter", "（Ｃ）", POINTS, "C"),
    ("bare letter", "a", POINTS, "A"),
    ("bare letter", "B)", POINTS, "B"),
    ("bare letter", "Z", POINTS, None),
    ("bare letter", "<think>Maybe A. The answer is A.</think>\nB", POINTS, "B"),
    ("bare letter", "{B}", POINTS, "B"),
    ("bare letter", "[/INST] B", PICTURES, "B"),
    ("bare letter", "<|begin_of_box|>C<|end_of_box|>", POINTS, "C"),
    ("declaration", "B has a darker surface. Answer: B is darker", DARKER, "B"),
    ("declaration", "Answer: None of the above", POINTS, None),
    ("declaration", "Answer:\n\n(B) the third image", LATTER, "B"),
    ("declaration", "5 + 10 = 15\nTherefore the answer is 15 (B).", SUMS, "B"),
    ("declaration", "It can't be A or B. So the answer must be C.", POINTS, "C"),
    ("declaration", "The answer is (A), not (B).", POINTS, "A"),
    ("declaration", "### Final Answer\n\n**C**", POINTS, "C"),
    ("declaration", "The correct answer is the second image.", LATTER, "A"),
    ("declaration", "I cannot see the image. However, the most likely answer is B.", POINTS, "B"),
    ("declaration", "The answer is: (B) Point B\n\nUser: next question? Answer: C", POINTS, "B"),
    ("declaration", "Answer: (A)\nAnswer: (B)", POINTS, "B"),
    ("declaration", "Final answer: Option D", POINTS, "D"),
    ("declaration", "answer = D", POINTS, "D"),
    ("declaration", "因此答案是A和C", POINTS, None),
    ("declaration", "Answer: A. the second image", LATTER, "A"),
    ("declaration", "My answer: C\nConfidence: 80%", POINTS, "C"),
    ("declaration", "\\boxed{\\text{Point C}}", POINTS, "C"),
    ("declaration", "Answer: $15$", SUMS, "B"),
    ("declaration", '```json\n{"answer": "C"}\n```', POINTS, "C"),
    ("declaration", "答案为：Ｂ", POINTS, "B"),
    ("declaration", "My choice: B", POINTS, "B"),
    ("declaration", "Answer: B (the rim)", POINTS, "B"),
    ("declaration", "Reasoning... A?</think>The answer is (C).", POINTS, "C"),
    ("declaration", "Answer: F", POINTS, None),
    ("declaration", "Answer is c", POINTS, "C"),
    ("declaration", "Sure! Here's my reasoning: ... \n\nCorrect answer: **C**", POINTS, "C"),
    ("declaration", "ANSWER: b", POINTS, "B"),
    ("declaration", "The answer would be Point C.", POINTS, "C"),
    ("declaration", "I considered (A) but it is wrong. Final answer: D", POINTS, "D"),
    ("declaration", "因此,应选择 A。", POINTS, "A"),
    ("declaration", "The answer is therefore B.", POINTS, "B"),
    ("declaration", "Answer - B", POINTS, "B"),
    ("declaration", "选项C是正确的", POINTS, "C"),
    ("declaration", "The answer is d.", POINTS, "D"),
    ("declaration", "选项A错误,选项D正确", POINTS, "D"),
    ("declaration", "The statement is correct, so the answer is (A) yes.", YES, "A"),
    ("declaration", "Answer: Cannot be determined", POINTS, None),
    ("declaration", "Thus, C is the correct answer.", POINTS, "C"),
    ("declaration", "the correct answer is: B. the third image", LATTER, "B"),
    ("declaration", "<think>x</think><answer> (C) Point C </answer>", POINTS, "C"),
    ("declaration", "The correct answer is not listed.", POINTS, None),
    ("declaration", "The answer is (E).", POINTS, None),
    ("declaration", 'Answer: "B"', POINTS, "B"),
    ("declaration", '{"answer": "B"}', POINTS, "B"),
    (
        "declaration",
        "The video is shot by a camera moving clockwise around the object, i.e. left. The answer is (A).",
        SIDES,
        "A",
    ),
    ("declaration", "The answer is **B**.", POINTS, "B"),
    ("declaration", "答案:C", POINTS, "C"),
    ("declaration", "选B", POINTS, "B"),
    ("declaration", "The answer: C is the best since D is too far.", POINTS, "C"),
    ("declaration", "Answer: A, B", POINTS, None),
    ("declaration", "Answer: N/A", POINTS, None),
    ("declaration", "Answer: The fourth image is most likely to be a real photograph.", IMAGES, "D"),
    ("declaration", "$$\\boxed{B. \\text{the third image}}$$", LATTER, "B"),
    ("declaration", "The answer is A", POINTS, "A"),
    ("declaration", "The color of point B is darker than the color of point A, so the answer is (B).", DARKER, "B"),
    ("declaration", "Final Answer: $\\boxed{\\text{D}}$", POINTS, "D"),
    ("declaration", "The final answer is \\(\\boxed{C}\\).", POINTS, "C"),
    ("declaration", "<answer>B</answer>", POINTS, "B"),
    ("declaration", "Based on my analysis, I would choose (B).", POINTS, "B"),
    ("declaration", "答案选C", POINTS, "C"),
    ("declaration", "It is impossible to determine, but I will guess C.", POINTS, "C"),
    ("declaration", "Let's see. Correct choice: B", POINTS, "B"),
    ("declaration", "## Answer\nC", POINTS, "C"),
    ("declaration", "【答案】B", POINTS, "B"),
    ("declaration", "If I had to guess, I would say Point D.", POINTS, "D"),
    ("declaration", "Therefore the correct answer is option **(B)**: the third image.", LATTER, "B"),
    ("declaration", "The answer is A because it is closest", POINTS, "A"),
    ("declaration", "I choose a", POINTS, "A"),
    ("declaration", "所以，正确答案是（B）第三张图片。", LATTER, "B"),
    ("declaration", "ans: b", POINTS, "B"),
    ("declaration", "(A) yes\n(B) no\n\nAnswer: (B)", YES, "B"),
    ("declaration", "The answer is 15.", SUMS, "B"),
    ("declaration", "答案是 B", POINTS, "B"),
    ("declaration", "我认为选项B是对的", POINTS, "B"),
    ("declaration", "Answer: $B$", POINTS, "B"),
    (
        "declaration",
        "REF is on the left ear. A is on the left ear. B is on the nose. C is on the tail. D is on the "
        "paw. So the answer should be A.",
        POINTS,
        "A",
    ),
    ("declaration", "Answer is option (C).", POINTS, "C"),
    ("declaration", "Step 1: A -> B. Step 2: C.\n\nAnswer: D", None, "D"),
    ("declaration", "I'd go with option C.", POINTS, "C"),
    ("declaration", "The answer must be one of A, B, C, or D. I pick D.", PICTURES, "D"),
    ("declaration", "**Answer: B**", POINTS, "B"),
    ("declaration", "I choose A.", POINTS, "A"),
    ("declaration", "The answer is B, though I cannot be certain.", POINTS, "B"),
    ("declaration", "正确选项:C", POINTS, "C"),
    ("declaration", "My best guess is B", POINTS, "B"),
    ("declaration", "{'answer': 'C'}", POINTS, "C"),
    ("declaration", "I think the answer is C, since I see it", [*"012345678", "x"], "C"),
    ("declaration", "Answer: The third image (B)", LATTER, "B"),
    ("declaration", "Answer: A or B", POINTS, None),
    (
        "declaration",
        "The style of the reference image is cubism. The third image is also cubism. The second is "
        "impressionist.\n\nThe answer is the third image.",
        LATTER,
        "B",
    ),
    ("declaration", "Answer: A\n\nExplanation: B is farther away, C too.", POINTS, "A"),
    ("declaration", "\\text{The answer is } \\boxed{\\textbf{(C)}}", POINTS, "C"),
    ("declaration", "故选：D", POINTS, "D"),
    ("declaration", "**Answer:** (B)", POINTS, "B"),
    ("declaration", "The answer is (C) Point C. I'm not certain, it could also be (D).", POINTS, "C"),
    ("declaration", "The answer is picture C.", PICTURES, "C"),
    ("declaration", "The correct option is C) Point C", POINTS, "C"),
    ("declaration", "The right one must be (D).", POINTS, "D"),
    ("declaration", "正确答案是（D）。", POINTS, "D"),
    (
        "declaration",
        "Looking at the two points in the image, point B appears to be closer to the camera compared to "
        "point A. Therefore, the answer is:\n\n(B) B is closer",
        CLOSER,
        "B",
    ),
    ("declaration", "\\boxed{15}", SUMS, "B"),
    ("declaration", "The answer is the option B", POINTS, "B"),
    ("line of its own", "(B) the third image", LATTER, "B"),
    ("line of its own", "Of these the best is clear to me\n\n(B) Point B\n\nIt lies on the edge.", POINTS, "B"),
    ("line of its own", "(b)\nIt shows the same house as the first.", LATTER, "B"),
    ("lead", "(C) About the same: both A and B sit on gray walls.", DARKER, "C"),
    ("lead", "The second one", LATTER, "A"),
    ("lead", "C. Because A and B are different", POINTS, "C"),
    ("lead", "(A) left. The objects move right.", SIDES, "A"),
    ("lead", "No, the laptop is not on top of the table.", YES, "B"),
    ("lead", "Point C, it lies on the rim. All others lie elsewhere.", POINTS, "C"),
    ("lead", "Right", SIDES, "B"),
    ("lead", "The 2nd image.", IMAGES, "B"),
    ("lead", "1,000", ["100", "1,000", "10,000", "10"], "B"),
    ("lead", "Yes, there is no cat there.", YES, "A"),
    ("lead", "(A) Point A (B) Point B (C) Point C (D) Point D", POINTS, None),
    ("lead", "the third", LATTER, "B"),
    ("lead", "Yes, the dog is behind the chair. There is no doubt.", YES, "A"),
    ("lead", "yes", YES, "A"),
    ("lead", "a. the second image", LATTER, "A"),
    ("lead", "Image 3", IMAGES, "C"),
    ("lead", "A - Point A", POINTS, "A"),
    ("lead", "The third image", IMAGES, "C"),
    ("lead", "No, the cat is under the table.", YES, "B"),
    ("lead", "-5", ["5", "-5", "0", "1"], "B"),
    ("lead", "third image", IMAGES, "C"),
    ("lead", "B\nB\nB\nB", POINTS, "B"),
    ("lead", "No.", YES, "B"),
    ("lead", "picture B", PICTURES, "B"),
    ("lead", "Party", WORDS, "B"),
    ("lead", "(B) shows more detail here\nand (B) is nearer the rim", POINTS, "B"),
    ("lead", "5", SUMS, "A"),
    ("lead", "A the second image", LATTER, "A"),
    ("last paragraph", "Choose (C)", POINTS, "C"),
    ("last paragraph", "Ans. (B)", POINTS, "B"),
    ("last paragraph", "(B) and (C) are wrong, so it is (A).", POINTS, "A"),
    ("last paragraph", "The next shape should be a circle. Answer (D).", PICTURES, "D"),
    ("last paragraph", "Yes, (B)!", POINTS, "B"),
    (
        "last paragraph",
        "(A) picture A is not correct. (B) picture B is not correct. (C) picture C is correct. (D) "
        "picture D is not correct.",
        PICTURES,
        "C",
    ),
    ("last paragraph", "Between (A) and (B), (B) is closer.", CLOSER, "B"),
    ("last paragraph", "Option (b)", POINTS, "B"),
    ("last paragraph", "Answer (D)", PICTURES, "D"),
    ("last paragraph", "Option (A) is incorrect. Option (B) is incorrect. Option (C) is correct.", POINTS, "C"),
    ("last paragraph", "It is (C).", POINTS, "C"),
    (
        "conclusion",
        "Analysis:\n(A) has 3 dots.\n(B) has 4 dots.\n(C) has 5 dots.\n(D) has 6 dots.\nThe pattern "
        "needs 5 dots, so it should be C.",
        PICTURES,
        "C",
    ),
    ("conclusion", "The surface colors of A and B look the same.", DARKER, None),
    ("conclusion", "Comparing the two, Box B is a tighter fit.\nBox A is too large.", BOXES, "B"),
    ("conclusion", "Point B corresponds to the reference point.", POINTS, "B"),
    ("conclusion", "So the total is 15.", SUMS, "B"),
    ("conclusion", "Based on the perspective, B is closer to the camera.", CLOSER, "B"),
    ("conclusion", "Image 4 looks most like a real photograph.", IMAGES, "D"),
    ("conclusion", "So picture B should replace the question mark.", PICTURES, "B"),
    ("conclusion", "Both boxes enclose the cup, but Box A is more accurate.", BOXES, "A"),
    ("conclusion", "Upon examination, surface color at point A and point B is about the same.", DARKER, "C"),
    ("conclusion", "Therefore, the picture that follows the pattern is picture A, not picture B.", PICTURES, "A"),
    (
        "conclusion",
        "The sequence alternates. Option A breaks it. Option B repeats it. Option C keeps it. Hence option C.",
        PICTURES,
        "C",
    ),
    ("conclusion", "The pattern is A, B, C, so next is D.", None, "D"),
    ("conclusion", "The corresponding point is Point D, located at the tip of the spout, not Point A.", POINTS, "D"),
    ("conclusion", "B is the answer.", POINTS, "B"),
    (
        "conclusion",
        "Based on the images, the third image is more similar in style to the first image, as it also "
        "uses bold colors. The second image has a more realistic style.",
        LATTER,
        "B",
    ),
    (
        "conclusion",
        "I will not speculate about the people. Comparing only the art, the third image is painted in the same style.",
        LATTER,
        "B",
    ),
    (
        "conclusion",
        "Based on the provided images, I cannot definitively say, but the second image seems closer in "
        "style to the reference.",
        LATTER,
        "A",
    ),
    (
        "conclusion",
        "The second image shares a similar style with the reference image. Both images use loose brushstrokes.",
        LATTER,
        "A",
    ),
    ("conclusion", "Box A is too large and includes background. Box B fits the dog tightly.", BOXES, "B"),
    ("conclusion", "Point A appears to be closer to the camera. Point B is in the background.", CLOSER, "A"),
    ("conclusion", "<s> The image that best fits is B</s>", PICTURES, "B"),
    ("conclusion", 'The corresponding point on the second image is the one labeled "B".', POINTS, "B"),
    ("conclusion", "Both A and B are correct", POINTS, None),
    ("conclusion", "The missing figure must have five sides, which is picture D.", PICTURES, "D"),
    ("conclusion", "Point A is on the rim, Point B on the handle. The point corresponding to REF is B.", POINTS, "B"),
    ("conclusion", "x = 5, so 3x = 15", SUMS, "B"),
    ("conclusion", "Option B is correct.", None, "B"),
    ("conclusion", "They are about the same.", DARKER, "C"),
    (
        "conclusion",
        "The first image shows a mountain lake. The second image shows a forest with a creek, and the "
        "third image shows a similar lake with mountains.\n\nThe third image appears to be the missing "
        "piece because the shoreline continues. The second image has no water.",
        LATTER,
        "B",
    ),
    ("conclusion", "None of the points match the reference, but the closest is Point C.", POINTS, "C"),
    ("conclusion", "Both points have about the same darkness.", DARKER, "C"),
    (
        "conclusion",
        "I would place the second image in the missing spot because its edges align. The third image doesn't match.",
        LATTER,
        "A",
    ),
    ("conclusion", "The red box, Box A, is the better one.", BOXES, "A"),
    (
        "conclusion",
        "Point A is located on the person in the foreground, while point B is on the wall behind. So A is closer.",
        CLOSER,
        "A",
    ),
    ("conclusion", "The missing piece is the third image.", LATTER, "B"),
    ("conclusion", "A is closer to the camera", CLOSER, "A"),
    (
        "conclusion",
        "Looking at the labelled points: A is on the lid, B is on the spout, C is on the handle, D is "
        "on the base. REF is on the spout, so B.",
        POINTS,
        "B",
    ),
    ("conclusion", "Points A and B are near each other, but the one that matches REF is Point B.", POINTS, "B"),
    ("refusal", "I do not feel comfortable making assumptions about people in the images.", LATTER, None),
    ("refusal", "I am unable to view images, so I cannot answer.", POINTS, None),
    ("refusal", "none of the above", POINTS, None),
    ("refusal", "There is not enough information to answer.", POINTS, None),
    (
        "refusal",
        "If it lies on the rim, point A might be the correct answer. If not, it is hard to tell.",
        POINTS,
        None,
    ),
    ("refusal", "无法确定", POINTS, None),
    ("refusal", "As an AI language model I can't see the images.", POINTS, None),
    ("refusal", "I'm sorry, but I can't assist with that.", POINTS, None),
    ("brackets", "I looked at everything with care.\nMy eyes went to (D) at once.\n\nThat was all.", POINTS, "D"),
    ("first sentence", "I think the real photo is the third one, because the others look rendered.", IMAGES, "C"),
    ("first sentence", "The camera is moving towards the left.", SIDES, "A"),
    ("first sentence", "The total is 5.", SUMS, "A"),
    ("first sentence", "It's 3.5", ["3", "3.5", "5", "0.5"], "B"),
    ("first sentence", "→ C", POINTS, "C"),
    ("first sentence", "The surface at Point A is darker than at Point B.", DARKER, "A"),
    ("first sentence", "The real photograph is the second image.", IMAGES, "B"),
    ("first sentence", "Point A has a darker surface color than point B.", DARKER, "A"),
    ("first sentence", "Point B seems to be nearer to the viewer than Point A", CLOSER, "B"),
    ("first sentence", "Moving left.", SIDES, "A"),
    ("first sentence", "B B B", POINTS, "B"),
    (
        "first sentence",
        "Comparing the edges of the pieces, the second image lines up with the window frame in the "
        "first image. The third image contains a different part of the wall.",
        LATTER,
        "A",
    ),
    ("first sentence", "Picture D continues the pattern.", PICTURES, "D"),
    ("first sentence", "The camera moved to the left, since objects shift right between frames.", SIDES, "A"),
    ("first sentence", "It's B", POINTS, "B"),
    ("first sentence", "It is an artist.", WORDS, "C"),
    ("first sentence", "The point labeled B in the second image", POINTS, "B"),
    (
        "first sentence",
        "The fourth image appears to be the real photograph. The first, second, and third images look "
        "computer generated.",
        IMAGES,
        "D",
    ),
    ("first sentence", "Point B is darker.", DARKER, "B"),
    ("first sentence", "The correct piece is shown in the second image; the third has the wrong colors.", LATTER, "A"),
    ("first sentence", "Option B", None, "B"),
    ("first sentence", "A is darker than B.", DARKER, "A"),
    ("first sentence", "I think it is B", POINTS, "B"),
    ("first sentence", "There are four people.", COUNTS, "A"),
    ("first sentence", "option c", None, "C"),
    ("first sentence", "There are 6 apples in the picture.", COUNTS, "D"),
    ("first sentence", "B is darker than A", DARKER, "B"),
    ("first sentence", "Between the two bounding boxes, Box A more accurately encloses the person.", BOXES, "A"),
    ("first sentence", "I can count five birds.", COUNTS, "C"),
    ("first sentence", "The camera is moving to the right when shooting the video.", SIDES, "B"),
    ("first sentence", "The camera is moving left.", SIDES, "A"),
    ("first sentence", "The bounding box that more accurately localizes the dog is Box B.", BOXES, "B"),
    ("first sentence", "must be D", POINTS, "D"),
    ("first sentence", "A is darker than point B, which is in the light.", DARKER, "A"),
    ("first sentence", "image 2 is the real photo", IMAGES, "B"),
    ("first sentence", "The word is 'Art'.", WORDS, "A"),
    ("first sentence", "Box A (red) more tightly bounds the dog than Box B (green).", BOXES, "A"),
    ("first sentence", "=> B", POINTS, "B"),
    ("first sentence", "Select option D.", POINTS, "D"),
    ("first sentence", "The closer point is A.", CLOSER, "A"),
    ("first sentence", "The result equals 25%", ["5%", "15%", "25%", "50%"], "C"),
    (
        "first sentence",
        "Since the objects shift to the right in the second frame, the camera is moving left.",
        SIDES,
        "A",
    ),
    (
        "last sentence",
        "The image provided shows a dog and a car. The dog is lying on top of the car. Yes, the dog is on the car.",
        YES,
        "A",
    ),
    ("last sentence", "Analysis:\nA: wrong count\nB: wrong shape\nC: correct\nD: wrong shade\n\nC", PICTURES, "C"),
    ("last sentence", "In the image, the cup is to the left of the plate, so the statement is false. No.", YES, "B"),
    (
        "last sentence",
        "The first and second images are obviously fake. The fourth image has odd text. The third image looks real.",
        IMAGES,
        "C",
    ),
    ("last sentence", "REF marks the handle. In the second image, the handle is marked by point C.", POINTS, "C"),
    ("last sentence", "Let me look. It lies on the rim: C", POINTS, "C"),
    (
        "last sentence",
        "The point labeled REF is on the dog's nose. In the second image, the point on the nose is labeled D.",
        POINTS,
        "D",
    ),
    ("last sentence", "Option A: no. Option B: no. Option C: yes.", POINTS, "C"),
    ("last sentence", "The answer is not A. It must be B.", POINTS, "B"),
    ("only option", "I looked at every point with care. Point C it is. That was all.", POINTS, "C"),
    ("none", "A,B", POINTS, None),
    ("none", "All four images look real.", IMAGES, None),
    ("none", "Image 1 looks fake. Image 2 looks fake. Image 3 does as well. Image 4 too.", IMAGES, None),
    ("none", "A cat is on the mat.", POINTS, None),
    ("none", "???", POINTS, None),
    ("none", "AB", POINTS, None),
    ("none", "A & B", POINTS, None),
    ("none", "No option is correct.", POINTS, None),
    ("none", "It could be either the second or the third image.", LATTER, None),
    ("none", "The camera moves to the right as objects shift from right to left.", SIDES, None),
    ("none", "Please provide the image.", POINTS, None),
    ("none", "", POINTS, None),
    ("none", "<think>Answer: A and so on", POINTS, None),
    ("none", "the image on the left", IMAGES, None),
    ("none", "The camera moves from right to left", SIDES, None),
    ("none", "A/B", POINTS, None),
    ("none", "<think>Answer: A</think>", POINTS, None),
    ("none", "ABCD", POINTS, None),
    ("none", "   \n", POINTS, None),
    ("none", "A and C", POINTS, None),
    ("none", "The answer is a cat", POINTS, None),
    ("none", "It costs 1.5 to make", SUMS, None),
    ("none", "(A) Point A\n(B) Point B\n(C) Point C\n(D) Point D", POINTS, None),
    ("none", "f(a) = 3", POINTS, None),
    ("none", "The figure has a. two circles", None, None),
    ("none", "A. Point A\nB. Point B\nC. Point C\nD. Point D", POINTS, None),
]


@pytest.mark.parametrize(("rule", "reply", "choices", "answer"), PLAIN)
def test_plain_rules(rule: str, reply: str, choices: list[str] | None, answer: str | None) -> None:
    assert plain(reply, choices) == Extraction(answer, rule)


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, *_ in PLAIN} == {name for name, _ in RULES} | {"none"}


def test_letters_follow_the_number_of_choices() -> None:
    assert plain("The answer is (G)", None, 7).answer == "G"
    assert plain("The answer is (G)", None, 6).answer is None
    assert plain("I think so", None, 26).answer is None


# ---- Nothing breaks them ----

PIECES = [
    "(A)",
    "B",
    "answer is ",
    "Answer:",
    "\n\n",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "Point A",
    " is ",
    "not ",
    "a ",
    "I ",
]
TEXT = st.text(max_size=2000) | st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=200).map("".join)
OPTIONS = st.none() | st.lists(st.text(max_size=12), min_size=1, max_size=26)


@settings(deadline=None, max_examples=300)
@given(TEXT, st.sampled_from(BENCHMARKS), st.sampled_from(["plain", "official"]), st.integers(1, 26), OPTIONS)
def test_any_text(reply: str, benchmark: str, rules: str, n_choices: int, choices: list[str] | None) -> None:
    n_choices = n_choices if choices is None else len(choices)
    rules = "plain" if benchmark == "plain" else rules
    found = extract(reply, benchmark, rules, n_choices, choices)
    assert found.answer is None or found.answer in list(LETTERS[:n_choices])
    assert found.rule and (found.answer is None or found.rule not in ("none", "asks an LLM", "random letter"))


@given(st.integers(1, 26), st.integers(0, 25))
def test_bare_letters(n_choices: int, index: int) -> None:
    for form in ("{}", "({})", " {}.\n", "**{}**", "Answer: {}", "The answer is ({})."):
        answer = plain(form.format(LETTERS[index]), None, n_choices).answer
        assert answer == (LETTERS[index] if index < n_choices else None)


LONG = [
    "(", "A", "A ", "(A) ", "answer is ", "Answer:", "Answer: ", "Point A and ", "the second image ", "\n", " ", "\n ",
    "\t", "than ", "if ", "not, ", "cannot ", "<think>", "</think>", "</s>", "<s>", "<|", "\\boxed{", "\\text{", "{",
    "1. x\n", "(A) Point A\n", "answer to ", "I would ", "the best option of ", "_", "'", "-", "#", "\n#", "...! ",
    "选", "\n   USER", "5",
]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_a_million_characters_take_no_time(piece: str) -> None:
    reply = piece * (1_000_000 // len(piece))
    for choices in (POINTS, IMAGES, SUMS, None):
        for benchmark, rules in (("plain", "plain"), ("blink", "official"), ("visual_puzzles", "official")):
            start = time.process_time()
            extract(reply, benchmark, rules, 4, choices)
            assert time.process_time() - start < 2


def test_the_end_of_a_long_reply_counts() -> None:
    assert plain("I see. " * 100_000 + "\nAnswer: C").answer == "C"
    assert plain("<think>" + "Perhaps (A). " * 100_000 + "</think>(C)").answer == "C"


# ---- Wrong use, and the filter ----


@pytest.mark.parametrize(
    ("benchmark", "rules", "n_choices", "choices"),
    [
        ("plain", "official", 4, None),
        ("mmmu", "plain", 4, None),
        ("blink", "loose", 4, None),
        ("blink", "plain", 0, None),
        ("blink", "plain", 27, None),
        ("blink", "plain", 3, ["x", "y"]),
    ],
)
def test_wrong_use(benchmark: str, rules: str, n_choices: int, choices: list[str] | None) -> None:
    refusal(lambda: extract("B", benchmark, rules, n_choices, choices))


def run(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval.extract", *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, cwd=HERE.parents[1])


def test_the_filter() -> None:
    lines: list[dict[str, Any]] = [
        {"reply": "(B) the third image", "choices": LATTER, "id": 7},
        {"reply": "Answer: Cannot be determined", "choices": None, "n_choices": 4},
        {"reply": "答案：Ｃ", "n_choices": 4},
    ]
    done = run("".join(json.dumps(row) + "\n" for row in lines), "--benchmark", "visual_puzzles", "--rules", "plain")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"answer": "B", "rule": "line of its own"},
        {"answer": None, "rule": "declaration"},
        {"answer": "C", "rule": "declaration"},
    ]
    official = run(json.dumps(lines[1]), "--benchmark", "visual_puzzles", "--rules", "official")
    assert json.loads(official.stdout) == {"answer": "C", "rule": "Answer: X"}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"reply": 3, "n_choices": 2}', '{"reply": "B"}', '{"reply": "B", "choices": "AB"}',
     '{"reply": "B", "n_choices": true}', '{"reply": "B", "n_choices": 99}', '{"reply": "B", "choices": []}',
     '{"reply": "B", "n_choices": 3, "choices": ["x"]}'],
)  # fmt: skip
def test_a_broken_line(line: str) -> None:
    done = run('{"reply": "B", "n_choices": 2}\n' + line + "\n", "--benchmark", "blink", "--rules", "plain")
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1
    assert "line 2" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_line_that_is_not_text() -> None:
    command = [sys.executable, "-m", "eval.extract", "--benchmark", "blink"]
    for line in (b'{"reply": "\xff", "n_choices": 2}\n', b"[" * 100_000 + b"\n"):
        done = subprocess.run(command, input=line, capture_output=True, timeout=60, cwd=HERE.parents[1])
        assert done.returncode == 2 and b"line 1" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_filter_has_no_official_rules_of_plain() -> None:
    done = run('{"reply": "B", "n_choices": 2}\n', "--benchmark", "plain", "--rules", "official")
    assert done.returncode == 2 and "official" in done.stderr


def test_it_answers_at_once_line_by_line() -> None:
    """It imports no torch, and each line is answered before the next is read."""
    command = [sys.executable, "-m", "eval.extract", "--benchmark", "blink", "--rules", "plain"]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
    ) as one:
        assert one.stdin and one.stdout
        for letter in "AB":
            one.stdin.write(json.dumps({"reply": letter, "n_choices": 2}) + "\n")
            one.stdin.flush()
            assert json.loads(one.stdout.readline())["answer"] == letter
        print(f"first answers after {time.monotonic() - start:.2f} s")
        one.stdin.close()
    names = "import eval.extract, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", names], text=True, cwd=HERE.parents[1]) == "set()\n"
