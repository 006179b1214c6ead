"""What the plain rules read with: a reply without its wrapping, its sentences, the options that a sentence names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from data.sample import LETTERS

# ---- A reply without its wrapping. Every pattern here and below takes linear time: lengths are bounded. ----

WIDE: dict[int, str | int | None] = {
    code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)
}  # full-width ASCII: （Ｂ） is (B)
WIDE |= {ord(old): new for old, new in zip("【】〔〕「」『』［］‘’。", "[][][][][]''.", strict=True)}
WIDE |= {ord(mark): None for mark in '*`$"“”~'} | {ord("_"): " ", ord("\r"): "\n", 0x3000: " "}
REASONING_END = re.compile(r"</(?:think|thinking|thought|reasoning|scratchpad|redacted_thinking)>", re.I)
REASONING = re.compile(r"<(?:think|thinking|thought|reasoning|scratchpad|redacted_thinking)>", re.I)
TURN_END = re.compile(
    r"</s>|<\|(?:im_end|end|eot_id|endoftext|end_of_text|eom_id|end_of_turn)\|>|<(?:eos|end_of_turn|eot)>"
    r"|<｜end▁of▁sentence｜>|\n\s{0,20}#{0,4} {0,4}(?:USER|User|Human|HUMAN) {0,4}:"
)
SPECIAL = re.compile(
    r"</?s>|<\|[^|<>]{0,40}\|>|<｜[^｜<>]{0,40}｜>|</?(?:bos|eos|pad|unk|image|img|ImageHere)>|\[/?INST\]"
)
ANSWER_TAG = re.compile(r"</?(?:final_?)?answer>", re.I)
HTML = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|div|center)\s{0,3}/?>", re.I)
MACRO = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textit|mathit|rm|bf|mathsf|textsf|operatorname) {0,3}\{([^{}]{0,200})\}"
)
BOXED = re.compile(r"\\?(?:boxed|fbox) {0,3}\{([^{}]{0,300})\}")
LATEX = re.compile(r"\\[()\[\],;:! ]|\\(?:quad|left|right|displaystyle)(?![A-Za-z])")
HEADING = re.compile(r"(?m)^[ \t]{0,8}(?:#{1,6}|>|[-+•])[ \t]{1,4}")
QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")


NUMBERED = re.compile(r"(?m)^[ \t]{0,8}\d{1,2}[.)][ \t]{1,4}(?=\S)")
LONGEST = 60_000  # characters; of a longer reply the beginning and the end are read


def clean(reply: str) -> str:
    """A reply without reasoning, what follows its end, special tokens, markdown, LaTeX and HTML."""
    text = REASONING_END.split(reply)[-1]  # some templates open the block in the prompt: it has an end alone
    text = REASONING.split(text)[0]  # cut off in the middle of its reasoning
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + "\n\n" + text[-LONGEST // 2 :]
    for part in TURN_END.split(text):
        if SPECIAL.sub("", part).strip():
            text = part
            break
    text = ANSWER_TAG.sub(lambda tag: "\n\n" if tag[0][1] == "/" else "\n\nAnswer: ", SPECIAL.sub(" ", text))
    text = HTML.sub(" ", text).translate(WIDE)
    for _ in range(2):  # \textbf{\text{B}}
        text = MACRO.sub(r"\1", text)
    text = LATEX.sub(" ", BOXED.sub(r" \n Answer: \1\n", text))
    text = QUOTE.sub("", HEADING.sub("", text))
    return (NUMBERED.sub("", text) if len(NUMBERED.findall(text)) > 1 else text).strip()


PARAGRAPH = re.compile(r"\n[ \t]*+\n")
SENTENCE = re.compile(
    r"(?<=[.!?！？])(?<!\b[a-zA-Z0-9]\.)(?<!e\.g\.)(?<!i\.e\.)\s+|(?<=[\w,:] [A-Z]\.)\s+(?=[A-Z][a-z])|\n+"
)


def paragraphs(text: str) -> list[str]:
    return [part for part in PARAGRAPH.split(text) if part.strip()]


def sentences(text: str) -> list[str]:
    """In order. `B. the third image` is one; `It is B. The others are not.` are two."""
    return [part.strip() for part in SENTENCE.split(text) if part.strip()]


# ---- The options of an item, as words to look for ----

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
PLACEHOLDER = re.compile(r"(?:\(?[A-Z]\)?)?(?: ?in (?:the )?(?:image|picture))?", re.I)
PICTURE = r"(?:image|picture|photo|photograph|painting|artwork|figure|piece|work|drawing|option|choice|one)"
ORDINAL_OPTION = re.compile(rf"(?:the )?({'|'.join(ORDINALS)})(?: {PICTURE})?")


def _pattern(option: str) -> str:
    """A regular expression for an option's text. The second image is also image 2, the second picture, the second."""
    ordinal = ORDINAL_OPTION.fullmatch(option)
    if ordinal:
        n = ORDINALS.index(ordinal[1]) + 1
        word = rf"(?:{ordinal[1]}|{n}(?:st|nd|rd|th))"
        following = (
            rf"(?:(?: (?!two|three|four)\w{{1,20}})? {PICTURE}s?\b|(?= (?:and|or|is|seems|appears)\b|/|[.,;:)]|$))"
        )
        return rf"\b{word}\b{following}|\b{PICTURE} (?:#|no\. )?(?:{n}|{NUMBERS[n]})\b(?! of)"
    if option in ("yes", "no", "true", "false"):  # no cat: not an answer
        return rf"(?<![\w-]){option}(?=\s*(?:[.,;:!)]|\n|$))"
    if option in NUMBERS or option in map(str, range(len(NUMBERS))):
        n = int(option) if option.isdigit() else NUMBERS.index(option)
        return rf"(?<![\w-])(?<!\d[.,])(?:{n}|{NUMBERS[n]})(?![\w%]|[.,:/]\d|-\w)"
    words = r"\s{1,3}".join(re.escape(word) for word in option.removeprefix("the ").split())
    before = r"(?<![\w-])(?<!\d[.,])" if option[:1].isdigit() else r"(?<![A-Za-z0-9])" if option[:1].isalnum() else ""
    after = r"(?![\w%]|[.,]\d)" if option[-1:].isdigit() else r"(?![A-Za-z0-9])" if option[-1:].isalnum() else ""
    return before + words + after


