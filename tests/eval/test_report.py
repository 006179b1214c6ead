"""The report page: every task, right and wrong items with their pictures, and no text taken for markup."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data import puzzles
from data.sample import Sample, Text
from eval.report import write_report
from eval.scores import Blind, by_task

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & "\''


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def prediction(sample: Sample, reply: str) -> dict[str, Any]:
    text = sample.text
    correct = reply == text.answer
    return {"key": sample.key, "task": text.task, "reply": reply, "answer": text.answer, "correct": correct}


@pytest.fixture
def samples() -> list[Sample]:
    """Ten puzzles each of two kinds, and a hostile sample without pictures."""
    text = Text(question=HOSTILE, answer="A", choices=(HOSTILE, "b"), task="<b>hostile</b>", source="s")
    return [*puzzles.stream(("jigsaw", "counting"), "heldout", 20), Sample(key="</small><script>", text=text)]


@pytest.fixture
def predictions(samples: list[Sample]) -> list[dict[str, Any]]:
    """Right for jigsaws, five right and five wrong for counting, a hostile reply to the hostile one."""
    replies = [s.text.answer if n % 2 == 0 or n % 4 == 1 else "" for n, s in enumerate(samples[:20])]
    return [prediction(s, reply) for s, reply in zip(samples, [*replies, HOSTILE], strict=True)]


@pytest.fixture
def page(tmp_path: Path, samples: list[Sample], predictions: list[dict[str, Any]]) -> Page:
    scores = by_task(predictions, [s.text for s in samples], Blind(s.text for s in samples))
    path = write_report(tmp_path / "report.html", "runs/<i>one</i>/export", scores, samples, predictions)
    assert path == tmp_path / "report.html"
    return Page(path)


def test_every_task_has_its_row_and_its_gallery(page: Page) -> None:
    rows = page.text.split("gain over blind")[1]
    for name, n, accuracy in (("all", 21, "0.714"), ("jigsaw", 10, "1.000"), ("counting", 10, "0.500")):
        assert f"{name}{n}{accuracy}" in rows.replace("\n", "")
    assert len(page.all("tr")) == 1 + 4 and len(page.all("h2")) == 3
    widths = [bar["style"] for bar in page.all("i") if bar.get("class") == "value" and "style" in bar]
    assert [style.split("width:")[1] for style in widths[1:]] == ["100.0%", "50.0%", "0.0%"]


def test_gallery_shows_wrong_items_then_right_ones(page: Page, predictions: list[dict[str, Any]]) -> None:
    """At most three of each per task: 3 right jigsaws, 3 + 3 counting, 1 hostile."""
    classes = [div.get("class") or "" for div in page.all("div")]
    items = [name for name in classes if name.split()[:1] == ["item"]]
    assert items == ["item"] * 3 + ["item wrong"] * 3 + ["item"] * 3 + ["item wrong"]
    assert page.text.count("reply (empty), answer ") == 3
    shown = [p["key"] for p in predictions if p["key"] in page.text]
    counting = [p["key"] for p in predictions if p["task"] == "counting"]
    assert [key for key in shown if key in counting] == counting[:6]


def test_pictures_are_in_the_page(page: Page, samples: list[Sample]) -> None:
    sources = [str(image["src"]) for image in page.all("img")]
    assert len(sources) == 3 * 3 + 6 and all(s.startswith("data:image/png;base64,") for s in sources)
    found = [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]
    assert found[:3] == list(samples[0].images)  # a jigsaw, whose pictures keep their order
    assert set(found) <= {content for s in samples for content in s.images}
    assert not page.all("link") and not page.all("script")


def test_text_is_never_markup(page: Page) -> None:
    assert not page.all("script") and not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(HOSTILE) == 2 + 1  # question and choice, and the reply
    assert "<b>hostile</b>" in page.text and "runs/<i>one</i>/export" in page.text and "</small><script>" in page.text


def test_image_marks_are_words_and_choices_have_letters(page: Page, samples: list[Sample]) -> None:
    assert "<image>" not in page.text and "[picture]" in page.text
    options = samples[1].text.choices
    assert " ".join(f"({letter}) {c}" for letter, c in zip("ABCD", options, strict=True)) in page.text
