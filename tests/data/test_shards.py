"""Shard sets: what is written is read again, and every fault is one line that names its place and its mend."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import puzzles, shards
from data.processor import Processor
from data.sample import DataError, Sample, Text

Members = list[tuple[str, bytes]]
GOOD = {"question": "How many?", "answer": "3", "task": "t", "source": "s"}


def refusal(action: Callable[[], object]) -> str:
    """The text of the DataError that an action ends in, which is one line."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def picture(size: int = 16, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(out, kind)
    return out.getvalue()


def text_file(**changes: object) -> bytes:
    """The JSON of a good sample with changes; a change to None takes the key out."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None}).encode()


def pack(path: Path, members: Members) -> Path:
    """Write a tar by hand."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def index(folder: Path, samples: int) -> Path:
    """Write the index of a folder whose shards hold so many samples each."""
    entries = [
        {"shard": p.name, "samples": samples, "bytes": p.stat().st_size, "sha256": ""} for p in folder.glob("*.tar")
    ]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data.shards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A set of ten samples with one to three pictures, in shards of 4, 4 and 2."""
    samples = puzzles.stream(("counting", "correspondence", "jigsaw"), "train", 10)
    shards.write(samples, tmp_path / "set", per_shard=4)
    return tmp_path / "set"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    odd_text = Text(
        question='<image> then <image>: «größer»\n"?" \\ 大',
        answer="B",
        choices=("ja, 'ja'", "нет\t"),
        rationale="because\nof 🦊",
        task="t",
        source="s",
    )
    samples = [
        *puzzles.stream(tuple(puzzles.KINDS), "train", 18, difficulties=(1, 2)),
        Sample(key="odd", text=odd_text, images=(picture(16, "JPEG"), picture(8, "WEBP"))),
        Sample(key="many", text=Text(**GOOD), images=tuple(picture(size) for size in range(1, 13))),
        Sample(key="blind", text=Text(**GOOD)),
    ]
    index = shards.write(samples, tmp_path / "set", per_shard=4)
    assert [s.samples for s in index] == [4, 4, 4, 4, 4, 1]
    assert shards.load_index(tmp_path / "set") == index
    found = list(shards.read_set(tmp_path / "set"))
    assert [s.model_copy(update={"origin": ""}) for s in found] == samples
    assert [Path(s.origin).name for s in found] == [f"{n // 4:06d}.tar" for n in range(21)]
    assert shards.lint(tmp_path / "set") == 21
    with tarfile.open(tmp_path / "set" / "000004.tar") as tar:
        assert [n for n in tar.getnames() if n.startswith("odd")] == ["odd.0.jpeg", "odd.1.webp", "odd.json"]


def test_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    sets = [
        shards.write(puzzles.stream(("maze",), "train", 6), tmp_path / name, per_shard=3) for name in ("one", "two")
    ]
    assert sets[0] == sets[1]
    one, two = ((tmp_path / name / "000001.tar").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_reading_can_skip_samples(written: Path, skip: int) -> None:
    whole = list(shards.read_shard(written / "000000.tar"))
    assert list(shards.read_shard(written / "000000.tar", skip)) == whole[skip:]


def test_a_set_is_not_written_over(written: Path) -> None:
    before = {p.name: p.read_bytes() for p in written.iterdir()}
    more = puzzles.stream(("maze",), "train", 2)
    assert "delete it" in refusal(lambda: shards.write(more, written, per_shard=1))
    assert {p.name: p.read_bytes() for p in written.iterdir()} == before


@pytest.mark.parametrize("key", ["version-1.5", "left/right"])
def test_keys_that_cannot_be_read_again_are_refused(tmp_path: Path, key: str) -> None:
    sample = Sample(key=key, text=Text(**GOOD))
    text = refusal(lambda: shards.write([sample], tmp_path / "set", per_shard=1))
    assert f"000000.tar: {key}:" in text and "take out" in text
    assert not (tmp_path / "set" / "index.json").exists()


def test_a_write_that_was_killed_leaves_no_set(tmp_path: Path) -> None:
    def dying() -> object:
        yield from puzzles.stream(("maze",), "train", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(dying(), tmp_path / "set", per_shard=2)
    text = refusal(lambda: shards.load_index(tmp_path / "set"))
    assert str(tmp_path / "set") in text and "index.json" in text and "write it again" in text


def test_missing_folder(tmp_path: Path) -> None:
    text = refusal(lambda: shards.load_index(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in text and "data.train" in text


def test_missing_index(written: Path) -> None:
    (written / "index.json").unlink()
    text = refusal(lambda: shards.load_index(written))
    assert str(written) in text and "index.json" in text and "write it again" in text


@pytest.mark.parametrize("content", ["", "[{", "[{}]", '[{"shard": "a.tar"}]', "[1]", "[]"])
def test_index_that_is_none(written: Path, content: str) -> None:
    (written / "index.json").write_text(content)
    text = refusal(lambda: shards.load_index(written))
    assert str(written / "index.json") in text and "write the set again" in text


def test_missing_shard(written: Path) -> None:
    (written / "000001.tar").unlink()
    text = refusal(lambda: shards.load_index(written))
    assert str(written / "000001.tar") in text and "fetch the shard again" in text


def test_shard_of_another_size(written: Path) -> None:
    with (written / "000002.tar").open("ab") as file:
        file.write(b"\0")
    text = refusal(lambda: shards.load_index(written))
    assert str(written / "000002.tar") in text and "bytes" in text and "fetch the shard again" in text


BROKEN: dict[str, tuple[Members, tuple[str, ...]]] = {
    "no JSON": ([("k.0.png", picture())], ("no k.json", "write the shard again")),
    "no answer": ([("k.json", text_file(answer=None))], ("answer: Field required", "mend k.json")),
    "empty answer": ([("k.json", text_file(answer=""))], ("answer:", "at least 1", "mend k.json")),
    "unknown key": ([("k.json", text_file(anser="3"))], ("anser:", "not permitted", "mend k.json")),
    "unknown key of two lines": ([("k.json", text_file(**{"an\nser": "3"}))], ("an ser:", "not permitted")),
    "not JSON": ([("k.json", b'{"question":')], ("Invalid JSON", "mend k.json")),
    "not text": ([("k.json", b"\xff\xfe")], ("Invalid JSON", "mend k.json")),
    "not a letter": ([("k.json", text_file(choices=["3", "4"]))], ("'3' is not a letter of the 2", "mend k.json")),
    "letter beyond": (
        [("k.json", text_file(choices=["3", "4"], answer="C"))],
        ("'C' is not a letter of the 2", "mend k.json"),
    ),
    "more pictures than marks": (
        [("k.0.png", picture()), ("k.1.png", picture()), ("k.json", text_file(question="<image> how many?"))],
        ("2 images for 1 <image> marks", "mend k.json"),
    ),
    "more marks than pictures": (
        [("k.0.png", picture()), ("k.json", text_file(question="<image> or <image>?"))],
        ("1 images for 2 <image> marks", "mend k.json"),
    ),
    "a number left out": (
        [("k.0.png", picture()), ("k.2.png", picture()), ("k.json", text_file())],
        ("images numbered [0, 2]", "number them 0, 1, 2"),
    ),
    "a number twice": (
        [("k.0.png", picture()), ("k.0.jpg", picture()), ("k.json", text_file())],
        ("images numbered [0, 0]", "number them 0, 1, 2"),
    ),
    "numbers from one": (
        [("k.1.png", picture()), ("k.json", text_file())],
        ("images numbered [1]", "number them 0, 1, 2"),
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_sample(tmp_path: Path, fault: str) -> None:
    """Samples before the broken one are handed out; the message names shard and key."""
    members, parts = BROKEN[fault]
    path = pack(tmp_path / "000007.tar", [("good.json", text_file()), *members, ("next.json", text_file())])
    samples = shards.read_shard(path)
    assert next(samples).key == "good"
    text = refusal(lambda: next(samples))
    assert text.startswith(f"{path}: k: ") and all(part in text for part in parts)
    assert refusal(lambda: shards.lint(index(tmp_path, 3))) == text


def no_picture(fault: str) -> bytes:
    """Content that begins as a picture at most."""
    whole, bitmap = picture(64), picture(64, "BMP")
    return {
        "cut": whole[: len(whole) // 2],
        "cut JPEG": picture(64, "JPEG")[:-200],
        "empty": b"",
        "text": b"404: Not Found",
        "huge": bitmap[:18] + (10**5).to_bytes(4, "little") * 2 + bitmap[26:],  # says 10 ** 10 pixels
        "short header": whole[:11] + b"\1" + whole[12:],
    }[fault]


@pytest.mark.parametrize("fault", ["cut", "cut JPEG", "empty", "text", "huge", "short header"])
def test_damaged_picture(tmp_path: Path, processor: Processor, fault: str) -> None:
    members = [("k.0.png", picture()), ("k.1.png", no_picture(fault)), ("k.json", text_file())]
    path = pack(tmp_path / "000003.tar", members)
    (sample,) = shards.read_shard(path)
    for action in (lambda: shards.lint(index(tmp_path, 1)), lambda: processor.encode(sample)):
        text = refusal(action)
        assert text.startswith(f"{path}: k.1: not a whole picture") and "write it again" in text


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_of_a_picture_never_get_further(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Whatever a few wrong bytes do to a picture, it is read or refused in one line."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # keeps the test small
    content = bytearray(picture(32, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 60)))] = data.draw(st.integers(0, 255))
    sample = Sample(key="k", text=Text(**GOOD), images=(bytes(content),))
    try:
        encoded = processor.encode(sample)
    except DataError as error:
        assert str(error).startswith("k") and "\n" not in str(error)
    else:
        assert len(encoded.pixels) == encoded.grids.prod() > 0


def boundaries(path: Path) -> list[int]:
    """Where the members of a tar begin."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.mark.parametrize("after", [0, 1, 200, 512, 600])
