"""The page of a diagnosis: everything is there, no text is taken for markup, and all has its place in a browser."""

import base64
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from data.sample import DataError
from eval.diagnosis.findings import Findings, Gap
from eval.diagnosis.page import markdown, text, title, write_page
from tests.eval.diagnosis.test_verdicts import ALL, SAME, about, altered, arm, bare, found, judged
from tests.eval.test_report import HOSTILE, Page
from tests.eval.test_report_browser import BROWSER, DRIVER, OUTSIDE, RECTS, SIZES, SMALL, browser

__all__ = ["browser"]  # the fixture

SECTIONS = ["use", "slots", "gap", "leakage", "inputs", "geometry", "attention", "facts"]
PAPERS = ("2607.00461", "2605.21642", "2605.18641", "Roy and Vetterli (2007)")
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "span", "div", "article"}
TAGS |= {"section", "img", "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi"}
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs a browser: Debian's chromium, chromium-driver"
)


def history(of: Findings) -> dict[int, Gap]:
    """Whose gap closes; the steps are not in order."""
    return {step: of.gap.model_copy(update={"mean": about(300 / step)}) for step in (2000, 500, 1000)}


def hostile() -> Findings:
    """With texts from anywhere that are markup, or long."""
    facts: dict[str, Any] = {
        "model": HOSTILE,
        "step": 7,
        "data": "x" * 300,
        HOSTILE: {HOSTILE: [HOSTILE] * 3},
        "no": None,
    }
    use = {HOSTILE: arm(-0.1, 0.1), "removed": arm(-0.2, 0.3).model_copy(update={"no_effect": HOSTILE})}
    return judged(facts=facts, use=use, inputs={HOSTILE: altered(0.5, 0.1), "words": altered(0.5, 0.1)})


def written(path: Path, of: Findings, past: dict[int, Gap] | None = None) -> Page:
    assert write_page(path, of, past) == path
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    of = judged()
    return written(tmp_path_factory.mktemp("page") / "diagnosis.html", of, history(of))


def test_verdicts_come_first_then_a_section_for_each_question(page: Page) -> None:
    assert re.findall(r'<section id="(\w+)">', page.html) == SECTIONS
    of = judged()
    cards = page.cards()
    assert len(cards) == len(of.verdicts) == len(ALL)
    for card, verdict in zip(cards, of.verdicts, strict=True):
        assert verdict.question in card.words() and f" {verdict.answer} " in card.words()
        assert all(number in card.text for number in re.findall(r"\[.*?\]", verdict.said))
    assert page.html.index("</article>") < page.html.index("<section")
    assert "Good as it should be" in page.words() and "Bad a fault to look into" in page.words()


def test_every_number_is_in_a_table(page: Page) -> None:
    words, of = page.words(), judged()
    for name, one in of.use.items():
        assert name in words
        if name != "kept":
            row = f"{one.change.value:+.3f} [{one.change.low:+.3f}, {one.change.high:+.3f}]"
            assert row in words and f"{one.flips.value:.3f} [{one.flips.low:.3f}, {one.flips.high:.3f}]" in words
    for number in ("0.420 [0.380, 0.460]", "1.300 [1.100, 1.500]", "0.380", "1.060", "1.090", "21.40 of at most 399"):
        assert number in words
    assert "+0.600 [+0.570, +0.630]" in words  # of step 500
    assert "objective.beta 1.0" in words and "versions.torch 2.11.0" in words
    assert all(paper in words for paper in PAPERS)
    assert words.count("kept: the prior's mean") == 1


