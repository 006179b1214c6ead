"""From what a model said to verdicts: every reply is read by rules, votes are counted, options are ranked."""

from collections import Counter
from collections.abc import Mapping, Sequence

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


def _result(benchmark: Benchmark, item: Item, said: Prediction, rules: str, judge: Judge | None) -> Result:
    found = Extraction(None, "none")
    if said.failed is None and said.scores is not None:
        found = Extraction(LETTERS[said.scores.index(max(said.scores))], "likeliest")
    elif said.failed is None and item.n_choices:
        found = _majority([_read(benchmark, item, reply, rules, judge) for reply in said.replies])
    elif said.failed is None:
        found = _open(item, said.replies)
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


def _read(benchmark: Benchmark, item: Item, reply: str, rules: str, judge: Judge | None) -> Extraction:
    found = extract(reply, benchmark.rules, rules, item.n_choices, item.choices)
    if found.answer is None and judge:
        return judge.verdict(item.question, item.choices, item.n_choices, reply)
    return found


def _open(item: Item, replies: Sequence[str]) -> Extraction:
    """An open question has one right text, whatever its capitals, spaces or full stop."""
    found = _majority([Extraction(_same(reply) or None, "text") for reply in replies])
    written = [item.label, *(reply.strip() for reply in replies)]  # as the answer is given: the label if it is right
    return Extraction(next((text for text in written if _same(text) == found.answer), None), found.rule)


def _same(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")


def _majority(readings: list[Extraction]) -> Extraction:
    """The commonest answer; of several the one that came first. Replies without an answer do not vote."""
    if len(readings) == 1:
        return readings[0]
    votes = Counter(reading.answer for reading in readings if reading.answer is not None)
    if not votes:
        return Extraction(None, "none")
    answer, count = votes.most_common(1)[0]  # in the order of first appearance where counts are equal
    return Extraction(answer, f"vote: {count} of {len(readings)}")
