"""Tars that others made: every layout that tar has, and every damage, indexed, read or named."""

import io
import itertools
import shutil
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import shards, tar
from data.sample import DataError
from data.shards.foreign import index
from data.shards.index import read_offsets
from data.shards.lint import lint
from data.shards.preview import preview
from data.shards.stats import collect
from tests.data.test_shards import GOOD, SOURCE, Members, cli, indexed, load, pack, picture, text_file

PNG = picture()
LONG = "long-" + "k" * 150


def sample(key: str) -> Members:
    return [(f"{key}.0.png", PNG), (f"{key}.json", text_file())]


def put(tar: tarfile.TarFile, members: Members, **headers: str) -> None:
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = len(content), headers
        tar.addfile(info, io.BytesIO(content))


def faults(folder: Path) -> list[str]:
    return [str(fault) for fault in index(str(folder), SOURCE, folder)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(tmp_path: Path, form: int) -> None:
    """Long names, folders in names, entries of folders, names beyond ASCII, times in pax headers."""
    keys = [
        "plain",
        "folder/below/key",
        "größe",
        "folder/" + "k" * 90,
        *([LONG] if form != tarfile.USTAR_FORMAT else []),
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as file:
        for number, key in enumerate(keys):
            folder = tarfile.TarInfo(f"folder{number}/")
            folder.type = tarfile.DIRTYPE
            file.addfile(folder)
            put(file, sample(key), **({"mtime": "1.5"} if form == tarfile.PAX_FORMAT else {}))
    assert faults(tmp_path) == []
    found = list(shards.read_set(tmp_path))
    assert [one.key for one in found] == keys and all(one.images == (PNG,) for one in found)
    assert cli("lint", tmp_path).returncode == 0


def test_a_tar_by_the_command(tmp_path: Path) -> None:
    """With ./ before names and a folder first, as `tar cf x.tar .` writes them."""
    for name, content in [*sample("one"), *sample("two")]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "set").mkdir()
    for form in ("gnu", "pax", "ustar", "v7"):
        target = tmp_path / "set" / f"{form}.tar"
        subprocess.run(
            ["tar", "--sort=name", f"--format={form}", "-cf", target, "-C", tmp_path / "in", "."], check=True
        )
    assert faults(tmp_path / "set") == []
    assert [one.key for one in shards.read_set(tmp_path / "set")] == ["./one", "./two"] * 4


def test_a_header_for_all_that_follow(tmp_path: Path) -> None:
    """As git archive writes it at the start; here once more in the middle."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 600}) as file:
        put(file, sample("one"))
        file.fileobj.write(tarfile.TarInfo.create_pax_global_header({"comment": "again"}))  # type: ignore[union-attr]
        file.offset = file.fileobj.tell()  # type: ignore[union-attr]
        put(file, sample("two"))
    assert faults(tmp_path) == []
    assert [one.key for one in shards.read_set(tmp_path)] == ["one", "two"]


def test_files_of_two_samples_in_turn(tmp_path: Path) -> None:
    one, two = sample("one"), sample("two")
    pack(tmp_path / "a.tar", [one[0], two[0], one[1], two[1], *sample("three")])
    told = faults(tmp_path)
    assert [line.split(" again")[0] for line in told] == ["a.tar: one: comes", "a.tar: two: comes"]
    (entry,) = load(tmp_path)
    assert entry.samples == 5


def test_the_command(tmp_path: Path) -> None:
    """Damage and empty tars are named, the rest is indexed; exit code 1 when anything was wrong."""
    pack(tmp_path / "b.tar", sample("one"))
    pack(tmp_path / "a.tar", [*sample("two"), *sample("three")])
    (tmp_path / "notes.txt").write_text("no tar")
    good = cli("index", tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{tmp_path}: 3 samples in 2 shards, 0 faults\n", "")
    assert [entry.shard for entry in load(tmp_path)] == ["a.tar", "b.tar"]
    pack(tmp_path / "empty.tar", [])
    (tmp_path / "noise.tar").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "no bytes.tar").write_bytes(b"")
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[10] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    bad = cli("index", tmp_path, "--workers", 2)
    assert bad.returncode == 1 and bad.stderr == ""
    lines = bad.stdout.splitlines()
    assert lines[-1] == f"{tmp_path}: 3 samples in 2 shards, {len(lines) - 1} faults"
    for words in ("a.tar: a damaged header", "empty.tar: no sample", "noise.tar: no sample", "no bytes.tar: left out"):
        assert any(line.startswith(words) for line in lines), words
    lint = cli("lint", tmp_path)
    assert lint.returncode == 1 and "a.tar: two: a damaged header" in lint.stdout  # and no sample without its picture


def test_only_new_tars_are_looked_at(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", sample("one"))
    list(index(str(tmp_path), SOURCE, tmp_path))
    before = load(tmp_path)
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content.replace(b"How many", b"How much"))
    pack(tmp_path / "b.tar", sample("two"))
    list(index(str(tmp_path), SOURCE, tmp_path, only_new=True))
    assert load(tmp_path)[0] == before[0] and len(load(tmp_path)) == 2
    list(index(str(tmp_path), SOURCE, tmp_path))
    assert load(tmp_path)[0].sha256 != before[0].sha256


def test_an_index_elsewhere(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", sample("one"))
    (tmp_path / "a.tar").chmod(0o400)
    assert cli("index", tmp_path, "--out", tmp_path / "out").returncode == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tar.idx", "index.json"]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.tar"]
    (remote,) = cli("index", "https://example.invalid/set").stderr.splitlines()
    assert remote.startswith("error: https://example.invalid/set: cannot be written to") and "--out" in remote


def test_a_remote_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexed from afar, and with the index beside the tars also checked and shown, the same as on the disk."""
    monkeypatch.setattr("data.shards.foreign.STEP", 1000)
    pack(tmp_path / "a.tar", [*sample("one"), *sample("two"), ("three.json", b"{")])
    files, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    files.pipe(f"/{tmp_path.name}/a.tar", (tmp_path / "a.tar").read_bytes())
    assert list(index(url, SOURCE, tmp_path / "out")) == []
    for path in (tmp_path / "out").iterdir():
        files.pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
    indexed(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == (tmp_path / "out" / "index.json").read_bytes()
    here, there = (list(lint(str(folder), SOURCE)) for folder in (tmp_path, url))
    assert here == there and [fault.key for fault in there[0].faults] == ["three"]
    assert len(list(preview(url, tmp_path / "x.html", SOURCE, 9, None))) == 1
    assert collect(url, SOURCE, 9, None, None)[0].samples == 2


@pytest.mark.parametrize("what", ["no tar", "unfinished"])
def test_folders_that_are_not_indexed(tmp_path: Path, what: str) -> None:
    if what == "unfinished":
        pack(tmp_path / "a.tar", sample("one"))
        (tmp_path / "index.part").write_text("{}\n")
    done = cli("index", tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert ("not finished" if what == "unfinished" else "no tar file") in done.stderr


@pytest.mark.parametrize(
    "name", ["<script>.json", "a\x1b[31m.json", "../../up.json", "/root.json", ".hidden", "a'b.json"]
)
def test_names_that_are_no_keys(tmp_path: Path, name: str) -> None:
    """Named as they are, harmlessly; the samples about them are read."""
    pack(tmp_path / "a.tar", [*sample("one"), (name, b"{}"), *sample("two")])
    told = faults(tmp_path)
    assert any("rename it" in line for line in told) and all(line.isprintable() for line in told)
    lint = cli("lint", tmp_path)
    assert "\x1b" not in lint.stdout and lint.returncode == 1
    found = []
    for shard in load(tmp_path):
        offsets = read_offsets(str(tmp_path), shard, SOURCE).tolist()
        content = (tmp_path / "a.tar").read_bytes()
        for start, end in itertools.pairwise(offsets):
            try:
                found.append(shards.parse(content[start:end], "").key)
            except DataError:
                continue
    assert found == ["one", "two"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar with plain, long and pax names and a folder."""
    path = tmp_path_factory.mktemp("whole") / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        put(file, [*sample("one"), *sample(LONG)])
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as file:
        put(file, sample("two"), comment="x")
        folder = tarfile.TarInfo("folder/")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        put(file, sample("folder/three"))
    return path.read_bytes()


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_damaged_the_rest_is_found(whole: bytes, data: st.DataObject) -> None:
    """A few wrong bytes or an early end: no other error than a fault, no gap between samples, nothing made up."""
    content = bytearray(whole)
    wrong = data.draw(st.integers(1, 4))
    for _ in range(wrong):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    found = list(tar.scan(io.BytesIO(content)))
    extents = [one for one in found if isinstance(one, tar.Extent)]
    assert all(one.start < one.end for one in extents)
    assert all(one.end == two.start for one, two in itertools.pairwise(extents))
    for one in extents:
        try:
            read = shards.parse(bytes(content[one.start : one.end]), "a.tar")
        except DataError as error:
            assert str(error).startswith("a.tar: ") and str(error).isprintable()
        else:
            # The long one's names are in headers of their own, whose content no checksum covers: when one of them is
            # changed, its text and its picture become two samples, of which the text cannot be told from a whole one.
            assert len(read.images) == 1 or sum(a != b for a, b in zip(read.key, LONG, strict=True)) <= wrong


def test_a_damaged_header_behind_a_long_name_loses_no_picture_silently(tmp_path: Path) -> None:
    """tarfile stops there without a word, and what it had read by then looked like a sample."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as file:
        put(file, [(f"{LONG}.json", text_file()), (f"{LONG}.0.png", PNG), (f"{LONG}.1.png", PNG)])
    with tarfile.open(tmp_path / "a.tar") as file:
        last = file.getmembers()[-1]
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[last.offset + 5] ^= 1
    with pytest.raises(DataError, match="damaged header"):
        shards.parse(bytes(content), "a.tar")


def test_a_set_from_another_one(tmp_path: Path) -> None:
    """Written anew from tars of another origin, damaged samples left out."""
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "a.tar", [*sample("one"), ("bad.json", b"{"), *sample("two")])
    indexed(tmp_path / "in")
    refused = cli("write", tmp_path / "in", "--out", tmp_path / "no")
    assert refused.returncode == 2 and f"{tmp_path}/in/a.tar: bad: " in refused.stderr
    shutil.rmtree(tmp_path / "no")
    done = cli("write", tmp_path / "in", "--out", tmp_path / "out", "--left-out", 0.5)
    assert done.returncode == 0 and [s.key for s in shards.read_set(tmp_path / "out")] == ["one", "two"]
    assert next(shards.read_set(tmp_path / "out")).text.question == GOOD["question"]


@pytest.mark.parametrize("which", range(6))
def test_a_sample_never_loses_a_picture_silently(tmp_path: Path, which: int) -> None:
    """Whichever header is damaged: its sample, and at most the one beside it, is refused; no other one changes."""
    path = pack(tmp_path / "a.tar", [*sample("one"), *sample("two"), *sample("three")])
    with tarfile.open(path) as file:
        start = file.getmembers()[which].offset
    content = bytearray(path.read_bytes())
    content[start + 3] ^= 1
    path.write_bytes(content)
    assert f"a damaged header at byte {start:,}" in faults(tmp_path)[0]
    offsets = read_offsets(str(tmp_path), load(tmp_path)[0], SOURCE).tolist()
    whole = []
    for a, b in itertools.pairwise(offsets):
        try:
            whole.append(shards.parse(bytes(content[a:b]), ""))
        except DataError:
            continue
    assert all(one.images == (PNG,) for one in whole) and 1 <= len(whole) <= 2
    assert ("one", "two", "three")[which // 2] not in [one.key for one in whole]
