"""Evaluations as a whole: what they write agrees with itself, and nothing is answered twice."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval import answer, run_blink, run_tsv, run_visual_puzzles
from eval.benchmarks import blink
from eval.models import find_model
from tests.eval.benchmarks.layouts import write_blink, write_visual_puzzles
from tests.eval.commands import TASKS, call, check, lines_of, refused, scores_of, small_tsv

N = sum(TASKS.values())
SHORT = ("--max-new-tokens", 4)
Ask = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLINK."""
    return write_blink(tmp_path_factory.mktemp("blink"), sizes=TASKS, picture=(48, 40))


@pytest.fixture(scope="module")
def asked(export_of: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an evaluation."""
    out = tmp_path_factory.mktemp("asked") / "not" / "there"
    assert call(run_blink.main, "--checkpoint", export_of("amvl"), "--data", data, "--out", out, *SHORT) == 0
    return out


@pytest.fixture
def again(asked: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    return Path(shutil.copytree(asked, tmp_path / "again"))


@pytest.fixture
def ask(export_of: Callable[[str], Path], data: Path, again: Path) -> Ask:
    """BLINK asked once more, into the copy."""
    return lambda *more: call(
        run_blink.main, "--checkpoint", export_of("amvl"), "--data", data, "--out", again, *SHORT, *more
    )


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one is an error."""

    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(answer.Answerer, "__init__", never)


def test_everything_that_numbers_depend_on_is_written(asked: Path, export_of, data: Path) -> None:
    scores = check(asked, N)
    assert (scores["benchmark"], scores["split"], scores["official"]) == ("blink", "val", "macro")
    assert scores["labels"]["hash"] == blink.read(data).labels.hash
    model, facts = find_model(export_of("amvl")), scores["settings"]
    wanted = dict(
        model=str(model.folder), model_id=model.id, mode="generate", latents="mean", prompt="blink/official-1",
        blind=False, max_new_tokens=4, temperature=0.0, top_p=1.0, seed=0, stop=[], min_pixels=4096, max_pixels=65536,
        dtype="fp32", attention="sdpa", vision_attention="sdpa", rules="plain", judge=None,
    )  # fmt: skip
    assert wanted.items() <= facts.items()
    assert {"amvl", "torch", "transformers", "pillow", "tokenizers"} <= set(facts["versions"]) and facts["device"]
    page = (asked / "report.html").read_text()
    assert model.id in page and facts["versions"]["torch"] in page
    assert any("sub-tasks are missing" in warning for warning in scores["warnings"])
    assert "without Relative_Reflectance" in (asked / "scores.md").read_text()
    assert len(lines_of(asked / "predictions.jsonl")) == N


def test_what_is_printed(ask: Ask, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask() == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    scores = scores_of(again)
    told = [f"warning: {warning}" for warning in scores["warnings"]]
    before = lines.index(next(line for line in lines if line.startswith("blink val: ")))
    assert lines[:before] == told[:before] and before > 1, "of the data, before the model runs"
    assert set(told) <= set(lines), "of the scores, below them"
    assert f"blink val: {N} items, labels {scores['labels']['hash']} (unknown (partial set))" in said.out
    assert lines[-1] == f"report: {again / 'report.html'}"
    assert scores["cut"] > N / 10 < scores["unresolved"]
    assert f"hint: {scores['cut']} of {N} replies were cut off at 4 tokens: raise --max-new-tokens" in lines
    assert f"hint: {scores['unresolved']} of {N} replies name no option: " in said.out
    assert "Traceback" not in said.err


def test_a_second_run_answers_nothing_again(ask: Ask, again: Path, no_model: None) -> None:
    """Nor does one with other batches; every file is as it was."""
    before = {path.name: path.read_bytes() for path in again.iterdir()}
    assert ask() == 0
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before
    assert ask("--tokens", 5, "--processes", 2) == 0
    assert (again / "predictions.jsonl").read_bytes() == before["predictions.jsonl"]


def test_other_rules_need_no_model(ask: Ask, again: Path, no_model: None) -> None:
    """Replies are read anew by the rules that are asked for."""
    lines = lines_of(again / "predictions.jsonl")
    path = again / "predictions.jsonl"
    path.write_text("".join(json.dumps(line | {"replies": ["A. I think"]}) + "\n" for line in lines))
    before = path.read_bytes()
    assert ask() == 0
    assert {r["answer"] for r in lines_of(again / "results.jsonl")} == {"A"}
    assert scores_of(again)["unresolved"] == 0
    assert ask("--rules", "official") == 0
    assert {r["answer"] for r in lines_of(again / "results.jsonl")} == {None}
    assert (scores_of(again)["unresolved"], scores_of(again)["settings"]["rules"]) == (N, "official")
    assert path.read_bytes() == before


def test_a_killed_run_goes_on(ask: Ask, again: Path, asked: Path) -> None:
    """What was there stays as it is, torn lines apart, and the rest comes to the same."""
    path = again / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:25])
    assert ask("--tokens", 700) == 0
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:9] == lines[:9] and sorted(after) == sorted(lines)
    assert (again / "results.jsonl").read_bytes() == (asked / "results.jsonl").read_bytes()


