"""What verdicts are made of: answers, their standing, the limits they go by, and numbers in words.

An answer goes by 95 % intervals: `yes` or `no` where the whole interval lies on one side of a limit, else `unclear`, so
few items make answers unclear rather than wrong. Numbers that have no interval (distances, ratios of variances) need
to be far from the limit on either side. What is said begins with its standing, as a yes is not always good.
"""

from typing import Literal

from eval.diagnosis.findings import Verdict
from eval.scores import Estimate

Answer = Literal["yes", "no", "unclear"]

GOOD, BAD, OPEN, NOTE = "Good", "Bad", "Open", "Note"
STANDINGS = {
    GOOD: "as it should be",
    BAD: "a fault to look into",
    OPEN: "these items cannot tell",
    NOTE: "a description, neither good nor bad",
}
MORE = "more items would tell"

LITTLE = 0.02  # of accuracy: two items in a hundred are no reason to choose one model over another
FLIPS = 0.05  # share of answers: in any model some candidates are so near to one another that a breath turns them
NATS = 0.1  # the right answer is then a tenth less likely, exp(-0.1) = 0.90
HANDED = 0.05  # share of answers that turn into the one shown: one in twenty moves an accuracy by what papers report
BLIND = 0.01  # nats between two posteriors: a draw then tells their answers apart in 52.5 % at most (Pinsker)
WIDE, NARROW = 1.5, 1.1  # a variance so many times another: a deviation 22 % wider can be seen, one of 5 % cannot
FAR, NEAR = 0.5, 0.1  # of the distance between two items: latents that see a change go a good part of that way
APART, ALIKE = 0.3, 0.1  # spread over length: below 0.1 the latents of all items lie within some 6 degrees


def verdict(question: str, answer: Answer, standing: str, meaning: str, numbers: str) -> Verdict:
    """`meaning` and `numbers` are clauses without a full stop."""
    return Verdict(question=question, answer=answer, said=f"{standing}: {meaning}. {sentence(numbers)}")


def standing(of: Verdict) -> str:
    """GOOD, BAD, OPEN or NOTE."""
    return of.said.partition(":")[0]


def rest(of: Verdict) -> str:
    """What is said, without the standing."""
    return sentence(of.said.partition(": ")[2].removesuffix("."))


def sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:]}."


def told(of: Estimate, form: str = "+z.3f") -> str:
    """A change or a difference, with its interval: -0.210 [-0.240, -0.180]."""
    return f"{of.value:{form}} [{of.low:{form}}, {of.high:{form}}]"


def share(of: Estimate) -> str:
    """A number that has no direction, with its interval: 0.210 [0.180, 0.240]."""
    return told(of, "z.3f")