def test_all_figures_are_there_and_are_described(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 8
    for picture in pictures:
        kind, _, content = str(picture["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64" and b"</svg>" in base64.b64decode(content)
        assert len(str(picture["alt"])) > 40
    assert len({picture["alt"] for picture in pictures}) == 8


def test_steps_stand_in_their_order_and_one_alone_is_no_figure(page: Page, tmp_path: Path) -> None:
    assert [page.words().index(f" {step} +0") for step in (500, 1000, 2000)] == sorted(
        page.words().index(f" {step} +0") for step in (500, 1000, 2000)
    )
    of = judged()
    single = written(tmp_path / "single.html", of, {4000: of.gap})
    assert len(single.all("img")) == 7 and "over the training" not in single.words()


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    of = bare()
    page = written(tmp_path / "bare.html", of, {1: of.gap, 2: of.gap})
    assert re.findall(r'<section id="(\w+)">', page.html) == ["use", "gap", "geometry", "attention", "facts"]
    assert len(page.all("img")) == 4 and len(page.cards()) == 3
    assert "posterior" not in page.html.split('<section id="geometry">')[1].split("</section>")[0]
    assert "None" not in page.text and "nan" not in page.words().lower().split()
    no_layers = of.attention.model_copy(update={"answer_to_latents": []})
    emptier = written(tmp_path / "empty.html", of.model_copy(update={"use": {}, "attention": no_layers}))
    assert re.findall(r'<section id="(\w+)">', emptier.html) == ["gap", "geometry", "facts"]


def test_an_arm_without_effect_is_said_to_have_none(tmp_path: Path) -> None:
    idle = SAME.model_copy(update={"no_effect": "z stays what it is"})
    of = judged(use={"kept": SAME, "other_item": idle})
    page = written(tmp_path / "idle.html", of)
    assert "other_item (no effect): the prior's mean of another item; z stays what it is" in page.words()
    assert len(page.all("img")) == 6 and "other_item (no effect)" in text(of)


def test_texts_are_not_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = written(tmp_path / "hostile.html", hostile())
    assert not page.all("script") and not page.all("link") and not page.all("a")
    assert all(str(picture["src"]).startswith("data:") for picture in page.all("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert " ".join(HOSTILE.split()) in page.words()
    assert {tag for tag, _ in page.tags} <= TAGS
    assert "default-src 'none'" in page.html and page.html.count("<title>") == 1


def test_all_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_page(tmp_path / "missing" / "page.html", judged())
    assert list(tmp_path.iterdir()) == []


def test_title() -> None:
    assert title(found()) == "Diagnosis of latents: runs/demo/step_4000, step 4000, heldout"
    assert title(found(facts={"step": 0})) == "Diagnosis of latents: step 0"
    assert title(found(facts={"model": "a\nb", "step": None})) == "Diagnosis of latents: a b"


def test_markdown() -> None:
    of = judged()
    lines = markdown(of, history(of)).splitlines()
    assert lines[0] == f"# {title(of)}"
    assert sum(line.startswith(("| Do", "| Are", "| Is")) for line in lines) == len(ALL)
    assert [line[3:] for line in lines if line.startswith("## ")][-1] == "Settings"
    assert any(line.startswith("| other_item: the prior's mean of another item | 0.660 | 0.660 [") for line in lines)
    assert any(line.startswith("| 2000 | +0.150 [") for line in lines)
    hostile_lines = markdown(hostile()).splitlines()
    tables = [line for line in hostile_lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables) and len([n for n in hostile_lines if n.startswith("# ")]) == 1


def test_text_is_for_a_terminal() -> None:
    of = judged()
    lines = text(of).splitlines()
    assert "Does the posterior hand over the answer? NO" in lines
    assert max(map(len, lines)) < 150 and "SETTINGS" not in lines
    row = next(line for line in lines if line.startswith("other_item"))
    assert row.split()[:4] == ["other_item", "0.660", "0.660", "[0.640,"]


@pytest.fixture(params=[(size, kind) for size in SIZES for kind in ("whole", "bare", "hostile")], ids="-".join)
def opened(request: pytest.FixtureRequest, browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    size, kind = request.param
    of = {"whole": judged, "bare": bare, "hostile": hostile}[kind]()
    width, height = SIZES[size]
    device: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.get(write_page(tmp_path / "page.html", of, history(of) if kind == "whole" else None).as_uri())
    return browser


@needs_browser
def test_in_a_browser(opened: webdriver.Chrome) -> None:
    width = opened.execute_script("return innerWidth")
    assert width in (390, 1280)
    assert opened.execute_script("return document.scrollingElement.scrollWidth") <= width
    assert opened.execute_script(OUTSIDE) == []
    assert opened.execute_script(SMALL) == []
    assert opened.execute_script("return document.scripts.length") == 0
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    drawn = opened.execute_script("return [...document.images].map(e => [e.complete, e.naturalWidth, e.clientWidth])")
    assert len(drawn) >= 4 and all(complete and natural > 0 and shown >= 350 for complete, natural, shown in drawn)
    boxes = opened.execute_script(RECTS, "h2, article, .scroll, .legend")
    assert all(below[1] >= above[3] - 1 for above, below in pairwise(boxes))


@needs_browser
def test_print(opened: webdriver.Chrome) -> None:
    """Nothing has to be scrolled."""
    size = {"width": 718, "height": 1040, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert opened.execute_script("return document.scrollingElement.scrollWidth") <= 718
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
