"""The policy for samples that cannot be used: exact limits, a file that names them, no error hidden."""

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from data.bad import FEW, BadConfig, Kind, LeftOut, Quarantine, read
from data.pack import Packs
from data.pipeline import packs_of
from data.processor import Encoded
from data.sample import DataError, Sample
from data.shards.foreign import index
from data.source import Source
from data.stream import DataConfig
from tests.data.damage import END
from tests.data.damage import sample as members
from tests.refusal import refusal

LAX = BadConfig(share=1, in_a_row=10**6)


def bad(quarantine: Quarantine, sample: int, kind: Kind = "bad", epoch: int = 0) -> None:
    reason = f"a.tar: k{sample}: no picture; mend it"
    quarantine.leave_out(LeftOut(kind, "a.tar", sample, f"k{sample}", epoch, reason))


def refused(quarantine: Quarantine, sample: int, kind: Kind = "bad") -> str:
    text = refusal(lambda: bad(quarantine, sample, kind))
    assert text.isprintable()
    return text


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("kind", ["bad", "too large"])
def test_so_many_in_a_row_end_the_run(tmp_path: Path, kind: Kind, most: int) -> None:
    limits = {"in_a_row" if kind == "bad" else "too_large": most}
    path = tmp_path / "bad.jsonl"
    quarantine = Quarantine(BadConfig(share=1, **limits), path)
    for number in range(most - 1):
        bad(quarantine, number, kind)
    quarantine.good()  # which begins a new row
    for number in range(most, 2 * most - 1):
        bad(quarantine, number, kind)
    text = refused(quarantine, 99, kind)
    if kind == "bad":
        head = f"{most} bad samples in a row (data.bad.in_a_row {most}), the last: "
    else:
        head = f"none of the last {most} samples fits (data.bad.too_large {most}); "
    assert text == f"{head}a.tar: k99: no picture; mend it; all are named in {path}"
    assert len(read(path)) == 2 * most - 1  # the last one too


def test_a_row_of_one_kind_is_not_ended_by_the_other() -> None:
    quarantine = Quarantine(BadConfig(share=1, in_a_row=3, too_large=3), None)
    for number, kind in enumerate(("bad", "too large", "bad", "too large")):
        bad(quarantine, number, kind)
    assert refused(quarantine, 9).endswith("a.tar: k9: no picture; mend it")  # no file to point to


def test_the_share_is_judged_exactly_and_not_of_few() -> None:
    """1 % of up to 1000 draws are 10; from then on it is of all."""
    quarantine = Quarantine(BadConfig(share=0.01), None)
    for number in range(10):
        bad(quarantine, number)
    assert "11 bad samples of 11 (data.bad.share 0.01)" in refused(quarantine, 10)
    quarantine.restore({"drawn": FEW - 10, "bad": 10, "dropped": 0})
    assert "11 bad samples of 991 (" in refused(quarantine, 10)
    quarantine.restore({"drawn": 2999, "bad": 29, "dropped": 0})
    bad(quarantine, 11)
    assert "31 bad samples of 3001 (" in refused(quarantine, 12)
    quarantine.restore({"drawn": 3099, "bad": 30, "dropped": 0})
    bad(quarantine, 13)  # 31 of 3100


@pytest.mark.parametrize(("share", "borne"), [(0.0, 0), (1.0, 2000)])
def test_none_or_all_may_be_bad(share: float, borne: int) -> None:
    quarantine = Quarantine(BadConfig(share=share, in_a_row=10**6), None)
    for number in range(borne):
        bad(quarantine, number)
    if not borne:
        assert "1 bad samples of 1 (" in refused(quarantine, 0)


def test_samples_that_are_too_large_are_not_bad() -> None:
    quarantine = Quarantine(BadConfig(share=0, in_a_row=1), None)
    for number in range(999):
        bad(quarantine, number, "too large")
    assert quarantine.state() == {"drawn": 999, "bad": 0, "dropped": 999}
    assert refused(quarantine, 999, "too large").startswith("none of the last 1000 samples fits")


def test_counts_go_on_after_a_stop() -> None:
    quarantine = Quarantine(LAX, None)
    quarantine.good()
    bad(quarantine, 1)
    bad(quarantine, 2, "too large")
    again = Quarantine(LAX, None)
    again.restore(json.loads(json.dumps(quarantine.state())))
    again.good()
    assert again.state() == {"drawn": 4, "bad": 1, "dropped": 1}


def test_nothing_is_named_twice(tmp_path: Path) -> None:
    """A run that goes on from an earlier point meets the same samples again; another epoch is another line."""
    path = tmp_path / "new" / "bad.jsonl"
    for _ in range(3):
        quarantine = Quarantine(LAX, path)
        assert quarantine.path == path
        for number in (1, 2, 1):
            bad(quarantine, number)
        bad(quarantine, 1, epoch=1)
        assert quarantine.bad == 4
    assert [(one["sample"], one["epoch"]) for one in read(path)] == [(1, 0), (2, 0), (1, 1)]
    assert read(path)[0] == {
        "kind": "bad",
        "shard": "a.tar",
        "sample": 1,
        "key": "k1",
        "epoch": 0,
        "reason": "a.tar: k1: no picture; mend it",
    }