def test_tar_that_ends_early(written: Path, after: int) -> None:
    """Cut between members, in a header and in a picture: tarfile takes some of these for a whole tar."""
    path = written / "000000.tar"
    whole = list(shards.read_shard(path))
    path.write_bytes(path.read_bytes()[: boundaries(path)[2] + after])  # behind the first sample
    text = refusal(lambda: list(shards.read_shard(path, samples=4)))
    assert str(path) in text and f"after {whole[0].key if after < 512 else whole[1].key}" in text
    assert "fetch the shard again" in text


def test_tar_with_a_damaged_header(written: Path) -> None:
    """Of the right size, so that only the count tells that the samples behind it are missing."""
    path = written / "000000.tar"
    content = bytearray(path.read_bytes())
    content[boundaries(path)[2] + 10] ^= 1
    path.write_bytes(content)
    text = refusal(lambda: shards.lint(written))
    assert str(path) in text and "1 samples, not 4" in text and "fetch the shard again" in text


def no_tar(fault: str, whole: bytes) -> bytes:
    packed = bytearray(gzip.compress(whole))
    packed[len(packed) // 2] ^= 255
    return {"noise": bytes(range(256)) * 40, "empty": b"", "damaged gzip": bytes(packed)}[fault]


@pytest.mark.parametrize("fault", ["noise", "empty", "damaged gzip"])
def test_no_tar_at_all(written: Path, fault: str) -> None:
    path = written / "000000.tar"
    path.write_bytes(no_tar(fault, path.read_bytes()))
    text = refusal(lambda: list(shards.read_shard(path)))
    assert str(path) in text and "broken tar after its start" in text and "fetch the shard again" in text


def test_lint_command(written: Path) -> None:
    good = cli("lint", written)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{written}: 10 samples, all whole\n", "")


def test_lint_command_on_a_bad_set(tmp_path: Path) -> None:
    pack(tmp_path / "000000.tar", [("k.0.png", picture()[:60]), ("k.json", text_file())])
    bad = cli("lint", index(tmp_path, 1))
    assert bad.returncode == 2 and bad.stdout == ""
    (line,) = bad.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/000000.tar: k.0: not a whole picture")


def test_sheet_command(tiny_shards: Path, tmp_path: Path) -> None:
    """Of samples with and without pictures and choices."""
    done = cli("sheet", tiny_shards, "--out", tmp_path / "sheet.png", "--count", 20)
    assert (done.returncode, done.stderr) == (0, "")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.format == "PNG" and sheet.width > 500 and sheet.height > 500
    assert len(sheet.convert("RGB").getcolors(1 << 24)) > 50


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = [Sample(key=key, text=Text(**GOOD)) for key in ("one", "two", "one")]
    assert "keys must differ" in refusal(lambda: shards.write(twice, tmp_path / "set", per_shard=2))


def test_bytes_that_are_no_picture_are_not_written(tmp_path: Path) -> None:
    sample = Sample(key="one", text=Text(**GOOD), images=(b"text",))
    assert "one.0: not a picture" in refusal(lambda: shards.write([sample], tmp_path / "set", per_shard=2))


def test_lint_finds_a_change_that_leaves_all_readable(written: Path) -> None:
    """Same size, same keys, but another text."""
    path = written / "000000.tar"
    content = path.read_bytes()
    changed = content.replace(b'"source":"puzzles"', b'"source":"puzzler"', 1)
    assert changed != content
    path.write_bytes(changed)
    assert "sha256" in refusal(lambda: shards.lint(written))
