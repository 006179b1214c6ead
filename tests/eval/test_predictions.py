"""predictions.jsonl: nothing of it is ever lost, by kills, by other programs or by a full disk."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from eval.predictions import Prediction, Predictions, pack, unpack
from tests.refusal import refusal

ODD = 'half\u2028way\u2029 to\nthe\r\nend\x85 \x0b\x0c\x1c\x00 of 答案 \U0001f9e9 \\ "{}" \t'
WHOLE = (
    Prediction(id="a", key="one", replies=("B",), finish=("end",)),
    Prediction(id="b", key="two", replies=(ODD, ""), finish=("stop", "length")),
    Prediction(id="c", key="drei/ü\u2028", scores=(-0.1, -1e-300, -123.456789012345678)),
    Prediction(id="d", key="four", failed="no\u2028picture"),
)


def kept(path: Path) -> dict[str, Prediction]:
    """What a program finds that opens the file now."""
    predictions = Predictions(path)
    predictions.close()
    return predictions.known


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with four predictions, in folders that were not there."""
    path = tmp_path / "not" / "there" / "predictions.jsonl"
    predictions = Predictions(path)
    predictions.add(WHOLE[:1])
    predictions.add(WHOLE[1:])
    predictions.close()
    return path


def test_what_was_said_comes_back_to_the_letter(path: Path) -> None:
    assert list(kept(path).values()) == list(WHOLE)
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(WHOLE) + 1 and lines[-1] == b""
    assert json.loads(lines[0]) == {"id": "a", "key": "one", "replies": ["B"], "finish": ["end"]}, "no empty fields"


def test_predictions_are_on_the_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    predictions = Predictions(path)
    for number, one in enumerate(WHOLE, 1):
        predictions.add([one])
        assert path.read_bytes().count(b"\n") == number
    predictions.close()


def test_an_id_is_written_once(path: Path) -> None:
    before = path.read_bytes()
    predictions = Predictions(path)
    predictions.add([WHOLE[0].model_copy(update={"replies": ("C",)}), WHOLE[3]])
    predictions.close()
    assert path.read_bytes() == before and kept(path)["a"] == WHOLE[0]
    twice = Prediction(id="e", key="five", replies=("A",), finish=("end",))
    predictions = Predictions(path)
    predictions.add([twice, twice])
    predictions.add([twice])
    predictions.close()
    assert path.read_bytes().count(b'"e"') == 1


def test_a_torn_line_is_cut_off_wherever_it_tore(path: Path) -> None:
    """At every byte of the last two lines; what comes next stands on a line of its own."""
    content = path.read_bytes()
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    following = Prediction(id="z", key="next", replies=("A",), finish=("end",))
    for size in range(ends[1] + 1, len(content)):
        path.write_bytes(content[:size])
        whole = sum(end < size for end in ends)
        predictions = Predictions(path)
        assert list(predictions.known.values()) == list(WHOLE[:whole])
        predictions.add([following])
        predictions.close()
        assert list(kept(path).values()) == [*WHOLE[:whole], following]
        assert path.read_bytes().startswith(content[: ends[whole - 1] + 1])


def hold(path: Path, said: "multiprocessing.connection.Connection") -> None:  # type: ignore[name-defined]
    predictions = Predictions(path)
    said.send("held")
    said.recv()
    predictions.add([Prediction(id="y", key="other")])
    os._exit(0)  # as a kill does: nothing is closed


