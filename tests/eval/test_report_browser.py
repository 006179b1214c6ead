"""The report page in a real browser: nothing runs, nothing is loaded, all has its place on a phone and a desk."""

import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from eval.report import write_report
from tests.eval.test_report import TASKS, Made, make

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SIZES = {"phone": (390, 844), "desk": (1280, 900)}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
TOLERANCE = 0.6  # pixels, for rounding

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs a browser: install Debian's chromium and chromium-driver"
)

RECTS = """return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())
  .map(e => e.getBoundingClientRect()).map(r => [r.left, r.top + scrollY, r.right, r.bottom + scrollY])"""
SHOWN = "return [...document.querySelectorAll('article')].filter(e => e.checkVisibility()).map(e => e.className)"
OUTSIDE = """return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('.scroll'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
SMALL = """const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) { const e = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() && parseFloat(getComputedStyle(e).fontSize) < 14) found.push(e.outerHTML) }
  return found"""


@pytest.fixture(scope="module")
def made() -> Made:
    return make()


@pytest.fixture(scope="module")
def address(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, "run", *made).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: webdriver.Chrome, address: str) -> webdriver.Chrome:
    """The page, opened anew. A window is at least some 500 pixels wide, so the size is that of a device."""
    width, height = SIZES[request.param]
    size: dict[str, Any] = {
        "width": width,
        "height": height,
        "deviceScaleFactor": 1,
        "mobile": request.param == "phone",
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    return browser


def choose(page: webdriver.Chrome, name: str) -> None:
    """As a person does: by a click on the words."""
    label = page.find_element(By.CSS_SELECTOR, f"label[for='{name}']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", label)
    webdriver.ActionChains(page).move_to_element(label).click().perform()


def shown(page: webdriver.Chrome) -> list[set[str]]:
    return [set(classes.split()) - {"card"} for classes in page.execute_script(SHOWN)]


def test_nothing_ran_and_nothing_was_loaded(page: webdriver.Chrome, made: Made) -> None:
    """A hostile text that became markup would have opened a dialog, which makes every command fail."""
    assert page.title == f"{made.benchmark.name} val: run" != "run"
    assert page.execute_script("return document.scripts.length") == 0
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_scripts_are_forbidden_even_if_one_came_in(page: webdriver.Chrome) -> None:
    page.execute_script(
        "const s = document.createElement('img'); s.setAttribute('onerror', 'document.title = \"owned\"');"
        "s.src = 'data:image/png;base64,broken'; document.body.append(s)"
    )
    page.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.title != "owned"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_the_page_never_scrolls_sideways(page: webdriver.Chrome) -> None:
    width = page.execute_script("return innerWidth")
    assert width in (390, 1280)
    assert page.execute_script("return document.scrollingElement.scrollWidth") <= width
    assert page.execute_script(OUTSIDE) == []
    page.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.execute_script("return document.scrollingElement.scrollWidth") <= width


def test_text_can_be_read(page: webdriver.Chrome) -> None:
    assert page.execute_script(SMALL) == []


def test_pictures_are_drawn(page: webdriver.Chrome) -> None:
    drawn = page.execute_script(
        "return [...document.images].map(e => [e.complete, e.naturalWidth, e.naturalHeight,"
        " e.getBoundingClientRect().width, e.closest('article').clientWidth])"
    )
    assert len(drawn) > 20
    assert all(complete and min(w, h, shown) > 0 and shown <= card for complete, w, h, shown, card in drawn)


@pytest.mark.parametrize(
    "boxes", ("article", ".figures > div", ".filter span", ".row", "h2, h3, .chart, .scroll, .legend")
)
def test_nothing_overlaps(page: webdriver.Chrome, boxes: str) -> None:
    found = page.execute_script(RECTS, boxes)
    assert len(found) > 4
    for (left, top, right, bottom), (left_2, top_2, right_2, bottom_2) in combinations(found, 2):
        across = min(right, right_2) - max(left, left_2) > TOLERANCE
        assert not (across and min(bottom, bottom_2) - max(top, top_2) > TOLERANCE)


def test_bars_are_as_long_as_the_accuracies(page: webdriver.Chrome, made: Made) -> None:
    bars, tracks = page.execute_script(RECTS, ".chart .value"), page.execute_script(RECTS, ".row:not(.axis) > svg")
    scores = [*made.scores.tasks.values(), *(s for group in made.scores.groups.values() for s in group.values())]
    assert len(bars) == len(scores)
    for bar, track, score in zip(bars, tracks, scores, strict=False):
        assert bar[0] == pytest.approx(track[0], abs=TOLERANCE)
        assert bar[2] - bar[0] == pytest.approx(score.accuracy * (track[2] - track[0]), abs=TOLERANCE)


def test_intervals_and_marks_are_where_they_belong(page: webdriver.Chrome, made: Made) -> None:
    (left, _, right, _), *_ = page.execute_script(RECTS, ".row:not(.axis) > svg")
    score = made.scores.tasks["counting"]
    assert score.chance is not None and score.blind is not None
    places = {".whisker": (score.low + score.high) / 2, ".chance": score.chance, ".blind": score.blind}
    places |= {".majority": score.majority, ".prior": score.text}
    for name, share in places.items():
        mark = page.execute_script(RECTS, f".row {name}")[0]
        assert (mark[0] + mark[2]) / 2 == pytest.approx(left + share * (right - left), abs=1.5)


def test_filters_by_kind(page: webdriver.Chrome) -> None:
    everything = shown(page)
    assert not page.find_element(By.CLASS_NAME, "none").is_displayed()
    for kind in ("failed", "unresolved", "wrong", "right", "flips"):
        choose(page, f"kind-{kind}")
        assert shown(page) == [classes for classes in everything if kind in classes] != []
    choose(page, "kind-all")
    assert shown(page) == everything


def test_filters_by_sub_task_and_by_both(page: webdriver.Chrome) -> None:
    sections = page.execute_script(
        "return [...document.querySelectorAll('.task')].map(e => e.querySelectorAll('article').length)"
    )
    assert len(sections) == len(TASKS)
    for number, count in enumerate(sections):
        choose(page, f"task-{number}")
        assert len(shown(page)) == count
        assert [len(page.execute_script(RECTS, box)) for box in (".task", ".task h3")] == [1, 1]
    choose(page, "task-1")
    choose(page, "kind-failed")
    assert shown(page) == [{"failed"}]
    assert not page.find_element(By.CLASS_NAME, "none").is_displayed()


def test_a_choice_without_items_says_so(
    browser: webdriver.Chrome, made: Made, tmp_path: Path, page: webdriver.Chrome
) -> None:
    right = [result for result in made.results if result.correct]
    scores = made.scores.model_copy(update={"tasks": {"counting": made.scores.tasks["counting"]}})
    page.get(write_report(tmp_path / "report.html", "run", scores, made.benchmark, right).as_uri())
    choose(page, "kind-wrong")
    assert shown(page) == [] and page.find_element(By.CLASS_NAME, "none").is_displayed()
    choose(page, "kind-right")
    assert shown(page) != [] and not page.find_element(By.CLASS_NAME, "none").is_displayed()


def test_filters_work_with_the_keyboard(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "kind-all").send_keys(webdriver.Keys.ARROW_RIGHT)
    assert all("failed" in classes for classes in shown(page))


def test_folded_text_opens(page: webdriver.Chrome) -> None:
    fold = page.find_element(By.CSS_SELECTOR, ".reply details")
    assert "Perhaps." not in fold.text
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", fold)
    fold.find_element(By.TAG_NAME, "summary").click()
    assert "Perhaps." in fold.text


def test_print(page: webdriver.Chrome) -> None:
    """Without the filters, and with nothing that has to be scrolled."""
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": 718, "height": 1040, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script(RECTS, ".filter") == []
        assert page.execute_script("return document.scrollingElement.scrollWidth") <= 718
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
