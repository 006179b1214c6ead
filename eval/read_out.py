"""From what a model said to verdicts: every reply is read by rules, votes are counted, options are ranked."""

from collections import Counter
from collections.abc import Mapping

from data.convert.text import split_boxed
from data.sample import LETTERS
from eval.benchmarks.item import Benchmark, Item
from eval.extract import Extraction, extract
from eval.judge import Judge
from eval.predictions import Prediction
from eval.results import Result


def read_out(
    benchmark: Benchmark,
    predictions: Mapping[str, Prediction],
    rules: str = "plain",
    judge: Judge | None = None,
) -> list[Result]:
    """The results of the items that have a prediction (by key), in the benchmark's order."""
    return [
        _result(benchmark, item, predictions[item.key], rules, judge)
        for item in benchmark.items
        if item.key in predictions
    ]


def read(item: Item, reply: str, family: str = "plain", rules: str = "plain") -> Extraction:
    """What one reply answers, without a judge. `family`: whose `official` rules are meant (Benchmark.rules).

    With choices it is a letter. An open question has one right text, whatever its capitals, spaces or full stop; of a
    reply that boxes its answer (\\boxed{...}) the last box is the text. The answer is the label where the two are the
    same, and else the text itself.
    """
    if item.n_choices:
        return extract(reply, family, rules, item.n_choices, item.choices)
    boxed = split_boxed(reply)
    text, rule = (boxed[0], "box") if boxed else (reply, "text")
    said = _same(text)
    return Extraction((item.label if said == _same(item.label) else text.strip()) if said else None, rule)


def _result(benchmark: Benchmark, item: Item, said: Prediction, rules: str, judge: Judge | None) -> Result:
    found = Extraction(None, "none")
    if said.failed is None and said.scores is not None:
        found = Extraction(LETTERS[said.scores.index(max(said.scores))], "likeliest")
    elif said.failed is None:
        found = _majority([_judged(benchmark, item, reply, rules, judge) for reply in said.replies])
    return Result(
        key=item.key,
        task=item.task,
        groups=dict(item.groups),
        n_choices=item.n_choices,
        label=item.label,
        replies=list(said.replies),
        finish=list(said.finish),
        scores=list(said.scores) if said.scores is not None else None,
        failed=said.failed,
        answer=found.answer,
        rule=found.rule,
        correct=found.answer is not None and found.answer == item.label,
    )


def _judged(benchmark: Benchmark, item: Item, reply: str, rules: str, judge: Judge | None) -> Extraction:
    found = read(item, reply, benchmark.rules, rules)
    if found.answer is None and judge and item.n_choices:
        return judge.verdict(item.question, item.choices, item.n_choices, reply)
    return found


def _same(text: str) -> str:
    """What is equal of texts that are the same answer."""
    return " ".join(text.split()).casefold().removesuffix(".")


def _majority(readings: list[Extraction]) -> Extraction:
    """The commonest answer; of several the one that came first. Replies without an answer do not vote."""
    if len(readings) == 1:
        return readings[0]
    answers = [reading.answer for reading in readings if reading.answer is not None]
    if not answers:
        return Extraction(None, "none")
    votes = Counter(map(_same, answers))
    same, count = votes.most_common(1)[0]  # in the order of first appearance where counts are equal
    answer = next(answer for answer in answers if _same(answer) == same)
    return Extraction(answer, f"vote: {count} of {len(readings)}")
