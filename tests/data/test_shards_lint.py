"""Lint names every fault of a set, one line each, and whatever else it finds it goes on."""

import json
import shutil
from pathlib import Path

import pytest

from data import shards
from data.processor import Processor
from data.sample import Sample, Text
from data.shards import WriteOptions
from data.shards.lint import Budget, lint
from data.shards.tokens import tokens
from tests.data.test_shards import GOOD, SOURCE, cli, indexed, pack, picture, text_file
from tests.refusal import refusal

HUGE = picture(64, "BMP")
PICTURES = {
    "cut": picture(64)[:100],
    "cut JPEG": picture(64, "JPEG")[:-200],
    "empty": b"",
    "text": b"404: Not Found",
    "huge": HUGE[:18] + (10**5).to_bytes(4, "little") * 2 + HUGE[26:],  # says 10 ** 10 pixels
}


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    samples = [Sample(key=f"k{n}", text=Text(**GOOD), images=(picture(16 + n),)) for n in range(12)]
    shards.write(samples, tmp_path / "set", WriteOptions(per_shard=4))
    return tmp_path / "set"


def told(folder: Path) -> list[str]:
    return [str(fault) for one in lint(str(folder), SOURCE) for fault in one.faults]


def test_a_whole_set(written: Path) -> None:
    for workers in (0, 2):
        done = cli("lint", written, "--workers", workers)
        assert (done.returncode, done.stdout) == (0, f"{written}: 12 samples in 3 shards, 0 faults\n")


def test_every_fault_is_named(written: Path) -> None:
    """Of all kinds at once, in one go, the same from two processes."""
    pack(written / "000003.tar", [("a.0.png", picture()), ("a.json", text_file()), ("k1.json", text_file())])
    shutil.copy(written / "000000.tar", written / "000004.tar")
    pack(written / "000005.tar", [("b.json", b"{"), ("c.1.png", picture()), ("c.json", text_file()), ("d.0.png", b"")])
    members = [(f"p.{n}.png", content) for n, content in enumerate([picture(), *PICTURES.values()])]
    pack(written / "000006.tar", [*members, ("p.json", text_file())])
    indexed(written)
    (written / "000004.tar").unlink()
    change(written / "000000.tar", b'"source":"s"', b'"source":"t"')
    (written / "000001.tar").write_bytes((written / "000001.tar").read_bytes()[:-1500])
    (written / "000002.tar.idx").unlink()
    offsets = (written / "000000.tar.idx").read_bytes()
    (written / "000000.tar.idx").write_bytes(
        bytes([offsets[0]]) + offsets[1:8] + (512).to_bytes(8, "little") + offsets[16:]
    )
    pack(written / "stray.tar", [("s.json", text_file())])
    expected = [
        ("000000.tar", "", "not what index.json has the sha256 of"),
        ("000000.tar", "", "its samples are not where its offsets say"),
        ("000001.tar", "", "bytes, not "),
        ("000001.tar", "", "unexpected end of data"),
        ("000001.tar", "k7", "ends within a file of"),
        ("000002.tar", "", "000002.tar.idx: missing"),
        ("000003.tar", "k1", "the key of an earlier item"),
        ("000004.tar", "", "missing; fetch the shard again"),
        ("000005.tar", "b", "Invalid JSON"),
        ("000005.tar", "c", "images numbered [1]"),
        ("000005.tar", "d", "no d.json"),
        *(("000006.tar", "p", f"picture {number}: ") for number in range(1, 6)),
        ("stray.tar", "", "not in index.json"),
    ]
    runs = [cli("lint", written, "--json", "--workers", workers) for workers in (0, 2)]
    assert runs[0].stdout == runs[1].stdout and [run.returncode for run in runs] == [1, 1]
    found = [json.loads(line) for line in runs[0].stdout.splitlines()]
    assert sorted((one["shard"], one["key"]) for one in found) == sorted(one[:2] for one in expected)
    for shard, key, words in expected:
        assert any(one["shard"] == shard and one["key"] == key and words in one["reason"] for one in found), words
    assert runs[0].stderr.endswith(f"{len(expected)} faults\n")
    plain = cli("lint", written).stdout.splitlines()
    assert plain[:-1] == [": ".join(filter(None, one.values())) for one in found]


@pytest.mark.parametrize("content", [None, "[]", "{", '[{"shard": "../x"}]'])
def test_without_an_index_the_shards_are_looked_at_all_the_same(written: Path, content: str | None) -> None:
    (written / "index.json").unlink()
    if content is not None:
        (written / "index.json").write_text(content)
    pack(written / "000003.tar", [("a.json", b"{")])
    first, second = told(written)
    assert first.startswith("index.json: ") and second.startswith("000003.tar: a: Invalid JSON")


@pytest.mark.parametrize("content", [b"", b"noise" * 999, bytes(10240)])
def test_a_shard_that_is_no_tar(written: Path, content: bytes) -> None:
    (written / "000001.tar").write_bytes(content)
    lines = told(written)
    assert any("no sample" in line for line in lines) and all(line.startswith("000001.tar: ") for line in lines)


def test_damaged_header(written: Path) -> None:
    """The samples behind it are checked too."""
    content = bytearray((written / "000000.tar").read_bytes())
    content[3] ^= 1
    (written / "000000.tar").write_bytes(content)
    change(written / "000000.tar", b'"task":"t"', b'"task":"t}')
    lines = told(written)
    assert any("a damaged header at byte 0" in line for line in lines)
    assert any("000000.tar: k0: " in line for line in lines) and not any("k1: " in line for line in lines)


def test_token_budget(tiny_shards: Path, tiny_backbone: Path, processor: Processor) -> None:
    """Counted from the pictures' sizes as the processor itself counts."""
    lengths = {}
    for sample in shards.read_set(tiny_shards):
        text, images = tokens(sample, str(tiny_backbone), 256 * 256)
        encoded = processor.encode(sample)
        lengths[sample.key] = text + images
        assert text + images == len(encoded.prompt) + len(encoded.answer)
        assert images == int((encoded.prompt == processor.image_token).sum())
    limit = sorted(lengths.values())[-10]
    arguments = ["--model", tiny_backbone, "--tokens", limit, "--max-pixels", 256 * 256]
    done = cli("lint", tiny_shards, "--json", *arguments)
    found = {json.loads(line)["key"]: json.loads(line)["reason"] for line in done.stdout.splitlines()}
    assert done.returncode == 1 and set(found) == {key for key, length in lengths.items() if length > limit}
    assert all(
        f"{lengths[key]:,} tokens of prompt and answer, more than {limit:,}" in text for key, text in found.items()
    )


@pytest.mark.parametrize("arguments", [["--tokens", 5], ["--model", "nowhere"]])
def test_budgets_that_are_none(written: Path, arguments: list[object]) -> None:
    assert "check --model" in refusal(lambda: list(lint(str(written), SOURCE, budget=Budget("nowhere", 5))))
    done = cli("lint", written, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
