"""Shard sets: what is written is read again, and every fault is one line that names its place and its mend."""

import io
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import puzzles, shards
from data.sample import Sample, Text
from data.shards import WriteOptions
from data.shards.foreign import index
from data.shards.index import read_offsets
from data.source import Source
from tests.refusal import refusal

SOURCE = Source()
Members = list[tuple[str, bytes]]
GOOD = {"question": "How many?", "answer": "3", "task": "t", "source": "s"}


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


def indexed(folder: Path) -> Path:
    """A folder of tars, with an index now."""
    list(index(str(folder), SOURCE, folder))
    return folder


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data.shards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def load(folder: Path) -> list[shards.Shard]:
    return shards.load_index(str(folder), SOURCE)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A set of ten samples with one to three pictures, in shards of 4, 4 and 2."""
    samples = puzzles.stream(("counting", "correspondence", "jigsaw"), "train", 10)
    shards.write(samples, tmp_path / "set", WriteOptions(per_shard=4))
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
    index = shards.write(samples, tmp_path / "set", WriteOptions(per_shard=4))
    assert [s.samples for s in index] == [4, 4, 4, 4, 4, 1]
    assert load(tmp_path / "set") == index
    found = list(shards.read_set(tmp_path / "set"))
    assert [s.model_copy(update={"origin": ""}) for s in found] == samples
    assert [Path(s.origin).name for s in found] == [f"{n // 4:06d}.tar" for n in range(21)]
    with tarfile.open(tmp_path / "set" / "000004.tar") as tar:
        assert [n for n in tar.getnames() if n.startswith("odd")] == ["odd.0.jpeg", "odd.1.webp", "odd.json"]
    lint = cli("lint", tmp_path / "set")
    assert (lint.returncode, lint.stdout) == (0, f"{tmp_path}/set: 21 samples in 6 shards, 0 faults\n")


def test_offsets_say_where_the_samples_are(written: Path) -> None:
    """As webdataset and tarfile see them too."""
    for shard in load(written):
        offsets = read_offsets(str(written), shard, SOURCE).tolist()
        content = (written / shard.shard).read_bytes()
        samples = [shards.parse(content[a:b], "") for a, b in itertools.pairwise(offsets)]
        with tarfile.open(written / shard.shard) as tar:
            starts = {m.name.partition(".")[0]: m.offset for m in reversed(tar.getmembers())}
        assert [starts[sample.key] for sample in samples] == offsets[:-1]
        assert not content[offsets[-1] :].strip(b"\0") and len(content) == shard.bytes


def test_webdataset_reads_what_is_written(written: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(written / shard.shard) for shard in load(written)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [one["__key__"] for one in found] == [sample.key for sample in shards.read_set(written)]
    assert all(one["0.png"].startswith(b"\x89PNG") for one in found)


def test_a_set_is_not_written_over(written: Path) -> None:
    before = {p.name: p.read_bytes() for p in written.iterdir()}
    assert "delete it" in refusal(lambda: shards.write(puzzles.stream(("maze",), "train", 2), written))
    assert {p.name: p.read_bytes() for p in written.iterdir()} == before


def test_tars_of_another_origin_are_not_written_over(tmp_path: Path) -> None:
    pack(tmp_path / "000000.tar", [("k.json", text_file())])
    before = (tmp_path / "000000.tar").read_bytes()
    assert "another origin" in refusal(lambda: shards.write(puzzles.stream(("maze",), "train", 2), tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["000000.tar"]
    assert (tmp_path / "000000.tar").read_bytes() == before


@pytest.mark.parametrize("key", ["version-1.5", "left/right", "", ".", "..", "a\nb", "a\x1b[31m", "k" * 300, "<b>"])
def test_keys_that_cannot_be_read_again_are_refused(tmp_path: Path, key: str) -> None:
    sample = Sample(key=key, text=Text(**GOOD))
    text = refusal(lambda: shards.write([sample], tmp_path / "set"))
    assert text.startswith(f"{tmp_path}/set: ") and text.isprintable() and ("take out" in text or "rename" in text)
    assert not (tmp_path / "set" / "index.json").exists()


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = [Sample(key=key, text=Text(**GOOD)) for key in ("one", "two", "one")]
    text = refusal(lambda: shards.write(twice, tmp_path / "set", WriteOptions(per_shard=2)))
    assert "one: the key of an earlier" in text and "must differ" in text


@pytest.mark.parametrize("content", [b"text", b"", b"%!PS-Adobe-3.0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_bytes_that_are_no_picture_are_not_written(tmp_path: Path, content: bytes) -> None:
    sample = Sample(key="one", text=Text(**GOOD), images=(picture(), content))
    assert "set: one.1: " in refusal(lambda: shards.write([sample], tmp_path / "set"))


def test_nothing_is_no_set(tmp_path: Path) -> None:
    assert "nothing to write" in refusal(lambda: shards.write([], tmp_path / "set"))


def test_missing_folder(tmp_path: Path) -> None:
    text = refusal(lambda: load(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in text and "data.train" in text


def test_missing_index(written: Path) -> None:
    (written / "index.json").unlink()
    text = refusal(lambda: load(written))
    assert str(written) in text and "index.json" in text and f"data.shards index {written}" in text


@pytest.mark.parametrize(
    "content", ["", "[{", "[{}]", '[{"shard": "a.tar"}]', "[1]", "[]", '[{"shard": "../a.tar", "samples": 1}]']
)
def test_index_that_is_none(written: Path, content: str) -> None:
    (written / "index.json").write_text(content)
    text = refusal(lambda: load(written))
    assert str(written / "index.json") in text and ("index the set again" in text or "write the set again" in text)


def test_an_index_that_names_a_shard_twice(written: Path) -> None:
    entries = json.loads((written / "index.json").read_text())
    (written / "index.json").write_text(json.dumps([*entries, entries[1]]))
    assert "000001.tar 2 times" in refusal(lambda: load(written))


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8 * 5), np.arange(6, dtype="<u8").tobytes(), None])
def test_offsets_that_are_none(written: Path, content: bytes | None) -> None:
    path = written / "000001.tar.idx"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    text = refusal(lambda: read_offsets(str(written), load(written)[1], SOURCE))
    assert str(path) in text and "python -m data.shards index" in text


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
    """Samples before the broken one are handed out; the message names shard and key. Lint goes on behind it."""
    members, parts = BROKEN[fault]
    path = pack(tmp_path / "000007.tar", [("good.json", text_file()), *members, ("next.json", text_file())])
    samples = shards.read_set(indexed(tmp_path))
    assert next(samples).key == "good"
    text = refusal(lambda: next(samples))
    assert text.startswith(f"{path}: k: ") and all(part in text for part in parts)
    lint = cli("lint", tmp_path) if fault == "no JSON" else None
    if lint is not None:
        assert lint.stdout.splitlines()[0] == "000007.tar: k: " + text.removeprefix(f"{path}: k: ")
        assert lint.stdout.splitlines()[1:] == [f"{tmp_path}: 3 samples in 1 shards, 1 faults"]


@pytest.mark.parametrize("command", ["write", "index", "lint", "preview", "stats"])
def test_a_folder_that_is_not_there(tmp_path: Path, command: str) -> None:
    out = {"write": ["--out", tmp_path / "set"], "preview": ["--out", "x.png"], "stats": ["--out", "x.png"]}
    done = cli(command, tmp_path / "nowhere", *out.get(command, []))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "nowhere") in line


@pytest.mark.parametrize(
    "arguments", [["write", "--help"], ["--help"], ["lint", "--help"], ["preview", "--help"], ["stats", "--help"]]
)
def test_help(arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m data.shards")


def test_a_command_imports_no_more_than_it_needs() -> None:
    """Or its help would take as long as they do."""
    code = (
        "import sys, data.shards.__main__; print(*{'torch', 'transformers', 'matplotlib', 'jinja2'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
