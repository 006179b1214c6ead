"""The extraction rules that BLINK and VisualPuzzles were scored with, by their own code, quirks included.

BLINK: github.com/zeyofu/BLINK_Benchmark (2d6a779) eval/test_benchmark.py, `analyze_answer`. Nothing is stripped, case
counts. Where it asks an LLM, there is no answer here (eval/judge.py can ask one).

    bare letter       the reply is one of A-E, or one of (A)-(E)
    last paragraph    exactly one option in brackets stands as a word of its own after the last blank line (not `(B).`)
    whole reply       the same of the whole reply
    asks an LLM       everything else

VisualPuzzles: github.com/neulab/VisualPuzzles (ee212f9) lmms-eval/lmms_eval/tasks/VisualPuzzles/utils.py,
`parse_response`: the rules of VISUAL_PUZZLES in order, of each the last letter on offer. Where it draws a random
letter, there is no answer here. Known quirks: `Answer: Cannot` is C, `Answer: A` beats a later `Final Answer: B`,
`**Answer:** B` is nothing, option 5 is found in 15.

A letter that is not on offer can never be right, so it is no answer.
"""

import re
from collections.abc import Sequence

from data.sample import LETTERS

BRACKETED = tuple(f"({letter})" for letter in "ABCDE")

# `\s*` before a bracket, as in the original, changes no match, but takes quadratic time on spaces.
VISUAL_PUZZLES = (
    ("Answer: (X)", re.compile(r"Answer:\s*\(([A-Za-z])\)")),
    ("Answer: X", re.compile(r"(?<!Final )Answer:\s*([A-Za-z])")),
    ("Final Answer: X", re.compile(r"Answer:\s*([A-Za-z])")),
    ("(X)", re.compile(r"\(([A-Za-z])\)")),
    ("X)", re.compile(r"([A-Za-z])\)")),
    ("{X}", re.compile(r"\{([A-Za-z])\}")),
    ("$X$", re.compile(r"\$([A-Za-z])\$")),
    ("X.", re.compile(r" ([A-Da-d])\.")),
    ("short reply", re.compile(r" ([A-Da-d])")),  # at most 4 characters
)


def blink(reply: str, n_choices: int) -> tuple[str | None, str]:
    """Letter and name of the rule."""
    letters = LETTERS[:n_choices]
    if reply in tuple("ABCDE") or reply in BRACKETED:
        letter = reply.strip("()")
        return (letter, "bare letter") if letter in letters else (None, "letter not on offer")
    for name, text in (("last paragraph", reply.split("\n\n")[-1]), ("whole reply", reply)):
        found = set(text.split()).intersection(BRACKETED[:n_choices])
        if len(found) == 1:
            return found.pop()[1], name
    return None, "asks an LLM"


def visual_puzzles(reply: str, n_choices: int, choices: Sequence[str] | None) -> tuple[str | None, str]:
    """Letter and name of the rule. `choices` is None where the options are drawn in the picture."""
    letters = LETTERS[:n_choices]
    reply = reply.strip()
    for name, pattern in VISUAL_PUZZLES:
        if name == "short reply" and len(reply) > 4:
            continue
        valid = [found.upper() for found in pattern.findall(" " + reply) if found.upper() in letters]
        if valid:
            return valid[-1], name
    if choices is not None:
        for letter, text in zip(letters, choices, strict=True):
            if f"answer: {text}" in reply.lower() or f"answer:{text}" in reply.lower():
                return letter, "answer: option text"
        ends = [(" " + reply).rfind(text) for text in choices]
        if max(ends) >= 0:
            return letters[ends.index(max(ends))], "last option text"
    return None, "random letter"
