"""What the words alone give away of a shard set: a baseline that has read the training answers and sees no picture."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from data.sample import LETTERS, Text


class TextBaseline:
    """The commonest training answer to the same text.

    Where choices come in another order than in training, it takes the offered choice whose content was most
    often right for the same question, and for a question never seen the commonest answer of its task.
    """

    answers: dict[str, int]  # how many different answers each task has in training

    def __init__(self, texts: Iterable[Text]) -> None:
        by_text: dict[str, Counter[str]] = defaultdict(Counter)
        by_task: dict[str, Counter[str]] = defaultdict(Counter)
        self._right_choices: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            by_text[_seen(text)][text.answer] += 1
            by_task[text.task][text.answer] += 1
            if text.choices is not None:
                self._right_choices[_question(text)][text.choices[LETTERS.index(text.answer)]] += 1
        self._by_text = {seen: _commonest(answers) for seen, answers in by_text.items()}
        self._by_task = {task: _commonest(answers) for task, answers in by_task.items()}
        self.answers = {task: len(answers) for task, answers in by_task.items()}

    def answer(self, text: Text) -> str:
        """Its answer: a letter where there are choices."""
        if _seen(text) in self._by_text:
            return self._by_text[_seen(text)]
        right = self._right_choices.get(_question(text), Counter())
        counts = [right[choice] for choice in text.choices or ()]
        if any(counts):
            return LETTERS[counts.index(max(counts))]
        return self._by_task.get(text.task, "")


def _question(text: Text) -> str:
    return f"{text.task}\n{text.question}"


def _seen(text: Text) -> str:
    return "\n".join((_question(text), *(text.choices or ())))


def _commonest(answers: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))
