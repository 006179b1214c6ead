"""What the commands refuse: one line that names the flag, and exit code 2, before anything is loaded or written."""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import answer, cli, run_blink, run_shards, run_tsv, run_visual_puzzles
from eval.benchmarks.item import Benchmark, Item, Labels
from eval.settings import Settings
from tests.eval.benchmarks.layouts import write_blink
from tests.eval.commands import FILES, call, check, refused

ROOT = Path(__file__).parents[2]
MAINS = (run_blink.main, run_visual_puzzles.main, run_tsv.main, run_shards.main)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blink(tmp_path_factory.mktemp("blink"), sizes={"Counting": 4, "Jigsaw": 2})


@pytest.fixture
def common(export_of: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch) -> tuple[object, ...]:
    """Arguments of an evaluation whose model must not be loaded."""

    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(answer.Answerer, "__init__", never)
    return ("--checkpoint", export_of("amvl"), "--data", data, "--out", tmp_path / "out")


REFUSED: list[tuple[str, str]] = [
    ("--temperature -1", "--temperature -1.0: Input should be greater than or equal to 0"),
    ("--temperature nan", "--temperature nan: Input should be less than or equal to 100"),
    ("--temperature 0.5 --top-p 0", "--top-p 0.0: Input should be greater than 0"),
    ("--temperature 0.5 --top-p 1.5", "--top-p 1.5: Input should be less than or equal to 1"),
    ("--top-p 0.5", "top_p 0.5 without a temperature draws nothing; set temperature"),
    ("--max-new-tokens 0", "--max-new-tokens 0: Input should be greater than or equal to 1"),
    ("--seed -1", "--seed -1: Input should be greater than or equal to 0"),
    ("--tokens 0", "--tokens 0: Input should be greater than or equal to 1"),
    ("--processes 0", "--processes 0: Input should be greater than or equal to 1"),
    ("--latents median", "--latents median: latents 'median': not mean, sample:T, vote:N, vote:N:T, optional, "
     "optional:T, off or markers (N from 1 to 1000, T from 0 to 100)"),
    ("--latents given", "--latents given: latents 'given': z has to come from somewhere; eval/run_interventions.py "
     "puts some in"),
    ("--mode score --latents optional", "latents optional: mode score writes nothing that could ask for them; use mean "
     "or off"),
    ("--min-pixels 0", "--min-pixels 0: Input should be greater than or equal to 1"),
    ("--min-pixels 9 --max-pixels 8", "min_pixels 9 is above max_pixels 8; lower it"),
    ("--mode score --stop x", "mode score writes no reply: leave out temperature, top_p, stop and max_new_tokens"),
    ("--mode score --max-new-tokens 3", "mode score writes no reply: leave out temperature, top_p, stop and "
     "max_new_tokens"),
    ("--mode score --temperature 1", "mode score writes no reply: leave out temperature, top_p, stop and "
     "max_new_tokens"),
    ("--attention flash", "attention 'flash': no CUDA GPU; set it to auto or sdpa"),
    ("--prompt poem", "--prompt poem: blink has official, images_first, vlmevalkit, lmms_eval, letter, amvl; name one "
     "of these"),
    ("--tasks Jigsaw,Chess", "--tasks Chess: blink has Counting, Jigsaw; name some of these"),
    ("--tasks ,", "--tasks : blink has Counting, Jigsaw; name some of these"),
    ("--limit 0", "--limit 0: below 1; give a number of items"),
    ("--limit -3", "--limit -3: below 1; give a number of items"),
    ("--judge http://localhost:1/v1", "--judge and --judge-model belong together; give both or neither"),
    ("--judge-model m", "--judge and --judge-model belong together; give both or neither"),
    ("--judge localhost --judge-model m", "--judge localhost: not a URL; e.g. http://localhost:8000/v1"),
    ("--step 3", "EXPORT: not a run, so it has no step 3; leave out --step, or name the run"),
    ("--split test", "DATA: "),
    ("--zero3", "--zero3: no ranks; start it with deepspeed, e.g. deepspeed eval/run_blink.py --zero3 ..."),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), REFUSED, ids=[flags for flags, _ in REFUSED])
