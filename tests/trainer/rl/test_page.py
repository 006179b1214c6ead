"""The page of a rollout: what it says of completions, that it does nothing, and that a full disk ends no training."""

import base64
import contextlib
import html
import io
import math
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.processor import Encoded
from data.puzzles import generate
from data.sample import Sample, Text
from model.completion import Completion
from tests.data.test_shards_show import EVIL, harmless
from trainer.rl import page as pages
from trainer.rl.group import Group, Seen
from trainer.rl.page import COMPLETIONS, DROPPED, GROUPS, LONGEST, PICTURES, figure, latents, signed, write_page

NAN, INF = math.nan, math.inf
PUZZLE = generate("counting", 0, 64, 1)


def group(
    texts: list[str],
    sample: Sample = PUZZLE,
    rewards: list[float] | None = None,
    advantages: list[float] | None = None,
    dropped: str | None = None,
) -> Group:
    """Completions of 3 tokens, 4, and so on; the first has no latents, the second's stand before it, and so on."""
    nothing, count = torch.zeros(0), len(texts)
    said = [Completion((1,) * (3 + i), i != 1, i - 1 if i else None, "n", (-1.0,) * (3 + i)) for i in range(count)]
    seen = [Seen(nothing, nothing, nothing, nothing, 0.5 + i, i / 10, 0.25) for i in range(count)]
    return Group(
        Encoded(sample, nothing, nothing, nothing, nothing),
        said,
        texts,
        seen,
        parts={
            "accuracy": [1.0] * count,
            "length": [-12.0 * i for i in range(count)],
            "attention_mass": [0.125] * count,
        },
        weights={"accuracy": 0.9, "length": 0.005},
        rewards=rewards or [0.9] * count,
        advantages=advantages or [0.0] * count,
        dropped=dropped,
    )