@dataclass(frozen=True)
class Options:
    """The letters on offer, and the texts behind them: none where they are not known."""

    letters: str
    texts: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, n_choices: int, choices: Sequence[str] | None) -> "Options":
        texts = tuple(" ".join(clean(text).lower().rstrip(".").split()) for text in choices or ())
        if all(PLACEHOLDER.fullmatch(text) for text in texts):  # `(A) in image`
            texts = ()
        return cls(LETTERS[:n_choices], texts, tuple(re.compile(_pattern(t), re.I) if t else NEVER for t in texts))


# ---- The options that a text names ----


class Mention(NamedTuple):
    start: int
    end: int
    letter: str
    bare: bool = False  # by its letter alone: neither in brackets nor by its text


NEVER = re.compile(r"(?!)")
NOUN = (
    r"(?:option|choice|answer|point|box|picture|image|figure|panel|region|object|letter|label|circle|labell?ed|marked)"
)
BRACKETED = re.compile(r"(?<!\w)[(\[{]\s?([A-Za-z])\s?[)\]}](?!\w)|^\s{0,8}([A-Z])\)", re.M | re.A)
NAMED = re.compile(
    rf"\b(?i:{NOUN})(?: as| with)? ?:? ?([A-Z])\b(?!['-]\w)|"
    r"\b(?i:option|choice|letter|answer) ([a-z])(?=[.,;:!?)]|\s{0,3}$)",
    re.A,
)
SUBJECT = r"(?= (?:is|was|has|and|or|in|on|as|because|since|seems|appears|would)\b)"  # no article stands before these
LETTER = re.compile(rf"(?<![\w'.(-])([B-HJ-Z]|A(?! [a-z])|A{SUBJECT})(?![\w'])(?!-\w)", re.A)


