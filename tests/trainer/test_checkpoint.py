"""Checkpoints on disk: what counts as one, what is wrong with one, which are kept, and the random states in them."""

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import MARK, PART


def write(run: Path, step: int, ranks: int = 2, marked: bool = True) -> Path:
    """A checkpoint with a file of each rank."""
    part = checkpoint.folder_of(run, step).with_suffix(PART)
    part.mkdir(parents=True)
    for rank in range(ranks):
        checkpoint.write_files(part, {f"state_{rank}.pt": {"values": torch.arange(1000.0)}}, rank, {"at": step + rank})
    return checkpoint.mark(part, {"step": step, "ranks": ranks}) if marked else part


def test_only_what_is_marked_and_renamed_counts(tmp_path: Path):
    for step in (9, 10, 2):
        write(tmp_path, step)
    write(tmp_path, 11, marked=False)
    (write(tmp_path, 12, marked=False) / MARK).write_text("{}")  # killed before the folder was renamed
    (write(tmp_path, 13) / MARK).unlink()
    assert [checkpoint.step_of(one) for one in checkpoint.complete(tmp_path)] == [10, 9, 2]
    newest = checkpoint.complete(tmp_path)[0]
    assert checkpoint.facts_of(newest) == {"step": 10, "ranks": 2}
    assert checkpoint.of_rank(newest, 1)["stream"] == {"at": 11}


def test_a_step_is_written_again_over_one_that_cannot_be_used(tmp_path: Path):
    (write(tmp_path, 4) / "state_1.pt").unlink()
    assert checkpoint.fault(write(tmp_path, 4), 0, 1) is None


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("damage", ["cut", "bit", "directory", "end", "stream", "missing", "no list", "torn mark"])
def test_damage_is_found_by_one_of_the_ranks(tmp_path: Path, damage: str, ranks: int):
    folder = write(tmp_path, 4)
    assert not any(checkpoint.fault(folder, rank, ranks) for rank in range(ranks))
    path = folder / {"no list": "rank_1.json", "stream": "rank_1.json", "torn mark": MARK}.get(damage, "state_1.pt")
    content = bytearray(path.read_bytes())
    places = {"bit": len(content) // 2, "directory": content.rfind(b"PK\1\2") + 8, "end": len(content) - 22}
    if damage in places:
        content[places[damage]] ^= 1
        path.write_bytes(content)
        if damage == "bit":
            assert torch.load(path)["values"].shape == (1000,), "torch.load says nothing"
    elif damage == "stream":
        path.write_text(path.read_text().replace('"at": 5', '"at": 6'))
    elif damage in ("cut", "torn mark"):
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    faults = [checkpoint.fault(folder, rank, ranks) for rank in range(ranks)]
    assert any(one is not None and str(folder) in one for one in faults)


@pytest.mark.parametrize(("last", "every", "gone"), [(2, None, [4, 8, 12]), (1, 8, [4, 12]), (9, None, []), (1, 4, [])])
def test_which_are_kept(tmp_path: Path, last: int, every: int | None, gone: list[int]):
    for step in (4, 8, 12, 16, 20):
        write(tmp_path, step)
    assert sorted(map(checkpoint.step_of, checkpoint.superfluous(tmp_path, last, every))) == gone


def test_what_no_run_goes_on_from_is_cleared_away(tmp_path: Path):
    """Newer ones are damaged, or the run would go on from them; they are put aside, and no longer counted."""
    for step in (4, 8, 12):
        write(tmp_path, step)
    write(tmp_path, 16, marked=False)
    (write(tmp_path, 2) / MARK).unlink()  # killed while it was deleted
    checkpoint.clear(tmp_path, checkpoint.folder_of(tmp_path, 8))
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["step_12.damaged", "step_4", "step_8"]
    assert [checkpoint.step_of(one) for one in checkpoint.complete(tmp_path)] == [8, 4]


def test_random_states_come_back():
    def draws() -> list[Any]:
        return [random.random(), float(numpy.random.rand()), float(torch.rand(()))]

    state = checkpoint.random_state()
    first = draws()
    assert draws() != first
    checkpoint.set_random_state(state)
    assert draws() == first
