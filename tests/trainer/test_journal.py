"""The journal on the disk: whole, in order, once, and without credentials; a bad disk stops nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.event_queue import EventQueue
from trainer.journal import Event, Journal, State
from trainer.redact import redact
from trainer.tracking import Tracker, TrackingConfig

FIRST: dict[str, Any] = {"key": "k", "name": "one", "experiment": "e", "run_id": None}
ROOT = Path(__file__).parents[2]


def written(folder: Path) -> list[Event]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def queue(folder: Path, most: int = 1000) -> EventQueue:
    return EventQueue(Journal(folder), FIRST, most)


def steps(folder: Path) -> list[int]:
    return [event["step"] for event in written(folder) if event["kind"] == "metrics"]


def test_events_are_written_in_order_with_the_time_of_their_making(tmp_path: Path) -> None:
    events, before = queue(tmp_path), time.time() * 1000
    for step in range(500):
        events.put("metrics", values={"loss": 1.0, "norm": float("nan")}, step=step)
    after = time.time() * 1000
    assert events.close(10) == 0
    first, *others = written(tmp_path)
    assert first["kind"] == "run" and first["key"] == "k"
    assert [event["step"] for event in others] == list(range(500))
    assert others[0]["values"] == {"loss": 1.0, "norm": "nan"}
    assert all(int(before) <= event["time"] <= after for event in others)
    assert (Journal(tmp_path).waiting(), Journal(tmp_path).first()["name"]) == (501, "one")


@pytest.mark.parametrize("torn", [b'{"kind": "metr', b"\0" * 5000, b"x" * 300_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path)
    journal.open({"kind": "run"} | FIRST)
    journal.append([{"kind": "metrics", "step": 1, "values": {}}])
    journal.close()
    size = journal.path.stat().st_size
    with journal.path.open("ab") as file:
        file.write(torn)
    assert [end for _, end in journal.read(0)][1:] == [size], "who reads it meanwhile sees whole lines"
    again = queue(tmp_path)
    again.put("metrics", values={"loss": 1.0}, step=2)
    assert again.close(10) == 0
    assert steps(tmp_path) == [1, 2] and len(written(tmp_path)) == 3


def test_a_damaged_line_is_read_as_such_and_hides_no_other(tmp_path: Path) -> None:
    events = queue(tmp_path)
    for step in (1, 2, 3):
        events.put("metrics", values={"loss": 1.0}, step=step)
    events.close(10)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\xff" * 20 + b"\n", *lines[3:]]))
    found = [event for event, _ in Journal(tmp_path).read(0)]
    assert [event["kind"] for event in found] == ["run", "metrics", "damaged", "metrics"]
    assert found[3]["step"] == 3
    assert Journal(tmp_path).history(0).metrics == {("loss", 1), ("loss", 3)}


def test_what_a_repeated_step_logs_is_not_written_again(tmp_path: Path) -> None:
    """Only in an attempt that repeats it bit for bit; what the machine did is new in every attempt."""

    def attempt(same: bool, first: int, last: int, after: int) -> int:
        events = queue(tmp_path)
        events.put("attempt", facts={}, same=same, step=after)
        for step in range(first, last):
            events.put("metrics", values={"loss": 1.0, "system/cpu": 2.0}, step=step)
        events.put("metrics", values={"new": 1.0}, step=first)
        assert events.close(10) == 0
        return sum("loss" in e["values"] for e in written(tmp_path) if e["kind"] == "metrics")

    assert attempt(False, 1, 11, 0) == 10
    assert attempt(True, 6, 16, 5) == 15
    assert attempt(False, 6, 16, 5) == 25
    system = [e["step"] for e in written(tmp_path) if "system/cpu" in e.get("values", {})]
    assert system == [*range(1, 11), *range(6, 16), *range(6, 16)]
    assert [e["number"] for e in written(tmp_path) if e["kind"] == "attempt"] == [1, 2, 3]


def test_a_parameter_that_changes_is_told_apart(tmp_path: Path) -> None:
    for values in ({"train": {"lr": 1, "steps": 5}}, {"train": {"lr": 2, "steps": 5}}, {"train": {"lr": 1}, "b": None}):
        events = queue(tmp_path)
        events.put("attempt", facts={}, same=False, step=0)
        events.put("parameters", values=values)
        events.close(10)
    found = [(e["values"], e["changed"]) for e in written(tmp_path) if e["kind"] == "parameters"]
    assert found == [
        ({"train.lr": "1", "train.steps": "5"}, {}),
        ({}, {"train.lr": "2"}),
        ({"b": "None"}, {"train.lr": "1"}),
    ]


def test_a_full_queue_loses_and_counts_and_does_not_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal.jsonl").mkdir()  # cannot be written
    events = queue(tmp_path, most=50)
    started = time.perf_counter()
    for step in range(5000):
        events.put("metrics", values={"loss": 1.0}, step=step)
    assert time.perf_counter() - started < 1
    time.sleep(1.5)
    (tmp_path / "journal.jsonl").rmdir()
    deadline = time.monotonic() + 10
    while not (tmp_path / "journal.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    events.put("metrics", values={"loss": 1.0}, step=5000)
    lost = events.close(10)
    kept = steps(tmp_path)
    assert kept == [*range(50), 5000] and lost == 5000 - 50
    assert sum("Is a directory" in text for text in caplog.messages) == 1
    assert sum("tracking.queue=50" in text for text in caplog.messages) == 1


def test_an_event_that_is_no_event_is_lost_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = queue(tmp_path)
    events.put("metrics", values={"loss": "much"}, step=1)
    events.put("artifact", path=tmp_path / "nowhere.yaml", folder=None, redacted=True)
    events.put("metrics", values={"loss": 1.0}, step=2)
    assert events.close(10) == 2
    assert steps(tmp_path) == [2]
    assert sum("an event is lost" in text for text in caplog.messages) == 2


FULL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from trainer.event_queue import EventQueue
from trainer.journal import Journal

events = EventQueue(Journal(Path(sys.argv[1])), {"key": "k"}, 10_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for step in range(300):
    events.put("metrics", values={"loss": 1.0}, step=step)
time.sleep(1.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(events.close(10))
"""


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path) -> None:
    """A write that took a part of the lines is undone; then all of them are written."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "0\n" and done.stderr.count("File too large") == 1
    assert steps(tmp_path) == list(range(300))


def test_a_disk_that_stays_full_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the end of the run comes in time."""
    run = tmp_path / "runs" / "one"
    (run / "tracking" / "journal.jsonl").mkdir(parents=True)
    tracker = Tracker(TrackingConfig(patience=1, system_seconds=0), tmp_path / "runs", "one", run)
    for step in range(10):
        tracker.metrics({"loss": 1.0}, step)
    started = time.monotonic()
    tracker.finish()
    assert time.monotonic() - started < 2
    assert f"{run}/tracking/journal.jsonl: 11 events were lost on their way to the disk" in caplog.messages
    assert tracker.run_id is None


