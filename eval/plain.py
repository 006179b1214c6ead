"""The plain rules: what a careful reader would say that a reply chooses. eval/extract.py says what each is for.

A rule takes a reading and returns a letter on offer, NO_ANSWER when the reply decides for none of the options, or None
when it does not apply, and the next rule is asked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from eval.mentions import (
    NEGATION,
    REFUSAL,
    UNSURE,
    Options,
    brackets,
    chosen,
    clean,
    concludes,
    joined,
    mentions,
    named,
    paragraphs,
    sentences,
    supposed,
)

NO_ANSWER = ""


@dataclass(frozen=True)
class Reading:
    """A reply, cleaned, as the rules see it."""

    text: str
    options: Options

    @cached_property
    def sentences(self) -> list[str]:
        return sentences(self.text)

    @cached_property
    def prose(self) -> list[str]:
        """The sentences without a list of the options."""
        lines = self.text.split("\n")
        rest = [line for line in lines if not OPTION_LINE.match(line)]
        return sentences("\n".join(rest)) if len(rest) < len(lines) - 1 else self.sentences

    def offered(self, letter: str) -> str:
        """The letter, in capitals, or NO_ANSWER."""
        return letter.upper() if letter.upper() in self.options.letters else NO_ANSWER


IS = r"(?:is|would be|should be|must be|will be|could be|may be|might be|was|'s)"
PICKED = (
    r"(?:answer|option|choice|letter|match|image|picture|point|one|selection|guess|response|pick|conclusion|assessment|"
    r"solution|judge?ment)"
)
DECLARED = re.compile(
    r"\bans(?:wers?|\.)?(?: choice| option| letter)?(?: (?:to|for|of|here|that)\b[^.:\n]{0,80}?)?"
    rf"\s{{0,3}}(?:\b{IS}\b\s{{0,3}}:?|[:=]|->|→|-(?= )|\n)"
    r"|\b(?:correct|best|right|most \w{1,20}|appropriate|final|likely|true|proper|closest|matching|suitable) "
    rf"{PICKED}\b(?: [^.:\n,]{{0,60}}?)?\s{{0,3}}(?:\b{IS}\b\s{{0,3}}:?|:|\n)"
    rf"|\bmy (?:\w{{1,20}} )?{PICKED}\b\s{{0,3}}(?:\b{IS}\b\s{{0,3}}:?|:)"
    rf"|\b(?:option|choice)s? {IS}\b"
    r"|\bI(?: would| will| am going to|'d|'ll| must| have to)?(?: \w{1,12}ly)? (?:choose|chose|pick|picked|select|"
    r"selected|go with|opt for|lean towards?|say|guess|conclude|answer|vote for|assess)\b(?: with| that| it is)?:?"
    r"|(?:答案|答)(?:应该|應該|应|應)?(?:是|为|為|选|選)?\s{0,3}:?"
    r"|(?:正确|正確)的?(?:选项|選項)?(?:应该|應該|应|應)?(?:是|为|為)\s{0,3}:?"
    r"|(?:选择|選擇|选项|選項|选|選)(?:项|項|了)?\s{0,3}:?(?=\s{0,3}[(\[]?[A-Za-z](?![A-Za-z]))",
    re.I,
)
CORRECT = re.compile(
    rf"\b(?:{IS}|seems?(?: to be)?|appears?(?: to be)?|looks like) (?:the |a )?(?:only )?"
    r"(?:correct|right|best|most (?:likely|suitable|appropriate|logical|accurate|plausible|fitting)) "
    r"(?:answer|choice|option|match|fit|candidate|one|continuation|solution)\b",
    re.I,
)
FILLER = re.compile(
    r"(?:[\s:=>→-]|\b(?:definitely|likely|probably|most likely|the|option|choice|letter|answer|therefore|that|clearly|"
    r"simply|indeed)\b(?=[ :])|选项|選項|选择|選擇|选|項|项){0,12}",
    re.I,
)
NOTHING = re.compile(
    r"[(\[]?(?:none|neither|both|all|unknown|unclear|unsure|uncertain|undetermined|indeterminate|"
    r"not (?:possible|clear|sure|given|listed|available|provided|among|any)|N/?A|cannot|can't)\b",
    re.I,
)
GOES_ON = r"(?:is|and|or|because|since|as|in|the|with|on|for|due|but|from)\b"  # words that no article stands before
LEAD = re.compile(
    r"[(\[{<]\s?([A-Za-z])\s?[)\]}>]|([A-Za-z])\s?[)\]}]|([B-HJ-Z])(?![\w'])|([AI])(?![\w'])(?! (?!"
    + GOES_ON
    + r")[a-z])|"
    r"([a-z])(?=\s{0,3}(?:[.,;:!?\n]|$))",
    re.A,
)
REJECTED = re.compile(r"\s(?:is|was|does|would|can)(?:n't| ?not)\b|\s(?:is|would be) (?:incorrect|wrong)\b", re.I)
VERB = re.compile(r"\s?(?:is|was|are|has|does|seems|appears|would|looks)\b")


def _own_text(reading: Reading, letter: str, at: int, text: str) -> int:
    """Where the option's own text ends that follows its letter: (B) the third image. `at` where there is none."""
    i = reading.options.letters.index(letter)
    if i >= len(reading.options.patterns):
        return at
    article = re.compile(r"[\s.:,)-]{0,4}(?:the )?", re.I).match(text, at)
    found = reading.options.patterns[i].match(text, article.end()) if article else None
    return found.end() if found else at