def test_no_file_where_nothing_is_bad(tmp_path: Path) -> None:
    quarantine = Quarantine(LAX, tmp_path / "new" / "bad.jsonl")
    quarantine.good()
    assert list(tmp_path.iterdir()) == [] and read(tmp_path / "new" / "bad.jsonl") == []


@pytest.mark.parametrize("left", [0, 1, 9, 40, 70])
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path, left: int) -> None:
    path = tmp_path / "bad.jsonl"
    first = Quarantine(LAX, path)
    bad(first, 1)
    bad(first, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:left])
    again = Quarantine(LAX, path)
    for number in (1, 2, 3):
        bad(again, number)
    assert [one["sample"] for one in read(path)] == [1, 2, 3]
    assert path.read_bytes().count(b"\n") == 3 + (left > 0)


def test_only_the_line_end_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    bad(Quarantine(LAX, path), 1)
    path.write_bytes(path.read_bytes()[:-1])
    again = Quarantine(LAX, path)
    bad(again, 1)
    bad(again, 2)
    assert [one["sample"] for one in read(path)] == [1, 2]


@pytest.mark.parametrize(
    "noise", [b"\xff\xfe", bytes(99), b"3", b"[1]", b"null", b"{}", b'"a"', b'{"shard": "a.tar"}', b"{"]
)
def test_a_damaged_file_is_gone_on_with(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    bad(Quarantine(LAX, path), 1)
    path.write_bytes(path.read_bytes() + noise + b"\n")
    again = Quarantine(LAX, path)
    for number in (1, 2):
        bad(again, number)
    assert [one["sample"] for one in read(path)] == [1, 2]


def test_names_of_any_language_and_of_many_lines_are_one_line(tmp_path: Path) -> None:
    quarantine = Quarantine(LAX, tmp_path / "bad.jsonl")
    quarantine.leave_out(LeftOut("bad", "größe\u2028.tar", 1, None, 0, "a\nb \ud800 \x1b"))
    (line,) = (tmp_path / "bad.jsonl").read_bytes().splitlines()
    assert line.isascii() and json.loads(line)["key"] is None
    assert read(tmp_path / "bad.jsonl")[0]["shard"] == "größe\u2028.tar"


@pytest.mark.parametrize("changed", [{"in_a_row": 0}, {"share": 1.1}, {"share": -0.1}, {"too_large": 0}, {"more": 1}])
def test_limits_that_make_no_sense(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        BadConfig.model_validate(changed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of eight samples, `k5` without its text."""
    picture_alone = members("k5")[: -2 * 512]
    parts = [picture_alone if number == 5 else members(f"k{number}") for number in range(8)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + END)
    assert list(index(str(tmp_path), Source(), tmp_path)) == []
    return tmp_path


def encode(sample: Sample, fewer: int, fails: type[Exception] | None = None) -> Encoded:
    if fails and sample.key == "k3":
        raise fails("an error in the program")
    nothing = torch.zeros(0)
    return Encoded(sample, nothing, nothing, nothing, nothing)


def one_token(item: Encoded) -> int:
    return 1


def packs(folder: Path, fails: type[Exception] | None, workers: int, limits: BadConfig = LAX) -> Packs:
    config = DataConfig(train=folder, lanes=1, workers=workers, window=1, bad=limits)
    return packs_of(config, partial(encode, fails=fails), one_token, 1, seed=0, quarantine=folder / "bad")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fails", [TypeError, ValueError, KeyError, MemoryError, DataError])
def test_errors_of_the_program_are_never_taken_for_bad_data(folder: Path, fails: type[Exception], workers: int) -> None:
    drawn = packs(folder, fails, workers)
    if fails is DataError:
        found = [item.sample.key for _ in range(12) for item in next(drawn)]
        assert {"k3", "k5"}.isdisjoint(found) and drawn.quarantine.bad >= 2
        drawn.loader.close()
        return
    with pytest.raises(fails, match="an error in the program") as caught:
        for _ in range(12):
            next(drawn)
    if workers:
        assert f"at {folder}/a.tar: k3" in str(caught.value)
    assert "k3" not in [one["key"] for one in read(folder / "bad" / "rank_0.jsonl")]
    drawn.loader.close()


def test_a_run_that_ends_says_where_to_look(folder: Path) -> None:
    drawn = packs(folder, DataError, 0, BadConfig(share=1, in_a_row=1))
    text = refusal(lambda: list(itertools.islice(drawn, 12)))
    path = folder / "bad" / "rank_0.jsonl"
    (one,) = read(path)
    assert text.startswith("1 bad samples in a row (data.bad.in_a_row 1), the last: ")
    assert one["reason"] in text and text.endswith(f"all are named in {path}")


def test_a_resumed_run_names_nothing_twice(folder: Path) -> None:
    """And counts what it counted before."""
    first = packs(folder, None, 0)
    states = [first.state()]
    for _ in range(20):
        next(first)
        states.append(first.state())
    named = (folder / "bad" / "rank_0.jsonl").read_bytes()
    again = packs(folder, None, 0)
    again.restore([json.loads(json.dumps(states[4]))], 0, 1)
    for _ in range(16):
        next(again)
    assert again.state() == states[-1] and again.quarantine.state() == first.quarantine.state()
    assert (folder / "bad" / "rank_0.jsonl").read_bytes() == named
