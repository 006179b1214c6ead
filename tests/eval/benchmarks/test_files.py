"""Saved data sets that cannot be read: each is named, with what to do."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import blink, files
from tests.eval.benchmarks.layouts import OF_BLINK, blink_records, save
from tests.refusal import refusal


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "saved", blink_records({"Jigsaw": 3}), OF_BLINK)


def test_a_selection_kept_apart(saved: Path) -> None:
    """An old `datasets` wrote a shuffled or filtered set as all its rows and a list of those meant."""
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_indices_data_files": None}))
    assert len(blink.read(saved).items) == 3
    (saved / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    text = refusal(lambda: blink.read(saved))
    assert text.startswith(f"{saved}/state.json: ") and "call flatten_indices() on the data set" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_data_files": [{}]}', '{"_data_files": 3}', '"x"'])
def test_a_state_that_is_none(saved: Path, content: str) -> None:
    (saved / "state.json").write_text(content)
    assert f"{saved}/state.json: not of save_to_disk" in refusal(lambda: blink.read(saved))


@pytest.mark.parametrize("kept", [0, 9, 1000, None])
def test_a_stream_that_is_cut_or_missing(saved: Path, kept: int | None) -> None:
    file = saved / "data-00001-of-00002.arrow"
    content = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(content[:kept])
    text = refusal(lambda: blink.read(saved))
    assert text.startswith(f"{file}: not a whole Arrow stream") and "save the data set again" in text


def test_a_parquet_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "not a whole parquet file" in refusal(lambda: blink.read(tmp_path))


def test_md5(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.md5(tmp_path / "x") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
