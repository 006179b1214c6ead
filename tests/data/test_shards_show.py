"""Previews and statistics: what is in a set can be seen, and nothing in it acts on who looks."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import shards
from data.sample import Sample, Text
from data.shards import WriteOptions, figure
from data.shards.stats import collect
from tests.data.test_shards import GOOD, SOURCE, cli, indexed, pack, picture, text_file

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{$ {{ 7777 * 7777 }} \x1b[31m\u202e"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A set with markup in every field, and one broken sample."""
    fields = {"question": EVIL, "answer": EVIL, "rationale": EVIL, "task": EVIL, "source": EVIL}
    choices = {**fields, "answer": "B", "choices": [EVIL, EVIL]}
    members = [("a.0.png", picture()), ("a.json", text_file(**fields)), ("b.json", text_file(**choices))]
    members += [("bad.0.png", b"<script>"), ("bad.json", text_file()), ("worse.json", b'{"<script>": 1}')]
    (tmp_path / "set").mkdir()
    pack(tmp_path / "set" / "a.tar", members)
    return indexed(tmp_path / "set")


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: str) -> Tags:
    tags = Tags(page)
    assert "<script" not in page and {tag for tag, _ in tags.tags} & {"script", "iframe", "link", "object"} == set()
    for tag, attributes in tags.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert tag != "img" or str(attributes["src"]).startswith("data:image/")
    assert "default-src 'none'" in page
    return tags


def test_preview_page(evil: Path, tmp_path: Path) -> None:
    done = cli("preview", evil, "--out", tmp_path / "x.html")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2 and "left out: " in done.stderr
    tags = harmless((tmp_path / "x.html").read_text())
    assert tags.text.count(EVIL.partition("\x1b")[0]) == 11 and "60481729" not in tags.text
    assert sum(tag == "img" for tag, _ in tags.tags) == 1


def test_preview_sheet(tiny_shards: Path, evil: Path, tmp_path: Path) -> None:
    """Of samples with and without pictures and choices."""
    done = cli("preview", tiny_shards, "--out", tmp_path / "sheet.png", "--count", 20)
    assert (done.returncode, done.stderr) == (0, "")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.format == "PNG" and sheet.width > 500 and sheet.height > 500
    assert len(sheet.convert("RGB").getcolors(1 << 24)) > 50
    assert cli("preview", evil, "--out", tmp_path / "evil.png").returncode == 0


def test_a_sheet_of_long_texts_and_many_pictures(tmp_path: Path) -> None:
    text = Text(**{**GOOD, "question": "why " * 50_000, "rationale": "x" * 100_000})
    wide = [Image.new("RGB", size) for size in ((4000, 2), (2, 4000), (1, 1))]
    samples = [Sample(key=f"k{n}", text=text, images=(picture(300),) * 30) for n in range(2)]
    for number, one in enumerate(wide):
        one.save(tmp_path / "one.png")
        samples.append(Sample(key=f"w{number}", text=Text(**GOOD), images=((tmp_path / "one.png").read_bytes(),)))
    shards.write(samples, tmp_path / "set")
    assert cli("preview", tmp_path / "set", "--out", tmp_path / "x.png").returncode == 0
    assert Image.open(tmp_path / "x.png").height < 8000


def keys(page: Path) -> list[str]:
    """The keys in a preview."""
    text = page.read_text()
    return [part.partition("</small>")[0] for part in text.split('<div class="sample"><small>')[1:]]


def test_which_samples_are_shown(tmp_path: Path) -> None:
    shards.write(
        (Sample(key=f"k{n}", text=Text(**GOOD)) for n in range(50)), tmp_path / "set", WriteOptions(per_shard=8)
    )
    drawn = []
    for arguments in ([], ["--random", 1], ["--random", 1], ["--random", 2], ["--count", 99]):
        page = tmp_path / "x.html"
        assert cli("preview", tmp_path / "set", "--out", page, "--count", 5, *arguments).returncode == 0
        drawn.append(keys(page))
    assert drawn[0] == ["k0", "k1", "k2", "k3", "k4"]
    assert drawn[1] == drawn[2] != drawn[3] and len(set(drawn[1])) == 5 and drawn[1] != drawn[0]
    assert drawn[4] == [f"k{n}" for n in range(50)]


@pytest.mark.parametrize("command", ["preview", "stats"])
def test_endings_that_are_none(tiny_shards: Path, command: str) -> None:
    done = cli(command, tiny_shards, "--out", "x.svg")
    assert done.returncode == 2 and "neither .png nor .html" in done.stderr


def mixed() -> Iterator[Sample]:
    for number in range(40):
        choices = ("one", "two", "three") if number % 4 else None
        fields = {**GOOD, "question": "q" * (number + 1), "answer": "ABC"[number % 3] if choices else str(number % 2)}
        images = tuple(picture(2 ** (3 + (number + n) % 4)) for n in range(number % 3))
        yield Sample(key=f"k{number}", text=Text(**fields, choices=choices), images=images)


def test_numbers_are_those_of_the_samples(tmp_path: Path) -> None:
    samples = list(mixed())
    shards.write(samples, tmp_path)
    stats, total = collect(str(tmp_path), SOURCE, 100, None, None)
    assert total == stats.samples == 40
    assert sorted(stats.numbers["question"]) == list(range(1, 41))
    assert list(stats.numbers["images"]) == [len(one.images) for one in samples]
    assert stats.names["letter"] == {letter: sum(one.text.answer == letter for one in samples) for letter in "ABC"}
    assert stats.names["answer"] == {"0": 10} and stats.names["format"] == {"PNG": len(stats.numbers["width"])}
    assert stats.numbers["width"] == stats.numbers["height"] and set(stats.numbers["aspect"]) == {1}
    assert np.allclose(sum(stats.numbers["bytes"]) * 1000, (tmp_path / "000000.tar").stat().st_size - 1024)
    assert len(collect(str(tmp_path), SOURCE, 7, None, None)[0].numbers["question"]) == 7


def test_stats_figure(tiny_shards: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    stats, _ = collect(str(tiny_shards), SOURCE, 200, str(tiny_backbone), 256 * 256)
    assert "image tokens per sample" in stats.summary() and stats.samples == 104
    figure.write(tmp_path / "x.png", stats, "title")
    drawn = Image.open(tmp_path / "x.png")
    assert drawn.width > 1000 and len(drawn.convert("RGB").getcolors(1 << 24)) > 20


def test_stats_page(evil: Path, tmp_path: Path) -> None:
    """Broken samples are counted; their names and all others are only text."""
    done = cli("stats", evil, "--out", tmp_path / "x.html")
    assert done.returncode == 0 and "2 of 4 samples, 2 cannot be read" in done.stdout and "\x1b" not in done.stdout
    tags = harmless((tmp_path / "x.html").read_text())
    assert "2 samples that cannot be read" in tags.text and "<script>alert" in tags.text and "60481729" not in tags.text


def test_nothing_that_can_be_shown(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", [("a.json", b"{")])
    indexed(tmp_path)
    for command in ("preview", "stats"):
        done = cli(command, tmp_path, "--out", tmp_path / "x.html")
        assert done.returncode == 2 and "see what lint says" in done.stderr and not (tmp_path / "x.html").exists()