def brackets(text: str) -> set[str]:
    """The letters in brackets, on offer or not."""
    return {(found[1] or found[2]).upper() for found in BRACKETED.finditer(text)}


def mentions(text: str, options: Options) -> list[Mention]:
    """In order; of one inside another, the longer alone."""
    found = [Mention(m.start(), m.end(), LETTERS[i]) for i, p in enumerate(options.patterns) for m in p.finditer(text)]
    for pattern in (BRACKETED, NAMED, LETTER):
        letters = [(m, next(group for group in m.groups() if group).upper()) for m in pattern.finditer(text)]
        bare = pattern is not BRACKETED
        found += [Mention(m.start(), m.end(), letter, bare) for m, letter in letters if letter in options.letters]
    kept: list[Mention] = []
    for mention in sorted(found, key=lambda m: (m.start, -m.end)):
        if not kept or mention.end > kept[-1].end:
            kept.append(mention)
    return _tagged(text, kept)


def _tagged(text: str, found: list[Mention]) -> list[Mention]:
    """A letter in brackets and the text before or behind it are one mention. Where they disagree the letter counts."""
    merged: list[Mention] = []
    whole = True  # whether the last of `merged` can take no more
    for mention in found:
        lettered = text[mention.start] in "[({"
        if (
            merged
            and not whole
            and mention.start - merged[-1].end <= 2
            and lettered != (text[merged[-1].start] in "[({")
        ):
            letter = mention.letter if lettered else merged[-1].letter
            merged[-1], whole = Mention(merged[-1].start, mention.end, letter), True
        else:
            merged.append(mention)
            whole = False
    return merged


ASIDE = re.compile(
    r"\b(?:than|unlike|compared (?:to|with)|rather than|instead of|as opposed to|in contrast to|in comparison to|"
    r"between|while|whereas|although|though|despite|even if|if|since|because)\b[^,;]{0,400}",
    re.I,
)
NEGATION = re.compile(
    r"\bnot\b(?! only)|n't\b|\b(?:neither|nor|never|cannot|incorrect|wrong|less|farther|further|lacks?|unlikely)\b|"
    r": no\b",
    re.I,
)
BREAK = re.compile(r"[,;]|\b(?:but|and|because|since|so|however|as)\b", re.I)
JOIN = re.compile(
    r"[\s,/&()\[\]]{0,6}(?:and/or|and|or|nor|和|或|与|及|、)?"
    r"[\s(\[]{0,3}(?:(?:the|option|choice|point|box|picture|image)\s)?[\s(\[]{0,2}",
    re.I,
)
CONTRAST = re.compile(r"\b(?:on the other hand|in contrast|by contrast|conversely)\b", re.I)
SUPPOSED = re.compile(r"(?:[\w ]{1,20}, )?if (?!I |we |forced|asked|pressed|you )", re.I)
VERDICT = re.compile(
    r"(?: \w{1,12})?[\s)\]]{1,3}(?:is|are|be|seems?|appears?|looks?)(?: to be)?(?: also| still| indeed)? "
    r"(?:the |a )?(?:only |single )?"
    r"(?:correct|right|best|better|most|more|closest|closer|answer|one that|likeliest|same as)\b",
    re.I,
)


REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|impossible to|not possible to|difficult to|hard to|"
    r"not able to|challenging to|not clear|unclear|not feasible to|I (?:do not|don't) know)\b[^.]{0,40}?\b(?:"
    r"determin\w*|identif\w*|tell|answer\w*|say|decide|assist|help|choose|select|provide|conclude|see|view|make|which|who|"
    r"what|how)\b"
    r"|\bnone of (?:the|these|them|those)\b|\bnone\b(?= (?:is|are|match|fit))|\bneither\b"
    r"|\bno (?:correct|valid|suitable|direct|clear|definitive) (?:answer|option|choice|match|correspond\w*)"
    r"|\bnot enough (?:information|context|detail)|\binsufficient (?:information|context|detail)"
    r"|\b(?:does|do) not (?:provide|contain|have) (?:enough|sufficient)|\bnot (?:provided|specified|given) in\b"
    r"|\bI(?:'m| am) (?:sorry|unable|not able)\b|\bI apologi[sz]e\b|\bI (?:do not|don't) feel comfortable"
    r"|\bfailed to obtain\b"
    r"|无法(?:确定|判断|回答)|不能确定|以上都不",
    re.I,
)
UNSURE = re.compile(r"\b(?:certain|certainty|sure|definitive\w*|confiden\w*)\b", re.I)  # a caveat
CONCLUSION = re.compile(
    r"\b(?:therefore|thus|hence|in conclusion|in summary|overall|conclude|consequently|accordingly|as a result|"
    r"based on|correspond(?:s|ing)|similar|match(?:es)?|shares?|same|missing|fits?|closest|"
    r"likely|appropriate|suitable|complet\w+)\b|^so\b|, so\b",
    re.I,
)


def _asides(text: str) -> list[tuple[int, int]]:
    """Where a sentence compares (`than point B`) or sets aside (`while box B is larger`)."""
    return [aside.span() for aside in ASIDE.finditer(text)]


def _rejections(text: str) -> list[tuple[int, int]]:
    """The clauses that reject."""
    starts = [0, *(m.end() for m in BREAK.finditer(text)), len(text)]
    return [(start, end) for start, end in pairwise(starts) if NEGATION.search(text, start, end)]


def joined(gap: str) -> bool:
    """Whether what stands between two options makes one list of them: a comma, `and`, `or`, or nothing."""
    return JOIN.fullmatch(gap) is not None


def _groups(text: str, found: list[Mention]) -> list[list[Mention]]:
    """Mentions joined by commas, `and`, `or` belong together."""
    groups: list[list[Mention]] = []
    for mention in found:
        if groups and joined(text[groups[-1][-1].end : mention.start]):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def named(text: str, options: Options) -> list[list[Mention]]:
    """The options that a sentence is about, those joined by `and` or `or` together, without those it rejects."""
    found = mentions(text, options)
    if not found:
        return []
    asides, rejections = _asides(text), _rejections(text)
    found = [m for m in found if not any(a < m.end and m.start < b for a, b in asides)]
    if any(not m.bare for m in found):  # A and B are about the same: the option `About the same`
        found = [m for m in found if not m.bare]
    return [g for g in _groups(text, found) if not any(a < m.end and m.start < b for a, b in rejections for m in g)]


def chosen(text: str, options: Options) -> str | None:
    """The one option that a sentence is about; of several, the one it judges: `A is like B, but B is the best`."""
    groups = named(text, options)
    letters = {mention.letter for group in groups for mention in group}
    if len(letters) > 1:
        judged = [group for group in groups if VERDICT.match(text, group[-1].end)]
        letters = {mention.letter for group in judged for mention in group}
    return letters.pop() if len(letters) == 1 else None


def supposed(sentence: str) -> bool:
    """If it is larger, it is B: no answer. If I had to choose, I would say B: one."""
    return SUPPOSED.match(sentence) is not None


def concludes(text: str) -> bool:
    """Whether a sentence concludes or judges, other than by a rejection (`less similar`) or for a case (`if`)."""
    if CONTRAST.search(text) or supposed(text):
        return False
    dropped = _asides(text) + _rejections(text)
    cues = [*CONCLUSION.finditer(text), *VERDICT.finditer(text)]
    return any(not any(a <= cue.start() < b for a, b in dropped) for cue in cues)
