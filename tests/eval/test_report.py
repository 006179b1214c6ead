"""The report page: numbers, comparison and gallery are all there, and no text is taken for markup."""

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from data import puzzles
from data.sample import LETTERS
from eval import gallery
from eval.benchmarks.item import Benchmark, Item, Labels, label_hash
from eval.paired import Comparison, compare
from eval.report import flat, write_report
from eval.results import Result
from eval.scores import Scores, score

# Were any of it markup, a script would change the title, open a dialog or load something.
HOSTILE = (
    '</title></style></textarea></script><script>document.title="run";alert(1)</script>'
    "<img src=http://127.0.0.1:9/x onerror=alert(1)>\"' onload=alert(1) {{ 7 * 7 }}{% raw %}&amp;<!-- \u202egnirts"
)
TASKS = ("counting", "jigsaw", "photos", HOSTILE)
STEPS = "".join(f"Step {n}: the point lies on the handle.\n\n" for n in range(40)) + "So the answer is (B)."


class Made(NamedTuple):
    """What a page is written from."""

    scores: Scores
    benchmark: Benchmark
    results: list[Result]
    comparison: Comparison
    baseline: list[Result]


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("td", "th", "div") else ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # not in a style sheet
            self.text += data

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """Attributes of the tags that have the class `name`."""
        return [a for found, a in self.tags if found == tag and (not name or name in (a.get("class") or "").split())]

    def cards(self) -> list["Page"]:
        return [Page(part.partition("</article>")[0]) for part in re.split("(?=<article )", self.html)[1:]]

    def card(self, key: str) -> "Page":
        return next(card for card in self.cards() if f"{key}</code>" in card.html)

    def words(self) -> str:
        return " ".join(self.text.split())


