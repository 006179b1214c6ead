"""Rules that take an answer, its reasoning and its choices out of running text. What is not plain stays as it is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.sample import LETTERS, DataError

_OPTION = re.compile(r"\s*(\(?)([A-Z])([.):])\s+(\S.*?)\s*")
_LETTER = re.compile(r"\(?([A-Z])(?:[.):]|\)\.)?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[.):]\s*(\S.*)", re.DOTALL)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_STATED = re.compile(
    r"(?:\A|\n|(?<=[.!?])\s)\s*(?:(?:(?:so|thus|hence|therefore),?\s+)?the\s+(?:final\s+|correct\s+)?answer\s+is\b:?"
    r"|(?:(?<=\n)|\A)\s*(?:final\s+)?answer:)",
    re.IGNORECASE,
)


def split_reply(reply: str) -> tuple[str, str | None]:
    """(answer, rationale) of a reply. The rationale is None when no separator is found; then all is the answer.

    In this order: one <answer>..</answer>, with what stands in <think>..</think> or else before it as rationale;
    <think>..</think> at the start, with what follows as answer; a last sentence that begins `The answer is` or
    `So the final answer is` or the like, or a last line that begins `Answer:`.
    """
    tagged = list(_TAGGED.finditer(reply))
    if len(tagged) == 1:
        before = reply[: tagged[0].start()]
        thought = _THOUGHT.match(before)
        return tagged[0][1].strip(), (thought[1] if thought else before).strip() or None
    if thought := _THOUGHT.fullmatch(reply):
        return thought[2].strip(), thought[1].strip() or None
    for stated in list(_STATED.finditer(reply))[-1:]:
        answer = reply[stated.end() :].strip().rstrip(".")
        if answer and not re.search(r"\n|[.!?]\s", re.sub(r"\A\(?[A-Z][.):]+\s", "", answer)):
            return answer, reply[: stated.start()].strip() or None
    return reply.strip(), None


def split_boxed(reply: str) -> tuple[str, str | None] | None:
    r"""(answer, rationale) of a reply that ends on \boxed{..}: the last box, and the sentences before it."""
    start = reply.rfind(r"\boxed{")
    depth = 0
    for place in range(start + len(r"\boxed"), len(reply) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(reply[place], 0)
        if depth == 0:
            answer = reply[start + len(r"\boxed{") : place].strip()
            answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer)
            sentences = re.match(r"(.*[.!?:>\]\n])(?=\s|\Z|<)", reply[:start], re.DOTALL)
            return answer, (sentences[1].strip() if sentences else "") or None
    return None


def split_choices(question: str, answer: str) -> tuple[str, tuple[str, ...] | None, str]:
    """(question without its options, choices, letter) when options and answer are unmistakable, else all as it was.

    Unmistakable: lines one after the other that begin `A.`, `B.`, ... in one style (or `A)`, `A:`, `(A)`), at least
    two and no other such line, text besides them, and as answer a letter of them, alone or with its own option.
    """
    lines = question.splitlines()
    found = [(number, match) for number, line in enumerate(lines) if (match := _OPTION.fullmatch(line))]
    numbers, options = [n for n, _ in found], tuple(m[4] for _, m in found)
    rest = "\n".join(line for number, line in enumerate(lines) if number not in numbers).strip()
    if (
        len(found) < 2
        or not rest
        or "".join(m[2] for _, m in found) != LETTERS[: len(found)]
        or numbers != list(range(numbers[0], numbers[0] + len(found)))
        or len({(m[1], m[3]) for _, m in found}) != 1
        or any("<image>" in option for option in options)
    ):
        return question, None, answer
    letter = _letter(answer, options)
    return (rest, options, letter) if letter else (question, None, answer)


def _letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer is, alone or followed by the text of its choice."""
    match = _LETTER.fullmatch(answer) or _LETTER_AND_TEXT.fullmatch(answer)
    if not match or match[1] not in LETTERS[: len(choices)]:
        return None
    if match.re is _LETTER_AND_TEXT and _same(match[2]) != _same(choices[LETTERS.index(match[1])]):
        return None
    return match[1]


def _same(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def letter_of(answer: str | int, choices: Sequence[str]) -> str:
    """The letter of an answer given as letter, text of one choice, or index from 0 (tried in this order)."""
    if len(choices) > len(LETTERS):
        raise DataError(f"{len(choices)} choices, more than {len(LETTERS)}; leave the row out")
    if isinstance(answer, str):
        answer = answer.strip()
        if letter := _letter(answer, choices):
            return letter
        same = [letter for letter, choice in zip(LETTERS, choices, strict=False) if _same(choice) == _same(answer)]
        if len(same) == 1:
            return same[0]
    if str(answer).isdecimal() and int(answer) < len(choices):
        return LETTERS[int(answer)]
    last = f"{LETTERS[len(choices) - 1]}, 0 to {len(choices) - 1}"
    raise DataError(f"answer {_short(answer)} is none of {len(choices)} choices; give A to {last}, or a choice's text")


def folded(question: str, choices: Sequence[str]) -> str:
    """A question with its choices written below it."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def unlabelled(choices: Sequence[str]) -> tuple[str, ...]:
    """Choices without `A. `, `(B) `, ... where each of them bears its own letter."""
    found = [_OPTION.fullmatch(choice) for choice in choices]
    if all(match and match[2] == letter for match, letter in zip(found, LETTERS, strict=False)):
        return tuple(match[4] for match in found if match)
    return tuple(choice.strip() for choice in choices)


def text_in(record: Mapping[str, Any], name: str) -> str:
    """A field as text; DataError when it is missing or no text or number."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{name!r} is {_short(value)}, not text; mend the row or leave it out")
    return str(value).strip()


def paths_in(record: Mapping[str, Any], *names: str) -> tuple[Path, ...]:
    """Paths of pictures in the first field that is there, as one text or a list of texts."""
    value: object = next((record[name] for name in names if record.get(name)), [])
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(path, str) and path for path in listed):
        raise DataError(f"{names[0]!r} is {_short(value)}, not a path or a list of paths; mend it or leave the row out")
    return tuple(Path(path) for path in listed)


def _short(value: object) -> str:
    whole = "missing" if value is None else repr(value)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