def written(folder: Path, *groups: Group) -> str:
    path = write_page(folder, 40, list(groups))
    assert path == folder / "rollout_40.html" and list(folder.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def plain(part: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())


def rows(page: str) -> list[list[str]]:
    """The cells of each completion, its text last."""
    bodies = re.findall(r"<tbody.*?</tbody>", page, re.DOTALL)
    return [[plain(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", body, re.DOTALL)] for body in bodies]


def drawn(page: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def encoded(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 90).save(file, "PNG")
    return file.getvalue()


# ---- What it says ----


def test_every_number_of_a_completion(tmp_path: Path) -> None:
    page = written(
        tmp_path, group(["one", "two", "three"], rewards=[0.9, 0.84, 0.78], advantages=[1.2247, 0.0, -1.2247])
    )
    assert rows(page) == [
        ["1", "3", "yes", "none", "1", "0", "0.1250", "0.9000", "+1.225", "0.5000", "0", "0.2500", "", "one"],
        ["2", "4", "no", "before", "1", "−12", "0.1250", "0.8400", "0", "1.5000", "0.1000", "0.2500", "", "two"],
        ["3", "5", "yes", "after token 1", "1", "−24", "0.1250", "0.7800", "−1.225", "2.5000", "0.2000", "0.2500", "",
         "three"],
    ]  # fmt: skip
    head = plain(re.findall(r"<thead>.*?</thead>", page, re.DOTALL)[0])
    assert "accuracy × 0.9 length × 0.005 attention mass no weight latents images" in head
    assert not re.search("dropped|left out", page.partition("<section>")[2])


def test_the_prompt(tmp_path: Path) -> None:
    whole, text = written(tmp_path, group(["B"])), PUZZLE.text
    page = plain(whole)
    assert text.choices and f"right answer {text.answer}" in page and text.question in page and PUZZLE.key in page
    for letter, choice in zip("ABCD", text.choices, strict=True):
        assert f"({letter}) {choice}" in page
    (right,) = re.findall(r'<li class="right">.*?</li>', whole, re.DOTALL)
    assert plain(right) == f"({text.answer}) {text.choices['ABCD'.index(text.answer)]} right"


def test_an_open_question_with_places_of_pictures(tmp_path: Path) -> None:
    text = Text(question="Is <image> like <image>?", answer="no", task="t", source="s")
    page = written(tmp_path, group(["no"], Sample(key="k", text=text, images=PUZZLE.images * 2)))
    assert "Is [picture 1] like [picture 2]? right answer no" in plain(page) and "<ol>" not in page


def test_an_empty_completion_is_marked(tmp_path: Path) -> None:
    assert [row[-1] for row in rows(written(tmp_path, group(["", " \n", "x", "(empty)"])))] == [
        "(empty)", "(empty)", "x", "(empty)",
    ]  # fmt: skip
    assert (tmp_path / "rollout_40.html").read_text().count("<i>(empty)</i>") == 2


@pytest.mark.parametrize(("reward", "shown"), [(NAN, "nan"), (INF, "inf"), (-INF, "−inf")])
def test_a_completion_left_out_is_marked(tmp_path: Path, reward: float, shown: str) -> None:
    page = written(tmp_path, group(["a", "b", "c"], rewards=[0.1, reward, 0.2], advantages=[-1.0, 0.0, 1.0]))
    assert [row[7:9] for row in rows(page)] == [["0.1000", "−1.000"], [shown, "left out"], ["0.2000", "+1.000"]]
    assert page.count('<tbody class="out">') == 1


@pytest.mark.parametrize("why", [*DROPPED, "a reason of tomorrow"])
def test_why_a_group_was_dropped(tmp_path: Path, why: str) -> None:
    page = plain(written(tmp_path, group(["a"], dropped=why), group(["a"])))
    assert page.count("✗ dropped") == 1 and f"dropped ({why}) {DROPPED.get(why, '') and ': ' + DROPPED[why]}" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (-1234.0, "−1,234"), (0.5, "0.5000"), (-0.25, "−0.2500"),
        (0.0004, "4.0e−04"), (0.001, "0.0010"), (12.34567, "12.3457"), (NAN, "nan"), (-INF, "−inf"),
    ],
)  # fmt: skip
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_signs_and_places() -> None:
    assert [signed(x) for x in (0.5, -0.5, 0.0, -0.0)] == ["+0.500", "−0.500", "0", "0"]
    assert [latents(at) for at in (None, 0, 1, 12)] == ["none", "before", "after token 1", "after token 12"]


# ---- What it does not do ----


def test_nothing_in_it_is_markup(tmp_path: Path) -> None:
    text = Text(question=EVIL, answer="B", choices=(EVIL, EVIL), task=EVIL, source=EVIL)
    page = written(tmp_path, group([EVIL, "x"], Sample(key=EVIL, text=text), dropped=EVIL))
    seen = harmless(page)
    assert seen.text.count("<script>alert(1)</script>") == 8 and "{{ 7777 * 7777 }}" in seen.text
    open_text = Text(question="q", answer=EVIL, task="t", source="s")
    assert EVIL in harmless(written(tmp_path, group(["x"], Sample(key="k", text=open_text)))).text


def test_half_a_character_is_no_fault(tmp_path: Path) -> None:
    assert rows(written(tmp_path, group(["so \ud83d"])))[0][-1] == "so ?"


# ---- Its size ----


def test_pictures_are_in_it_and_shrunk(tmp_path: Path) -> None:
    text = Text(question="q", answer="a", task="t", source="s")
    images = (encoded((2000, 1000)), PUZZLE.images[0], b"<script>")
    page = written(tmp_path, group(["a"], Sample(key="k", text=text, images=images)))
    assert [one.size for one in drawn(page)] == [(320, 160), (64, 64)]
    assert "2000 x 1000 pixels" in page and len(page) < 100_000
    assert 'width="128" height="128" alt="picture 2" class="small"' in " ".join(page.split())  # by a whole factor
    assert "picture 3 cannot be shown: not a whole picture" in plain(page)


def test_a_few_groups_completions_and_pictures(tmp_path: Path) -> None:
    text = Text(question="q", answer="a", task="t", source="s")
    many = Sample(key="many", text=text, images=PUZZLE.images * (PICTURES + 3))
    page = written(tmp_path, group(["x"] * (COMPLETIONS + 5), many), *[group(["x"])] * (GROUPS + 1))
    assert page.count("<section>") == GROUPS and f"{GROUPS} of {GROUPS + 2} groups" in page
    assert len(rows(page)) == COMPLETIONS + GROUPS - 1 and "and 5 more completions" in page
    assert len(drawn(page)) == PICTURES + GROUPS - 1 and "and 3 more pictures" in page


def test_of_a_long_text_beginning_and_end(tmp_path: Path) -> None:
    long = "a" * LONGEST + "b" * LONGEST
    said = rows(written(tmp_path, group([long, "c" * LONGEST])))
    half = LONGEST // 2
    assert said[0][-1] == f"{'a' * half} [… {LONGEST:,} characters …] {'b' * half}"
    assert said[1][-1] == "c" * LONGEST


# ---- Where it cannot be written ----


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond 1,000 bytes, as on a full disk. The test's own report neither, so not for long."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_page_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = written(tmp_path, group(["before"]))
    with small_files():
        pages = [write_page(tmp_path, number, [group(["after"])]) for number in (40, 41)]
    assert pages == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["rollout_40.html"]
    assert (tmp_path / "rollout_40.html").read_text() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "rollout_41.html: not written (" in caplog.text and "training goes on" in caplog.text


def test_no_place_for_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rollouts").write_text("a file")
    assert write_page(tmp_path / "rollouts", 0, [group(["x"])]) is None
    assert write_page(tmp_path / "rollouts" / "deeper", 0, [group(["x"])]) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_other_faults_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(pages, "page", broken)
    with pytest.raises(ValueError, match="of ours"):
        write_page(tmp_path, 0, [group(["x"])])
    assert list(tmp_path.iterdir()) == []