def test_flags_that_cannot_be(common, capsys, tmp_path: Path, monkeypatch, flags: str, line: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    text = refused(capsys, run_blink.main, *common, *flags.split(" "))
    wanted = line.replace("EXPORT", str(common[1])).replace("DATA", str(common[3]))
    assert text == wanted or (line == "DATA: " and text.startswith(str(common[3])))
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_an_empty_stop_text(common, capsys) -> None:
    text = refused(capsys, run_blink.main, *common, "--stop", "")
    assert text.startswith("--stop ") and text.endswith("an empty text would end every reply; leave it out")


@pytest.mark.parametrize(
    "flags", ["--mode guess", "--rules strict", "--dtype fp16", "--limit few", "--attention eager", "--no-such-flag"]
)
def test_flags_that_argparse_knows_not(common, capsys, flags: str) -> None:
    assert call(run_blink.main, *common, *flags.split()) == 2
    assert flags.split()[0] in capsys.readouterr().err.splitlines()[-1]


def test_places_that_are_not_there(common, capsys, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for main in MAINS:
        text = refused(capsys, main, *common[:2], "--data", nowhere, "--out", tmp_path / "out")
        if main is not run_shards.main:  # which asks for --train first
            assert str(nowhere) in text
    text = refused(capsys, run_blink.main, "--checkpoint", nowhere, *common[2:])
    assert text.startswith(f"{nowhere}: neither a run, a checkpoint, an export nor a Hugging Face model")
    (tmp_path / "file").write_text("")
    text = refused(capsys, run_blink.main, *common[:4], "--out", tmp_path / "file" / "out", "--limit", 1)
    assert text.endswith("cannot be written (Not a directory); name another --out")


def test_a_second_evaluation_into_the_same_folder(common, capsys, tmp_path: Path) -> None:
    from eval.predictions import Predictions

    held = Predictions(tmp_path / "out/predictions.jsonl")
    text = refused(capsys, run_blink.main, *common[:-1], tmp_path / "out", "--tasks", "Counting", "--limit", 1)
    assert text == f"{held.path}: another evaluation writes to it; wait for it, or name another --out"
    held.close()


def test_every_setting_has_its_flag() -> None:
    """And the flags' values come through; what is not given is the setting's own default."""
    parser = cli.parser("run_blink", "", "")
    required = ["--checkpoint", "c", "--data", "d"]
    known = set(vars(parser.parse_args(required)))
    assert set(Settings.model_fields) <= known
    assert cli.settings(parser.parse_args(required)) == Settings()
    flags = (
        "--latents vote:2:0.5 --prompt p --max-new-tokens 7 --temperature 0.5 --top-p 0.25 --seed 3 --stop x --stop y "
        "--min-pixels 5 --max-pixels 6 --dtype bf16 --attention sdpa --vision-attention varlen --tokens 9 --processes 2"
    )
    assert cli.settings(parser.parse_args([*required, *flags.split(), "--blind"])) == Settings(
        latents="vote:2:0.5", prompt="p", max_new_tokens=7, temperature=0.5, top_p=0.25, seed=3, stop=("x", "y"),
        min_pixels=5, max_pixels=6, dtype="bf16", attention="sdpa", vision_attention="varlen", tokens=9, processes=2,
    )  # fmt: skip
    assert cli.settings(parser.parse_args([*required, "--mode", "score", "--zero3"])) == Settings(
        mode="score", zero3=True
    )


@pytest.mark.parametrize("main", MAINS, ids=lambda main: main.__module__)
def test_help(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, "--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("--checkpoint", "--mode", "--baseline", "--zero3"))
    assert "local_rank" not in text


def test_by_its_path(export_of, data: Path, tmp_path: Path) -> None:
    """As it is called by hand, from another folder's view of the world: one real process that answers and one that
    refuses."""
    command = [sys.executable, "eval/run_blink.py", "--data", str(data), "--checkpoint"]
    out = tmp_path / "out"
    arguments = [*command, str(export_of("sft")), "--out", str(out), "--max-new-tokens", "2", "--tokens", "300"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    check(out, 6)
    assert {path.name for path in out.iterdir()} == FILES
    assert done.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert "Traceback" not in done.stderr and re.search(r"6 of 6 items", done.stderr)
    done = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: neither a run")


@pytest.mark.parametrize("limit", [1, 3, 14, 20, 27, 28, 100])
def test_a_limit_is_spread_over_all_sub_tasks(limit: int) -> None:
    """Also where it is more than half of the items."""
    items = tuple(Item(f"{task}-{n}", task, "?", "A", None, 4) for task in "abcd" for n in range(7))
    benchmark = Benchmark("b", "val", items, {}, "macro", Labels("", ""))
    chosen = cli._chosen(argparse.Namespace(tasks=None, limit=limit), benchmark)
    assert chosen is not None
    counts = Counter(item.task for item in items if chosen(item))
    assert counts.total() == min(limit, 28)
    assert max(counts.values()) - min(counts[task] for task in "abcd") <= 1
