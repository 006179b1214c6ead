"""Reads which option a reply chooses.

    python -m eval.extract --benchmark blink --rules plain < replies.jsonl > answers.jsonl

reads JSON lines with `reply` and `choices` (the option texts; null where they are drawn in the picture) or `n_choices`,
and writes for each a line with `answer` (a letter or null) and `rule` (what read it).

`official` rules are those of the benchmark's own code (eval/official.py), `plain` rules what a careful reader would say
that the model answered. They were written against 11,406 replies of six models to BLINK with the verdicts of its
authors' rules and LLM (github.com/zeyofu/BLINK_Benchmark, eval/saved_outputs) and against hard cases from the issues
of other harnesses (tests/eval/extraction_cases.jsonl). A letter is never drawn at random, and never one that is not on
offer. First, reasoning blocks, what follows an end token, special tokens, markdown, LaTeX and HTML are removed
(eval/mentions.py). Then come the rules (eval/plain.py), the plainest statements first, as there is least to misread:

    bare letter        the reply is a letter: `B`, `b.`, `(B)`
    declaration        the last `Answer: X`, `the answer is X`, `I would choose X`, `X is the correct answer`, `答案是X`
                       or \\boxed{X}, where X is a letter, an option's text, or words that name one option. `A and C`,
                       `cannot be determined` and a letter not on offer are decisions as well: for none
    line of its own    the only line that is an option: `(B) the third image`
    lead               the reply begins with a letter set off from the rest, or with an option's text: `B. the third`
    last paragraph     the only letter in brackets there that is not rejected (as BLINK's own rule, plus `(B).`)
    conclusion         the last sentence that concludes or judges (`therefore`, `is most similar`) and names one option
    refusal            there is none, and a sentence says that it cannot be told, or that no option is right
    brackets           the only letter in brackets in the whole reply that is not rejected
    first sentence     it names one option: `Box A encloses the cup. It ...`, unless each is described in turn
    last sentence      the same
    only option        the only option named at all

An option that a sentence compares with (`than point B`), sets aside (`while point B ...`) or rejects (`(A) is wrong`)
is not named by it. `A` before a small letter is an article. An option's text counts as a whole: 5 is not in 15.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from data.sample import LETTERS, DataError, UserError
from eval import official
from eval.mentions import Options
from eval.plain import plain

BENCHMARKS = ("blink", "visual_puzzles", "plain")


class Extraction(NamedTuple):
    """What was read out of a reply."""

    answer: str | None  # a capital letter on offer
    rule: str  # the rule that read it; "none" when nothing did


def extract(reply: str, benchmark: str, rules: str, n_choices: int, choices: Sequence[str] | None) -> Extraction:
    """The option that a reply chooses. `choices`: the option texts, None where they are not known."""
    if benchmark not in BENCHMARKS or rules not in ("plain", "official"):
        raise DataError(
            f"benchmark {benchmark!r} with rules {rules!r}; name one of {BENCHMARKS}, and plain or official"
        )
    if rules == "official" and benchmark == "plain":
        raise DataError("benchmark 'plain' has no official rules; use rules 'plain'")
    if not 1 <= n_choices <= len(LETTERS):
        raise DataError(f"{n_choices} choices; there must be 1 to {len(LETTERS)}")
    if choices is not None and len(choices) != n_choices:
        raise DataError(f"{len(choices)} option texts for {n_choices} choices; give all or none")
    if rules == "plain":
        return Extraction(*plain(reply, n_choices, choices))
    if benchmark == "blink":
        return Extraction(*official.blink(reply, n_choices))
    drawn = not Options.of(n_choices, choices).texts  # `(A) in image`: no texts
    return Extraction(*official.visual_puzzles(reply, n_choices, None if drawn else choices))


# ---- As a filter ----


def _line(line: bytes, benchmark: str, rules: str) -> dict[str, str | None]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError as well
        raise DataError(f"not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("reply"), str):
        raise DataError("no text in the field `reply`")
    choices = row.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(text, str) for text in choices)):
        raise DataError("`choices` is neither null nor a list of texts")
    n_choices = row.get("n_choices")
    n_choices = len(choices) if n_choices is None and choices is not None else n_choices
    if not isinstance(n_choices, int) or isinstance(n_choices, bool):
        raise DataError("neither `choices` nor a whole number in `n_choices`")
    return extract(row["reply"], benchmark, rules, n_choices, choices)._asdict()


def answers(lines: Iterable[bytes], benchmark: str, rules: str) -> Iterator[str]:
    """One JSON line for each; empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.dumps(_line(line, benchmark, rules))
            except DataError as error:
                raise DataError(f"line {number}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.extract", description="which option each reply chooses")
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    parser.add_argument("--rules", default="plain", choices=("plain", "official"))
    args = parser.parse_args(argv)
    try:
        for line in answers(sys.stdin.buffer, args.benchmark, args.rules):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