def test_a_state_of_another_journal_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    queue(tmp_path).close(10)
    journal = Journal(tmp_path)
    journal.save(State("k", "run", 17))
    assert journal.state() == State("k", "run", 17)
    journal.save(State("other", "run", 17))
    assert journal.state() == State()
    for text in ("", '{"key": "k"', '{"key": "k", "more": 1}', "[]"):
        (tmp_path / "state.json").write_text(text)
        assert journal.state() == State()


def test_one_process_sends(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.lock() as mine, journal.lock() as other:
        assert mine and not other
    with journal.lock() as again:
        assert again


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:pw@host:5000/path", "http://host:5000/path"),
        ("s3://AKIA:abc/def@bucket/a", "s3://AKIA:abc/def@bucket/a"),  # its @ is of the path
        ("see https://h/a.tar?X-Amz-Signature=abc&b=1 twice https://h/b", "see https://h/a.tar twice https://h/b"),
        ("postgresql+psycopg://u:p@h/db?sslmode=require", "postgresql+psycopg://h/db"),
        ("HF_TOKEN=hf_abc next", "HF_TOKEN=[redacted] next"),
        ("password: 'a b c', user: x", "password: [redacted], user: x"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": [redacted], "n": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=[redacted]"),
        ("a?b&key=abc&c=1", "a?b&key=[redacted]&c=1"),
        ("Param with key='train.lr'", "Param with key='train.lr'"),
        ("train.tokens: 2000, max_new_tokens=32, kl_reduction: token", None),
        ("https://host/@user/x", None),
        ("three monkeys: 3", None),
    ],
)
def test_redaction_of_text(text: str, clean: str | None) -> None:
    assert redact(text) == (text if clean is None else clean)


def test_redaction_of_settings() -> None:
    given = {
        "train": {"tokens": 4, "password": "x", "lr": 1.0, "hub_token": None},
        "data": [{"folder": "http://u:p@h/x", "secret": 5}],
        "key": "x",
        "secret_key": ["a", "b"],
        "monkey": "banana",
    }
    assert redact(given) == {
        "train": {"tokens": 4, "password": "[redacted]", "lr": 1.0, "hub_token": None},
        "data": [{"folder": "http://h/x", "secret": "[redacted]"}],
        "key": "[redacted]",
        "secret_key": "[redacted]",
        "monkey": "banana",
    }
    assert given["train"] == {"tokens": 4, "password": "x", "lr": 1.0, "hub_token": None}, "a copy"


def test_no_secret_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {password: pw1}\nb: http://u:pw2@h/x?sig=pw3\nlr: 0.1\n")
    events = queue(tmp_path / "tracking")
    events.put("attempt", facts={"launched by": "train --token=pw4", "api_key": "pw5"}, same=False, step=0)
    events.put("parameters", values={"a": {"password": "pw1"}, "b": ["http://u:pw2@h/x?sig=pw3"], "token": "pw6"})
    events.put("tags", values={"note": "secret: pw7", "secret": "pw8"})
    events.put("artifact", path=path, folder=None, redacted=True)
    assert events.close(10) == 0
    files = list((tmp_path / "tracking").iterdir())
    assert {file.name for file in files} == {"journal.jsonl", "config.yaml"}
    assert not any("pw" in file.read_text().replace("password", "") for file in files)
    assert "lr: 0.1" in (tmp_path / "tracking" / "config.yaml").read_text()