def photo(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def questions() -> Iterator[Item]:
    """Eight of every kind: puzzles, photographs with drawn choices, and hostile ones with a broken picture."""
    for kind in TASKS[:2]:
        for seed in range(1, 17, 2):
            sample = puzzles.generate(kind, seed)
            text, choices = sample.text, sample.text.choices
            assert choices is not None
            level = "hard" if seed > 8 else "easy"
            of = {"choices": choices, "n_choices": len(choices), "groups": {"difficulty": level}}
            yield Item(f"{kind}-{seed // 2}", kind, text.question, text.answer, images=sample.images, **of)
    for n in range(8):
        images = (photo(1600, 400), *(photo(20, 30),) * (10 if n == 0 else n % 3))
        yield Item(f"photos-{n}", "photos", "Where?", "B", None, 4, images)
    for n in range(8):
        images = (f"<script>{HOSTILE}".encode(), photo(40, 20))
        yield Item(f"{n}{HOSTILE}", HOSTILE, HOSTILE, "A", (HOSTILE, "x" * 300), 2, images, groups={HOSTILE: HOSTILE})


def said(item: Item, n: int, right: bool) -> Result:
    """The n-th of its sub-task is unresolved or failed; counting votes and jigsaw scores."""
    about = dict(key=item.key, task=item.task, groups=dict(item.groups), n_choices=item.n_choices, label=item.label)
    if n == 6:
        return Result(**about, replies=[f"{HOSTILE} {'Perhaps. ' * 200}{HOSTILE}"], finish=["length"])
    if n == 7:
        return Result(**about, failed=f"out of memory {HOSTILE}")
    answer = item.label if right else next(letter for letter in item.letters if letter != item.label)
    found = about | {"answer": answer, "correct": right}
    if item.task == "jigsaw":
        return Result(**found, rule="score", scores=[-0.5 if a == answer else -2.5 for a in item.letters])
    if item.task == "counting":
        return Result(**found, rule="vote", replies=[STEPS, "", f"({answer})"], finish=["end", "stop", "length"])
    rule, reply = (HOSTILE, HOSTILE) if item.task == HOSTILE else ("bare-letter", answer)
    return Result(**found, rule=rule, replies=[reply], finish=[rule if rule == HOSTILE else "end"])


def make() -> Made:
    """This run has 4, 3, 2 and 1 of eight right, and the baseline others of them."""
    items = tuple(questions())
    name, labels = f"BLINK{HOSTILE}", Labels(label_hash(items), f"2025{HOSTILE}")
    benchmark = Benchmark(name, "val", items, {}, "macro", labels, apart=("counting",), warnings=(HOSTILE, "beware"))
    results, baseline, blind = [], [], []
    for at, item in enumerate(items):
        task, n = divmod(at, 8)
        results.append(said(item, n, n < 4 - task))
        baseline.append(said(item, n, n in (1, 2, 5)))
        blind.append(said(item, n, n == 0))
    settings = {"model": HOSTILE, "pixels": {"min": 3136, HOSTILE: "deep"}, "seed": None, "votes": [1, 2]}
    scores = score(benchmark, results, settings, blind=blind, text=[n % 8 < 3 for n in range(len(items))])
    return Made(scores, benchmark, results, compare(baseline, results, "macro", draws=200), baseline)


@pytest.fixture(scope="module")
def made() -> Made:
    return make()


@pytest.fixture(scope="module")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(path, f"run {HOSTILE}", *made) == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def alone(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run with nothing to stand beside."""
    path = tmp_path_factory.mktemp("alone") / "report.html"
    write_report(path, "run", score(made.benchmark, made.results, {}), made.benchmark, made.results)
    return Page(path.read_text(encoding="utf-8"))


def test_both_means_are_named_and_have_intervals(page: Page, made: Made) -> None:
    official, other = page.html.split('class="mean')[1:3]
    assert official.startswith(" official") and "Official mean: macro" in official and "31.2 %" in official
    assert not other.startswith(" official") and "Other mean: micro" in other and "31.2 %" in other
    macro = made.scores.macro
    assert f"[{100 * macro.low:.1f}, {100 * macro.high:.1f}]" in official
    assert "blind 12.5, text alone 37.5" in " ".join(Page(official).words().split())
    assert "Without counting: macro 25.0 %" in page.words()


def test_counts_of_what_went_wrong(page: Page) -> None:
    for name in ("unresolved", "failed", "cut"):  # of the votes one is cut as well
        assert re.search(f"<div>{name}<b>{10 if name == 'cut' else 4}</b>", page.html)


def test_every_sub_task_and_group_has_its_bar_and_its_row(page: Page, made: Made) -> None:
    groups = [s for group in made.scores.groups.values() for s in group.values()]
    widths = [float(str(bar["width"]).rstrip("%")) for bar in page.all("rect", "value") if "x" not in bar]
    assert widths[:4] == [50, 37.5, 25, 12.5] and len(widths) == 4 + len(groups) == 7
    assert [len(page.all(*mark)) for mark in (("circle", "blind"), ("path", "prior"))] == [7 + 3, 7 + 3]  # legends too
    rows = [Page(row).words() for row in page.html.split('class="wide scores"')[1].split("<tr>")[2:6]]
    assert rows[0].startswith("counting 8 4 50.0 [21.5, 78.5] ") and rows[1].startswith("jigsaw 8 3 37.5 ")
    assert " 12.5 +37.5 [" in rows[0] and rows[0].endswith(" 1 1 7")
    assert "By difficulty" in page.text and page.text.count("commonest right answer") == 3


def test_a_run_alone_has_no_marks_of_other_runs_and_no_comparison(alone: Page) -> None:
    assert not alone.all("circle") and not alone.all("path", "prior") and alone.all("path", "majority")
    assert "Against the baseline" not in alone.text and "flips" not in alone.text and "blind" not in alone.words()


def test_comparison(page: Page, made: Made) -> None:
    comparison = made.comparison
    assert comparison.verdict in page.text and comparison.caution in page.text
    cells = Page(page.html.split('class="twoway"')[1].split("</table>")[0]).words()
    assert f"baseline right {comparison.both} {comparison.only_a} (b)" in cells
    assert f"baseline wrong {comparison.only_b} (c) {comparison.neither}" in cells
    rows = [Page(row).words() for row in page.html.split('class="wide differences"')[1].split("<tr>")[2:6]]
    assert rows[0].startswith("counting 8 37.5 50.0 +12.5 [") and rows[2].startswith("photos 8 37.5 25.0 -12.5 [")
    assert len(page.all("circle", "won")) == 1 + 1 and len(page.all("circle", "same")) == 1  # the legend's as well
    assert len(page.all("path", "lost")) == 2 + 1


def test_settings_are_all_there(page: Page) -> None:
    rows = page.html.split('<table class="settings">')[1].split("</table>")[0]
    assert Page(rows).words() == f"model {HOSTILE} pixels.min 3136 pixels.{HOSTILE} deep seed - votes [1, 2]"
    assert list(flat({"a": {"b": {"c": 1}, "d": {}}})) == [("a.b.c", "1"), ("a.d", "{}")]


def test_gallery_has_failures_first_and_flips_before_others(page: Page) -> None:
    classes = [str(card["class"]).removeprefix("card ") for card in page.all("article")]
    assert (
        classes[:8] == ["failed", "unresolved", "wrong flips", "wrong"] + ["right flips"] * 2 + ["right"] + classes[7:8]
    )
    assert "kind all (" in page.words() and "flips (" in page.words()
    sides = page.card("counting-0").words()
    assert "wrong → right" in sides and "this run: right" in sides and "baseline: wrong" in sides
    assert "right → wrong" in page.card("counting-5").text and "baseline" not in page.card("counting-1").text


def test_a_card_of_a_vote(page: Page, made: Made) -> None:
    item, card = made.benchmark.items[0], page.card("counting-0")
    assert item.question in card.text and item.choices is not None
    for letter, choice in zip(LETTERS, item.choices, strict=False):
        assert f"({letter}) {choice}" in card.text
    assert [str(tag["class"]) for tag in card.all("span", "tag")] == ["tag key", "tag chosen"]  # of the same option
    assert f"right answer {item.label}" in card.words() and "rule vote" in card.words()
    assert "2 more replies of the vote" in card.text and "(empty)" in card.text
    assert [f"finish: {why}" in card.text for why in ("end", "stop", "length")] == [True] * 3


def test_of_a_long_reply_beginning_and_end_are_seen(page: Page) -> None:
    before, middle, after = re.split("</?details>", page.card("counting-0").html)[:3]
    assert "Step 0:" in before and "So the answer is (B)." in after
    assert "characters of the reply between</summary>" in middle and "Step 20:" in middle


def test_option_scores_are_shown_as_probabilities(page: Page) -> None:
    card = page.card("jigsaw-0")
    shares = [float(str(bar["style"]).removeprefix("width:").rstrip("%")) for bar in card.all("i")]
    assert sum(shares) == pytest.approx(100, abs=0.05) and max(shares) / min(shares) == pytest.approx(7.389, rel=0.01)
    assert gallery.softmax([-1000, -1000]) == [0.5, 0.5]


def test_pictures(page: Page) -> None:
    card = page.card("photos-0")
    wide, small = card.all("img")[:2]
    assert (wide["width"], wide["height"], wide.get("class")) == ("320", "80", None)
    assert str(wide["src"]).startswith("data:image/jpeg;base64,")
    assert (small["width"], small["height"], small["class"]) == ("100", "150", "exact")
    kept = Image.open(io.BytesIO(base64.b64decode(str(small["src"]).removeprefix("data:image/png;base64,"))))
    original = Image.open(io.BytesIO(photo(20, 30))).convert("RGB")
    assert kept.format == "PNG" and kept.tobytes() == original.tobytes()
    assert len(card.all("img")) == gallery.PICTURES and "and 3 more pictures" in card.text
    assert "1600 x 400 pixels" in card.text and "The choices are drawn in the picture." in card.text


def test_a_broken_picture_leaves_a_named_place(page: Page) -> None:
    broken = [card for card in page.cards() if card.all("div", "gone")]
    hostile = [card for card in broken if "picture 1 cannot be shown: not a whole picture in JPEG" in card.text]
    assert len(hostile) >= 4 and all(len(card.all("img")) == 1 for card in hostile)


def test_text_is_never_markup(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object", "form", "a", "textarea"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "srcset") for name in attributes), (tag, attributes)
        assert tag != "img" or str(attributes["src"]).startswith("data:image/")
    assert "default-src 'none'" in page.html and "49" not in Page(HOSTILE).text
    assert f"BLINK{HOSTILE} val: run {HOSTILE}" in page.text
    assert f"(2025{HOSTILE})" in page.text and f"By {HOSTILE}" in page.text
    hostile = [card for card in page.cards() if f"0{HOSTILE}" in card.text]
    assert len(hostile) == 1 and hostile[0].text.count(HOSTILE) == 3 + 2 * 3  # of both runs rule, reply and finish
    assert f"out of memory {HOSTILE}" in page.text
    style = page.html.split("<style>")[1].split("</style>")[0]
    assert "alert" not in style and "gnirts" not in style


def test_open_questions_and_items_that_one_run_lacks(tmp_path: Path) -> None:
    items = tuple(Item(f"q{n}", "open", "How <image> many?", "two", None, 0, (photo(9, 9),)) for n in range(3))
    about = [dict(key=item.key, task="open", n_choices=0, label="two", finish=["end"], rule="open") for item in items]
    results = [Result(**a, replies=["three"], answer="three") for a in about[:2]]
    baseline = [Result(**a, replies=["two"], answer="two", correct=True) for a in about[1:]]
    benchmark = Benchmark("open", "val", items, {}, "micro", Labels("0", "1"))
    found = Made(
        score(benchmark, results, {}), benchmark, results, compare(baseline, results, common=True, draws=9), baseline
    )
    page = Page(write_report(tmp_path / "report.html", "run", *found).read_text(encoding="utf-8"))
    assert "Left out: 1 items that only the baseline has, 1 that only this run has." in page.words()
    card = page.card("q1")
    assert "How [picture 1] many?" in card.text and not card.all("ol") and "right answer two" in card.words()
    assert "this run: wrong, answer three, rule open" in card.words()
    assert "baseline: right, answer two" in card.words() and "baseline" not in page.card("q0").text
    assert not page.all("line", "chance") and page.html.split('class="wide scores"')[1].count("<th>chance</th>") == 0


def test_the_number_of_cards_is_bounded(made: Made, tmp_path: Path) -> None:
    """Of very many sub-tasks each still shows its first failure, as long as there is room."""
    items = [Item(f"{t}-{n}", f"t{t}", "?", "A", ("a", "b"), 2) for t in range(100) for n in range(9)]
    about = [dict(key=i.key, task=i.task, n_choices=2, label="A") for i in items]
    results = [Result(**a, answer="AB"[n % 2], correct=n % 2 == 0) for n, a in enumerate(about)]
    benchmark = Benchmark("many", "val", tuple(items), {}, "micro", Labels("0", "1"))
    path = write_report(tmp_path / "report.html", "run", score(benchmark, results, {}), benchmark, results)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.all("article")) == gallery.CARDS
    assert len(page.all("article", "wrong")) > 60 < len(page.all("article", "right"))
    assert f"{gallery.CARDS} of 900 items" in page.text


def test_texts_are_bounded_and_half_characters_are_written(made: Made, tmp_path: Path) -> None:
    reply = "x" * 1_000_000 + "\ud83d end"
    results = [made.results[0].model_copy(update={"replies": [reply]})]
    scores = score(made.benchmark, results, {})
    path = write_report(tmp_path / "report.html", "run", scores, made.benchmark, results)
    text = Page(path.read_text(encoding="utf-8")).text
    assert len(text) < 3 * gallery.LONGEST and "characters left out" in text and "? end" in text
    assert gallery.clip("abcdef", 4) == "ab [2 characters left out] ef"