def _leading(reading: Reading, text: str) -> str | None:
    """The letter that a text begins with. None of them where others are joined to it: `A and C`, `(A) yes (B) no`."""
    found = LEAD.match(text) or re.match(r"([A-Za-z]) (?=\w)", text)
    if not found:
        return None
    letter = reading.offered(next(group for group in found.groups() if group))
    if letter == NO_ANSWER:
        return NO_ANSWER if found.re is LEAD else None
    end = _own_text(reading, letter, found.end(), text)
    if end == found.end() and found.re is not LEAD:
        return None  # `A cat`
    for other in mentions(text[end : end + 80], reading.options):
        if other.letter != letter:
            verb = VERB.match(text, end + other.end)
            return NO_ANSWER if joined(text[end : end + other.start]) and not verb else letter
    return letter


def bare_letter(reading: Reading) -> str | None:
    found = re.fullmatch(r"[\s(\[{<]{0,5}([A-Za-z])[\s)\]}>.:,;!]{0,5}", reading.text)
    return reading.offered(found[1]) if found else None


def _declared(reading: Reading, content: str) -> str | None:
    """What stands after `the answer is`; None where that names no answer (`the answer is based on`)."""
    filler = FILLER.match(content)
    content = content[filler.end() if filler else 0 :]
    first = (sentences(content) or [""])[0]
    if re.match(r"(?:not|n't)\b(?! (?:possible|clear|sure|given|listed|available|provided|among))", first):
        return None
    letter = _leading(reading, content)
    if letter is None and (NOTHING.match(first) or REFUSAL.search(first)):
        letter = NO_ANSWER
    if letter is None and any(
        group[0].start <= 40 and len({m.letter for m in group}) > 1 for group in named(first, reading.options)
    ):
        letter = NO_ANSWER  # the first and third images
    return chosen(first, reading.options) if letter is None else letter


def declaration(reading: Reading) -> str | None:
    text = reading.text
    found = sorted([*DECLARED.finditer(text), *CORRECT.finditer(text)], key=lambda match: match.end())
    for match in reversed(found[-50:]):
        answer = None
        if match.re is CORRECT:
            before = sentences(text[max(match.start() - 500, 0) : match.end()])
            if supposed(before[-1]) and re.match(r"might|may|could", match[0], re.I):
                continue  # if it lay left of the rim, point B might be the correct answer
            answer = chosen(before[-1], reading.options)
        answer = answer or _declared(reading, text[match.end() : match.end() + 300])
        if answer is not None:
            return answer
    return None


OPTION_LINE = re.compile(r"(?m)^[ \t]{0,8}(?:[(\[]([A-Za-z])[)\]]|([A-Z])[.):])")


def _option_lines(reading: Reading) -> list[tuple[str, bool]]:
    """The letters that lines begin with, and whether nothing but the option stands there."""
    lines = []
    for found in OPTION_LINE.finditer(reading.text):
        letter = reading.offered(found[1] or found[2])
        if letter:
            end = _own_text(reading, letter, found.end(), reading.text)
            lines.append((letter, bool(re.compile(r"[ \t]{0,8}[.,;]?[ \t]{0,8}(?:\n|$)").match(reading.text, end))))
    return lines