def test_failed_items_are_run_again_when_asked(ask: Ask, again: Path, asked: Path, no_model: None) -> None:
    path = again / "predictions.jsonl"
    lines = lines_of(path)
    bad = {"id": lines[3]["id"], "key": lines[3]["key"], "failed": "does not fit into memory alone: by a test"}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:3], bad, *lines[4:]]))
    assert ask() == 0
    scores = scores_of(again)
    assert (scores["failed"], lines_of(path)[3]) == (1, bad)
    assert "by a test" in (again / "report.html").read_text()
    with pytest.raises(AssertionError, match="the model was loaded"):
        ask("--retry")


def test_a_retry_mends(ask: Ask, again: Path, asked: Path) -> None:
    path = again / "predictions.jsonl"
    lines = lines_of(path)
    bad = {"id": lines[3]["id"], "key": lines[3]["key"], "failed": "by a test"}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:3], bad, *lines[4:]]))
    assert ask("--retry") == 0
    assert (again / "results.jsonl").read_bytes() == (asked / "results.jsonl").read_bytes()
    assert scores_of(again)["failed"] == 0 and len(lines_of(path)) == N


def test_options_by_their_likelihood(ask: Ask, again: Path, export_of, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "score"
    arguments = ("--checkpoint", export_of("amvl"), "--data", data, "--out", out, "--mode", "score")
    assert call(run_blink.main, *arguments, "--latents", "vote:2") == 0
    scores = check(out, N)
    assert scores["settings"]["max_new_tokens"] is None and scores["settings"]["latents"] == "vote:2"
    results = lines_of(out / "results.jsonl")
    assert all(len(r["scores"]) == r["n_choices"] and r["rule"] == "likeliest" for r in results)
    assert all(r["answer"] == "ABCD"[r["scores"].index(max(r["scores"]))] for r in results)
    assert len({r["answer"] for r in results}) > 1 and scores["unresolved"] == 0


def test_votes(ask: Ask, again: Path) -> None:
    """Beside the replies of another setting, which stay in the same file."""
    before = (again / "predictions.jsonl").read_bytes()
    assert ask("--latents", "vote:2") == 0
    check(again, N)
    assert all(len(r["replies"]) == len(r["finish"]) == 2 for r in lines_of(again / "results.jsonl"))
    after = (again / "predictions.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 2 * N


def test_without_the_pictures_as_a_baseline(export_of, data: Path, tmp_path: Path) -> None:
    """Both runs in one file; the gain is that of the items, pair by pair."""
    common = ("--checkpoint", export_of("amvl"), "--data", data, "--mode", "score")
    assert call(run_blink.main, *common, "--out", tmp_path / "both", "--blind") == 0
    assert call(run_blink.main, *common, "--out", tmp_path / "seen") == 0
    both, seen = check(tmp_path / "both", N), check(tmp_path / "seen", N)
    assert both["tasks"].keys() == seen["tasks"].keys() and both["micro"] == seen["micro"]
    assert seen["blind"] is seen["gain_over_blind"] is None
    predictions = lines_of(tmp_path / "both/predictions.jsonl")
    assert len(predictions) == 2 * N
    known = {p["id"]: p for p in lines_of(tmp_path / "seen/predictions.jsonl")}
    unseen = {p["key"]: p["scores"] for p in predictions if p["id"] not in known}
    assert len(unseen) == N and all(unseen[p["key"]] != p["scores"] for p in known.values())
    right = {r["key"]: "ABCD".index(r["label"]) for r in lines_of(tmp_path / "both/results.jsonl")}
    blind = sum(scores.index(max(scores)) == right[key] for key, scores in unseen.items()) / N
    assert both["blind"]["micro"] == pytest.approx(blind)
    assert both["gain_over_blind"]["value"] == pytest.approx(both["micro"]["value"] - blind)
    assert "the same model without pictures" in (tmp_path / "both/report.html").read_text()


def test_some_sub_tasks(ask: Ask, again: Path, asked: Path, no_model: None) -> None:
    assert ask("--tasks", "Jigsaw,Counting") == 0
    scores = scores_of(again)
    assert (set(scores["tasks"]), scores["n"]) == ({"Jigsaw", "Counting"}, 16)
    assert scores["tasks"]["Jigsaw"] == scores_of(asked)["tasks"]["Jigsaw"]
    assert f"16 of the {N} items were evaluated: not comparable with published figures" in scores["warnings"]


def test_some_items_spread_over_the_benchmark(ask: Ask, again: Path, no_model: None) -> None:
    for limit, n in ((1, 1), (7, 7), (N, N), (1000, N)):
        assert ask("--limit", limit) == 0
        scores = scores_of(again)
        assert scores["n"] == n and (set(scores["tasks"]) == set(TASKS) or n == 1)
        assert any("not comparable" in warning for warning in scores["warnings"]) == (n < N)


def test_places_of_results(export_of, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run, or in runs/; evaluations asked otherwise stand side by side."""
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (run / "export/step_7").symlink_to(export_of("amvl"))
    monkeypatch.chdir(tmp_path)
    common = ("--data", data, "--limit", 2, "--mode", "score")
    assert call(run_blink.main, "--checkpoint", run, *common) == 0
    assert call(run_blink.main, "--checkpoint", run, *common, "--latents", "off") == 0
    assert call(run_blink.main, "--checkpoint", export_of("amvl"), *common) == 0
    names = sorted(path.parent.name for path in run.glob("eval/step_7/*/scores.json"))
    assert names == ["blink,limit=2,mode=score", "blink,limit=2,mode=score,latents=off"]
    (other,) = tmp_path.glob("runs/eval/*/*/scores.json")
    assert other.parent.name == "blink,limit=2,mode=score" and other.parents[1].name.startswith("export")
    assert scores_of(run / "eval/step_7/blink,limit=2,mode=score")["settings"]["step"] == 7


def test_two_evaluations_compared(ask: Ask, again: Path, export_of, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "second"
    arguments = ("--checkpoint", export_of("sft"), "--data", data, "--out", out, "--mode", "score")
    before = {path.name: path.read_bytes() for path in again.iterdir()}
    assert call(run_blink.main, *arguments, "--baseline", again) == 0
    (verdict,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"against {again}: ")]
    assert len(verdict) > len(f"against {again}: ") + 10
    page = (out / "report.html").read_text()
    assert verdict.removeprefix(f"against {again}: ").split(":")[0] in page and "flips" in page
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before
    check(out, N)


def test_comparisons_that_cannot_be(no_model: None, again: Path, export_of, data: Path, tmp_path: Path, capsys) -> None:
    """Told in one line before anything is answered; where the items differ, before anything is written."""
    common = ("--checkpoint", export_of("amvl"), "--out", tmp_path / "out", "--mode", "score")
    blink_ = ("--data", data, *common)
    nowhere = tmp_path / "nowhere"
    text = refused(capsys, run_blink.main, *blink_, "--baseline", nowhere)
    assert text == f"{nowhere}/scores.json: cannot be read (No such file or directory); name a folder that an " + (
        "evaluation wrote"
    )
    tsv = small_tsv(tmp_path / "Other.tsv")
    text = refused(capsys, run_tsv.main, "--data", tsv, *common, "--tasks", "right", "--baseline", again)
    assert text == f"{again}: of benchmark blink, not Other; name another one"
    text = refused(capsys, run_blink.main, *blink_, "--limit", 3, "--baseline", again)
    assert text.startswith(f"{again}: has {N} items, not the 3 evaluated here; take the same --tasks and --limit")
    (again / "results.jsonl").write_text("{}")
    text = refused(capsys, run_blink.main, *blink_, "--baseline", again)
    assert text == f"{again}/results.jsonl: not results of an evaluation (Field required); evaluate again"
    other = write_blink(tmp_path / "other", sizes=TASKS, seed=5)
    text = refused(capsys, run_blink.main, "--data", other, *common, "--baseline", again)
    assert text.startswith(f"{again}: labels ") and text.endswith("; evaluate it on the same data")


def test_an_item_that_cannot_be_run_is_told_of(export_of, tmp_path: Path) -> None:
    """A damaged picture: the item is wrong, the page names it, the others count."""
    import pyarrow
    from pyarrow import parquet

    data = write_blink(tmp_path / "blink", sizes={"Counting": 4}, picture=(400, 300))
    (path,) = data.glob("Counting/*.parquet")
    table = parquet.read_table(path).to_pylist()
    # A picture whose header is whole.
    table[2]["image_1"]["bytes"] = table[2]["image_1"]["bytes"][:-99]
    schema = parquet.read_schema(path)
    parquet.write_table(pyarrow.Table.from_pylist(table, schema), path)
    out = tmp_path / "out"
    assert call(run_blink.main, "--checkpoint", export_of("sft"), "--data", data, "--out", out, "--mode", "score") == 0
    scores = check(out, 4)
    assert scores["failed"] == 1
    (bad,) = [r for r in lines_of(out / "results.jsonl") if r["failed"]]
    assert bad["failed"].startswith(f"{bad['key']}.0: not a whole picture (")
    assert bad["key"] in (out / "report.html").read_text()


def test_visual_puzzles(export_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the benchmark's own limit of a reply and groups by difficulty; prompts by their names."""
    data = write_visual_puzzles(tmp_path / "puzzles", n=15)
    out = tmp_path / "out"
    common = ("--checkpoint", export_of("sft"), "--data", data, "--out", out)
    assert call(run_visual_puzzles.main, *common, "--mode", "score") == 0
    scores = check(out, 15)
    assert scores["settings"]["prompt"] == "visual_puzzles/cot-1" and scores["official"] == "micro"
    assert set(scores["groups"]["difficulty"]) == {"easy", "medium", "hard"}
    assert call(run_visual_puzzles.main, *common, "--prompt", "direct", "--rules", "official", *SHORT) == 0
    assert scores_of(out)["settings"]["prompt"] == "visual_puzzles/direct-1"
    text = refused(capsys, run_visual_puzzles.main, *common, "--prompt", "poem")
    assert text == "--prompt poem: visual_puzzles has cot, direct, vlmevalkit, amvl; name one of these"


def test_replies_have_the_room_that_the_benchmark_says(export_of, tmp_path: Path, monkeypatch) -> None:
    """4,096 tokens of VisualPuzzles, 1,024 of BLINK."""
    seen: list[int | None] = []

    def answerer(self, model, settings, device) -> None:
        seen.append(settings.max_new_tokens)
        raise KeyboardInterrupt

    monkeypatch.setattr(answer.Answerer, "__init__", answerer)
    puzzles, data = write_visual_puzzles(tmp_path / "p", n=5), write_blink(tmp_path / "b", sizes={"Counting": 2})
    for main, folder in ((run_visual_puzzles.main, puzzles), (run_blink.main, data)):
        with pytest.raises(KeyboardInterrupt):
            call(main, "--checkpoint", export_of("sft"), "--data", folder, "--out", tmp_path / "out")
    assert seen == [4096, 1024]


def test_any_tsv(tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a plain model, with an open question."""
    data, out = small_tsv(tmp_path / "MMVP.tsv"), tmp_path / "out"
    common = ("--checkpoint", tiny_backbone, "--data", data, "--out", out)
    assert call(run_tsv.main, *common, *SHORT) == 0
    scores = check(out, 12)
    assert (scores["benchmark"], scores["official"], set(scores["tasks"])) == ("MMVP", "micro", {"left", "right"})
    assert scores["settings"]["latents"] == "off" and scores["settings"]["step"] is None
    (opened,) = [r for r in lines_of(out / "results.jsonl") if r["n_choices"] == 0]
    assert (opened["label"], opened["rule"]) == ("two", "text")
    before = (out / "scores.json").read_bytes()
    text = refused(capsys, run_tsv.main, *common, *SHORT, "--rules", "official")
    assert text.startswith("--rules official: MMVP has none of its own")
    text = refused(capsys, run_tsv.main, *common, "--mode", "score")
    assert text == "11: has no options, which mode score needs; use generate, or leave it out by --tasks"
    assert (out / "scores.json").read_bytes() == before
    assert call(run_tsv.main, *common, "--mode", "score", "--tasks", "left") == 0
    check(out, 6)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    asked = 0


class Handler(BaseHTTPRequestHandler):
    """Says (B) to everything."""

    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": "(B)"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_a_judge_reads_what_no_rule_reads(ask: Ask, again: Path, server: Server, no_model: None) -> None:
    """Each once, and nothing the second time."""
    lines = lines_of(again / "predictions.jsonl")
    said = ["the grassy one", "(A)"]
    path = again / "predictions.jsonl"
    path.write_text("".join(json.dumps(x | {"replies": [said[n % 2]]}) + "\n" for n, x in enumerate(lines)))
    keys = {x["key"] for n, x in enumerate(lines) if n % 2 == 0}
    judge = ("--judge", f"http://127.0.0.1:{server.server_address[1]}/v1", "--judge-model", "m")
    for _ in range(2):
        assert ask(*judge) == 0
        for r in lines_of(again / "results.jsonl"):
            assert (r["answer"], r["rule"].startswith("judge")) == (("B", True) if r["key"] in keys else ("A", False))
        assert scores_of(again)["settings"]["judge"] == "m" and scores_of(again)["unresolved"] == 0
        assert server.asked == len(keys) == len(lines_of(again / "judge.jsonl"))
    assert ask() == 0
    assert scores_of(again)["unresolved"] == len(keys)