def test_one_program_at_a_time(path: Path) -> None:
    """Another is refused, in this process or from another one; it may write once the first is gone, however it went."""
    first = Predictions(path)
    text = refusal(lambda: Predictions(path))
    assert text == f"{path}: another evaluation writes to it; wait for it, or name another --out"
    first.close()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold, args=(path, theirs))
    other.start()
    assert ours.recv() == "held"
    assert refusal(lambda: Predictions(path)) == text
    ours.send("go")
    other.join()
    assert list(kept(path)) == ["a", "b", "c", "d", "y"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}", "Field required"),
        (b"not JSON", "Invalid JSON: expected ident at line 1 column 2"),
        (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"id": "x", "key": "k", "reply": "B"}', "Extra inputs are not permitted"),
        (b'{"id": "x", "key": "\xff"}', "Invalid JSON: invalid unicode code point at line 1 column 21"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(path: Path, line: bytes, why: str) -> None:
    """And nothing is changed."""
    lines = path.read_bytes().splitlines(keepends=True)
    broken = b"".join([*lines[:2], line + b"\n", *lines[2:]])
    path.write_bytes(broken)
    assert refusal(lambda: Predictions(path)) == f"{path}: line 3 is no prediction ({why}); take the line out"
    assert path.read_bytes() == broken
    path.write_bytes(b"".join(lines))
    assert len(kept(path)) == len(WHOLE), "the lock is not held on"


def test_failures_are_forgotten_and_nothing_else(path: Path) -> None:
    predictions = Predictions(path)
    predictions.forget_failures()
    assert list(predictions.known.values()) == list(WHOLE[:3])
    assert refusal(lambda: Predictions(path)).startswith(f"{path}: another evaluation writes to it")
    again = Prediction(id="d", key="four", replies=("A",), finish=("end",))
    predictions.add([again])
    before = path.read_bytes()
    predictions.forget_failures()
    predictions.close()
    assert path.read_bytes() == before
    assert list(kept(path).values()) == [*WHOLE[:3], again]
    assert os.listdir(path.parent) == [path.name]


def in_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "predictions.jsonl"


def a_folder(folder: Path) -> Path:
    (folder / "predictions.jsonl").mkdir()
    return folder / "predictions.jsonl"


def no_right(folder: Path) -> Path:
    return Path("/proc/predictions.jsonl")  # nobody can make files there, not even root


@pytest.mark.parametrize("place", [in_a_file, a_folder, no_right], ids=lambda place: place.__name__)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    path = place(tmp_path)
    text = refusal(lambda: Predictions(path))
    assert text.startswith(f"{path}: cannot be written (") and text.endswith("); name another --out")


FULL = """
import resource, sys
from pathlib import Path
from data.sample import DataError
from eval.predictions import Prediction, Predictions

path = Path(sys.argv[1])
predictions = Predictions(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    if sys.argv[3] == "add":
        predictions.add(Prediction(id=str(n), key=str(n), replies=("B" * 50,), finish=("end",)) for n in range(100))
    else:
        predictions.forget_failures()
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("action", ["add", "forget"])
def test_a_full_disk_takes_nothing(path: Path, action: str) -> None:
    """Files cannot grow beyond a size that falls inside a line: what was there stays, whole."""
    before = path.read_bytes()
    limit = len(before) + 333 if action == "add" else 100
    command = [sys.executable, "-c", FULL, str(path), str(limit), action]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f"{path}: cannot be written (File too large); make room and start again\n"
    assert (done.returncode, done.stderr) == (0, ""), "not even of the file that is closed at the end"
    assert path.read_bytes().startswith(before)
    assert os.listdir(path.parent) == [path.name]
    found = list(kept(path).values())
    assert found[: len(WHOLE)] == list(WHOLE)
    assert len(found) == len(WHOLE) + (3 if action == "add" else 0), "lines that were whole count"


def test_latents_as_text(tmp_path: Path) -> None:
    """To the last bit, also through the file."""
    z = torch.tensor([[1 / 3, -0.0, 1e-45, 3.4e38], [-1e-7, 2.0, 0.1, -1 / 7]])
    assert torch.equal(unpack(pack(z), 2), z) and unpack(pack(z), 2).shape == (2, 4)
    assert pack(z) != pack(torch.nextafter(z, torch.tensor(torch.inf)))
    with closing(Predictions(tmp_path / "p.jsonl")) as kept:
        kept.add([Prediction(id="a", key="one", prior=pack(z))])
    with closing(Predictions(tmp_path / "p.jsonl")) as kept:
        assert torch.equal(unpack(kept.known["a"].prior or "", 2), z)