def own_line(reading: Reading) -> str | None:
    lines = _option_lines(reading)
    letters = {letter for letter, _ in lines}
    return letters.pop() if len(letters) == 1 and any(alone for _, alone in lines) else None


def lead(reading: Reading) -> str | None:
    text, listed = reading.text, {letter for letter, _ in _option_lines(reading)}
    for letter, pattern in zip(reading.options.letters, reading.options.patterns, strict=False):
        start = 4 if text[:4].lower() == "the " else 0
        own = pattern.match(text, start)
        if own and re.match(r"\s?(?:[.,;:!]|\n|$)", text[own.end() : own.end() + 2]) and listed <= {letter}:
            return letter
    found = re.match(r"[(\[]?([A-Za-z])[)\]]?", text)
    letter = reading.offered(found[1]) if found else NO_ANSWER
    if not found or not letter or listed - {letter}:
        return None
    end = _own_text(reading, letter, found.end(), text)
    if REJECTED.match(text, end):
        return None
    if end > found.end():
        return _leading(reading, text)
    set_off = re.match(r"(?:[(\[][A-Za-z][)\]]|[A-Z](?=[.:,)]\s|\s{0,3}\n|\s-))", text)
    return _leading(reading, text) if set_off and not brackets(text) - {letter} else None


def _one_bracket(reading: Reading, text: str) -> str | None:
    found: set[str] = set()
    for sentence in sentences(text):
        letters = brackets(sentence)
        if not letters or REFUSAL.search(sentence):
            continue
        about = chosen(sentence, reading.options)
        rejected = about is None and len(letters) == 1 and NEGATION.search(sentence)
        found |= {about} if about else set() if rejected else letters
    return reading.offered(found.pop()) if len(found) == 1 else None


def last_paragraph(reading: Reading) -> str | None:
    return _one_bracket(reading, (paragraphs(reading.text) or [""])[-1])


def conclusion(reading: Reading) -> str | None:
    for sentence in reversed(reading.sentences):
        if REFUSAL.search(sentence):
            after = re.split(r"(?i)\bbut\b|\bhowever\b", sentence)  # none of them matches, but the closest is C
            letter = chosen(after[-1], reading.options) if len(after) > 1 and not REFUSAL.search(after[-1]) else None
            if letter:
                return letter
            if not UNSURE.search(sentence):
                return None
        elif concludes(sentence):
            end = re.split(r"(?i)\b(?:therefore|thus|hence|so)\b", sentence)[-1]
            letter = chosen(end, reading.options) or chosen(sentence, reading.options)
            if letter:
                return letter
            if any(len({m.letter for m in group}) > 1 for group in named(sentence, reading.options)):
                return NO_ANSWER
    return None


def refusal(reading: Reading) -> str | None:
    return NO_ANSWER if any(REFUSAL.search(sentence) for sentence in reading.sentences) else None


def any_brackets(reading: Reading) -> str | None:
    return _one_bracket(reading, reading.text)


def _sentence(reading: Reading, place: int) -> str | None:
    about = [chosen(sentence, reading.options) for sentence in reading.prose]
    if not about or len({letter for letter in about if letter}) > 2:
        return None  # the options are described one by one
    return about[place]


def first_sentence(reading: Reading) -> str | None:
    return _sentence(reading, 0)


def last_sentence(reading: Reading) -> str | None:
    return _sentence(reading, -1)


def only_option(reading: Reading) -> str | None:
    named = {mention.letter for mention in mentions(reading.text, reading.options)}
    return named.pop() if len(named) == 1 else None


PLAIN: tuple[tuple[str, Callable[[Reading], str | None]], ...] = (
    ("bare letter", bare_letter),
    ("declaration", declaration),
    ("line of its own", own_line),
    ("lead", lead),
    ("last paragraph", last_paragraph),
    ("conclusion", conclusion),
    ("refusal", refusal),
    ("brackets", any_brackets),
    ("first sentence", first_sentence),
    ("last sentence", last_sentence),
    ("only option", only_option),
)


def plain(reply: str, n_choices: int, choices: Sequence[str] | None) -> tuple[str | None, str]:
    """The letter that a careful reader would say was chosen, and the name of the rule that found it."""
    reading = Reading(clean(reply), Options.of(n_choices, choices))
    for name, rule in PLAIN:
        answer = rule(reading)
        if answer is not None:
            return answer or None, name
    return None, "none"
