"""Interventions on latents: each changes what it says and nothing else; one that changes nothing is told of."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval import answer, run_interventions
from eval.answer import Answerer, Planner
from eval.benchmarks import blink, tsv
from eval.benchmarks.item import Benchmark, sample_of
from eval.intervention_table import ARMS
from eval.interventions import intervene
from eval.models import Model, find_model
from eval.predictions import pack, unpack
from eval.replacements import GIVEN, ONE_SLOT, SAME, InterventionError, moved_by, replacement, unchanged
from eval.request import Request
from eval.results import read_results
from eval.settings import Settings
from model.generate import Decoding, generate, score
from model.latent import Injection
from model.thinking import Thinking, prior_gaussians
from tests.eval.benchmarks.layouts import write_blink
from tests.eval.commands import call, check, lines_of, refused, small_tsv

ROOT = Path(__file__).parents[2]
N, NEW, K, D = 12, 4, 3, 8  # items, tokens of a reply; slots and width of the exports
main = run_interventions.main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tsv(tmp_path_factory.mktemp("set") / "small.tsv", N)


@pytest.fixture(scope="module")
def injected() -> list[Tensor]:
    """z [k, d] that reached the model in `ran`, branch by branch."""
    return []


@pytest.fixture(scope="module")
def ran(export_of: Callable[[str], Path], data: Path, injected: list[Tensor], tmp_path_factory) -> Path:
    """The folder of all arms, by the command."""
    out, forward = tmp_path_factory.mktemp("ran") / "out", Injection.forward

    def spied(self: Injection, z: Tensor, scale: Tensor) -> Tensor:
        injected.extend(z)
        return forward(self, z, scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Injection, "forward", spied)
        assert call(main, *words(export_of("amvl"), data, out)) == 0
    return out


@pytest.fixture(scope="module")
def scored(export_of: Callable[[str], Path], tmp_path_factory) -> tuple[Path, Benchmark]:
    """The same of a small BLINK, by its options' log-likelihoods."""
    folder = tmp_path_factory.mktemp("scored")
    data = write_blink(folder / "BLINK", sizes={"Counting": 8, "Jigsaw": 5}, picture=(48, 40))
    arguments = ("blink", "--checkpoint", export_of("amvl"), "--data", data, "--out", folder / "out")
    assert call(main, *arguments, "--mode", "score") == 0
    return folder / "out", blink.read(data)


def words(export: Path, data: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("tsv", "--checkpoint", export, "--data", data, "--out", out, "--max-new-tokens", NEW, *more)


def table_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "interventions.json").read_text())
    return found


# ---- What it changes ----


def test_every_arm_reaches_the_model(ran: Path, export_of, data: Path) -> None:
    """Replies are those to these latents, one item at a time, and to the very same question."""
    model, benchmark = find_model(export_of("amvl")), tsv.read(data, None, None)
    settings = model.effective(Settings(max_new_tokens=NEW))
    answerer, planner = Answerer(model, settings, "cpu"), Planner(model, settings)
    prompt = next(iter(benchmark.prompts.values()))
    items = [answerer.processor.encode(planner.job(sample_of(item, prompt), ()).sample) for item in benchmark.items]
    means = {one.sample.key: prior_gaussians(answerer.model, [one], answerer.markers).mean[0] for one in items}
    thinking = {"kept": Thinking(), "removed": Thinking("off"), "markers": Thinking("markers")}
    decoding = Decoding(answerer.ends, NEW)
    replies: dict[str, tuple[str, ...]] = {}
    for arm in ARMS:
        z = replacement(arm, list(means), means, 0) if arm in GIVEN else {}
        said = {result.key: result.replies for result in read_results(ran / arm / "results.jsonl")}
        assert len(said) == N
        for one in items:
            given = [z[one.sample.key]] if z else None
            how = thinking.get(arm, Thinking("given"))
            ((reply,),) = generate(answerer.model, [one], answerer.markers, decoding, how, given=given)
            assert said[one.sample.key] == [answerer.processor.before(reply.ids, ())], arm
        replies[arm] = tuple(reply for (reply,) in said.values())
    assert len(set(replies.values())) == len(ARMS)
    for arm in GIVEN:
        assert sum(a != b for a, b in zip(replies[arm], replies["kept"], strict=True)) >= N / 4, arm


def test_the_very_latents_reach_the_model(ran: Path, injected: list[Tensor], export_of) -> None:
    """To the last bit: those of the table of means, in the order of the arms that have any."""
    means = {p["key"]: unpack(p["prior"], K) for p in lines_of(ran / "prior" / "predictions.jsonl")}
    assert len(means) == N and {tuple(mean.shape) for mean in means.values()} == {(K, D)}
    assert len(injected) == N * (1 + len(GIVEN))
    assert torch.stack(sorted(injected[:N], key=str)).allclose(torch.stack(sorted(means.values(), key=str)), atol=1e-4)
    for number, arm in enumerate(GIVEN, 1):
        wanted = replacement(arm, list(means), means, 0)
        found = Counter(pack(z) for z in injected[number * N :][:N])
        assert found == Counter(pack(z) for z in wanted.values()), arm


def test_its_own_latents_change_nothing(export_of, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Given its own prior's mean, every item is answered as if it had it from the prior."""
    monkeypatch.setattr("eval.interventions.replacement", lambda name, keys, means, seed: means)
    monkeypatch.setattr("eval.interventions.unchanged", lambda name, moved: None)
    found = intervene(*asked(export_of("amvl"), tsv.read(data, None, None), tmp_path), ["unit_noise"])
    assert found
    kept, other = (read_results(tmp_path / arm / "results.jsonl") for arm in found.arms)
    assert kept == other and found.arms["unit_noise"].flips.value == found.arms["unit_noise"].change.value == 0


def asked(export: Path, benchmark: Benchmark, out: Path, **how: Any) -> tuple[Benchmark, Model, Request]:
    settings = {"max_new_tokens": NEW} | how if how.get("mode") != "score" else how
    return benchmark, find_model(export), Request(Settings(**settings), out)


# ---- What is told of it ----


def test_numbers(scored: tuple[Path, Benchmark]) -> None:
    """Made again from the results, the official average being the mean of the sub-tasks; and all files agree."""
    out, benchmark = scored
    found = table_of(out)
    assert list(found["arms"]) == list(ARMS) and found["official"] == "macro"
    results = {arm: lines_of(out / arm / "results.jsonl") for arm in ARMS}
    means = {p["key"]: unpack(p["prior"], K) for p in lines_of(out / "prior" / "predictions.jsonl")}
    for arm, one in found["arms"].items():
        scores = check(out / arm, len(benchmark.items))
        assert scores["settings"]["intervention"] == arm and scores["settings"]["model_id"]
        assert one["accuracy"] == scores["macro"] and one["no_effect"] is None and one["n"] == len(benchmark.items)
        assert (one["moved"] is None) == (arm not in GIVEN)
        if arm in GIVEN:
            z = replacement(arm, list(means), means, 0)
            ratios = sorted(float((z[key] - mean).norm() / mean.norm()) for key, mean in means.items())
            assert one["moved"] == pytest.approx(ratios[(len(ratios) - 1) // 2])
        if arm == "kept":
            assert one["change"] is one["flips"] is one["p"] is None
            continue
        pairs = list(zip(results["kept"], results[arm], strict=True))
        assert all(a["key"] == b["key"] for a, b in pairs)
        by_task: dict[str, list[int]] = {}
        for a, b in pairs:
            by_task.setdefault(a["task"], []).append(b["correct"] - a["correct"])
        assert one["change"]["value"] == pytest.approx(fmean(map(fmean, by_task.values())))
        assert one["change"]["low"] <= one["change"]["value"] <= one["change"]["high"]
        assert one["flips"]["value"] == sum(a["answer"] != b["answer"] for a, b in pairs) / len(pairs)
    shares = {one["flips"]["value"] for one in found["arms"].values() if one["flips"]}
    assert len(shares) > 1, "the check means something"


def test_a_table_by_hand(export_of, data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Twelve items: kept 9 right, removed 4, of which one was wrong before; eight answers change."""
    right = {"kept": [1] * 9 + [0] * 3, "removed": [1] * 3 + [0] * 6 + [1] + [0] * 2}
    said: dict[str, str] = {}

    def fixed(self: Answerer, batch: list, together: object) -> list:
        arm = "removed" if batch[0][0].settings.latents == "off" else "kept"
        replies = []
        for job, _ in batch:
            number = int(job.sample.key)
            label = job.sample.text.answer
            other = {"A": "B"}.get(label, "A")
            reply = label if right[arm][number] else other
            if arm == "removed" and number == 11:
                reply = "three"
            said[f"{arm} {number}"] = reply
            replies.append(answer.Prediction(id=job.id, key=job.sample.key, replies=(reply,), finish=("end",)))
        return replies

    monkeypatch.setattr(Answerer, "_run", fixed)
    assert call(main, *words(export_of("amvl"), data, tmp_path / "out", "--arms", "removed")) == 0
    arms = table_of(tmp_path / "out")["arms"]
    assert list(arms) == ["kept", "removed"], "kept is always there"
    assert (arms["kept"]["accuracy"]["value"], arms["removed"]["accuracy"]["value"]) == (0.75, 4 / 12)
    change = arms["removed"]["change"]
    # 6 right in kept alone, 1 in removed alone: (1 - 6) / 12, variance (7 - 12 (5/12)^2) / 11, SE its root over 12.
    assert change["value"] == pytest.approx(-5 / 12)
    assert change["se"] == pytest.approx(sqrt((7 - 12 * (5 / 12) ** 2) / 11 / 12))
    assert arms["removed"]["p"] == pytest.approx(2 * (1 + 7) / 2**7), "exact McNemar: 1 of 7 or fewer, twice"
    assert arms["removed"]["flips"]["value"] == 8 / 12
    line = (
        "removed (no slots and no marks): accuracy 33.33, -41.67 [-79.49, -3.84] against kept, no more than chance; "
        "66.7 % of answers change"
    )
    out = capsys.readouterr().out.splitlines()
    assert line in out and f"- {line}" in (tmp_path / "out/interventions.md").read_text().splitlines()
    row = ["removed", "12", "", "33.33", "[13.8, 60.9]", "-41.67", "[-79.49, -3.84]", "0.12", "66.7 %"]
    assert f"| {' | '.join(row)} |" in (tmp_path / "out/interventions.md").read_text().splitlines()
    assert any(line.split() == " ".join(row).split() for line in out)
    assert out[-1] == f"report: {tmp_path / 'out/interventions.md'}"


def test_log_likelihoods(scored: tuple[Path, Benchmark], export_of) -> None:
    """With these latents, one item at a time; every arm moves those of every item."""
    out, benchmark = scored
    model = find_model(export_of("amvl"))
    answerer = Answerer(model, model.effective(Settings(mode="score")), "cpu")
    means = {p["key"]: unpack(p["prior"], K) for p in lines_of(out / "prior" / "predictions.jsonl")}
    prompt = next(iter(benchmark.prompts.values()))
    results = {arm: read_results(out / arm / "results.jsonl") for arm in ARMS}
    z = replacement("other_item", list(means), means, 0)
    for item, result in zip(benchmark.items, results["other_item"], strict=True):
        one = answerer.processor.encode(sample_of(item, prompt))
        options = [answerer._ids(f"({letter})") for letter in item.letters]
        (wanted,) = score(answerer.model, [one], answerer.markers, [options], Thinking("given"), given=[z[item.key]])
        assert result.scores == pytest.approx(wanted.tolist(), abs=1e-4)
    for arm in [*ARMS][1:]:
        pairs = zip(results["kept"], results[arm], strict=True)
        assert all(a.scores != pytest.approx(b.scores, abs=0.01) for a, b in pairs), arm


def test_a_model_of_pause_tokens(export_of, data: Path, tmp_path: Path, capsys) -> None:
    """Has no z, so that only three arms are left."""
    assert call(main, *words(export_of("pause"), data, tmp_path / "out")) == 0
    assert list(table_of(tmp_path / "out")["arms"]) == ["kept", "removed", "markers"]
    assert not (tmp_path / "out" / "prior").exists()
    text = refused(capsys, main, *words(export_of("pause"), data, tmp_path / "out", "--arms", "kept,other_item"))
    assert text == "--arms other_item: a model of pause tokens has no z to replace; use kept,removed,markers"


# ---- Again, after a kill, with more processes ----


def everything(out: Path) -> dict[str, bytes]:
    paths = [out / "interventions.json", *(out / arm / "results.jsonl" for arm in ARMS)]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_nothing_is_answered_twice(ran: Path, export_of, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Nor is the model loaded; and after a kill only what is missing is asked."""
    out = Path(shutil.copytree(ran, tmp_path / "out"))
    before, run, asked_again = everything(out), Answerer._run, []

    def counted(self: Answerer, batch: list, together: Any) -> list:
        asked_again.extend((job.settings.latents, job.z) for job, _ in batch)
        return run(self, batch, together)

    monkeypatch.setattr(Answerer, "_run", counted)
    assert call(main, *words(export_of("amvl"), data, out)) == 0
    assert (asked_again, everything(out)) == ([], before)
    path = out / "matched_noise" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    (out / "interventions.json").unlink()
    for arm in ("other_item", "markers"):
        shutil.rmtree(out / arm)
    assert call(main, *words(export_of("amvl"), data, out)) == 0
    assert Counter(kind for kind, _ in asked_again) == {"given": 2 * N, "markers": N}, "whole batches"
    assert everything(out) == before and sorted(path.read_bytes().splitlines(True)) == sorted(lines)
    # Other latents are another question.
    asked_again.clear()
    prior = out / "prior" / "predictions.jsonl"
    changed = [line | {"prior": pack(unpack(line["prior"], K) * 1.5)} for line in lines_of(prior)]
    prior.write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert call(main, *words(export_of("amvl"), data, out)) == 0
    same = {"zero", "unit_noise"}
    assert Counter(kind for kind, _ in asked_again) == {"given": (len(GIVEN) - len(same)) * N}, (
        "these are what they were"
    )


def test_two_processes(ran: Path, export_of, data: Path, tmp_path: Path) -> None:
    """And other batches: the same results, though the prior's means round differently."""
    more = ("--processes", 2, "--tokens", 300, "--arms", "other_item,markers")
    assert call(main, *words(export_of("amvl"), data, tmp_path / "out", *more)) == 0
    found, wanted = table_of(tmp_path / "out")["arms"], table_of(ran)["arms"]
    assert list(found) == ["kept", "other_item", "markers"]
    for arm, one in found.items():
        assert (tmp_path / "out" / arm / "results.jsonl").read_bytes() == (ran / arm / "results.jsonl").read_bytes()
        assert one.pop("moved") == (wanted[arm]["moved"] and pytest.approx(wanted[arm]["moved"]))
        assert one == {name: value for name, value in wanted[arm].items() if name != "moved"}


def test_other_rules_stand_below_what_was_said(ran: Path, export_of, data: Path, tmp_path: Path, monkeypatch) -> None:
    """In the default folder, as with any evaluation; what was set by hand is in its name."""
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "export" / "step_5").symlink_to(export_of("amvl"))
    (run / "config.yaml").write_text("{}")
    arguments = ("tsv", "--checkpoint", run, "--data", data, "--max-new-tokens", NEW, "--arms", "markers")
    assert call(main, *arguments) == 0
    folder = run / "eval/step_5/small,max_new_tokens=4,interventions"
    assert {path.name for path in folder.iterdir()} == {"kept", "markers", "interventions.json", "interventions.md"}
    monkeypatch.setattr(Answerer, "_run", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr("eval.judge.Retry", lambda total, **_: 0)  # that judge is not there, and is not waited for
    with pytest.warns(UserWarning, match="3 failures in a row"):
        assert call(main, *arguments, "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m") == 0
    below = folder / "judge=m"
    assert {path.name for path in below.iterdir()} == {"kept", "markers", "interventions.json", "interventions.md"}
    assert not (below / "kept" / "predictions.jsonl").exists()


# ---- What is refused, and what has no effect ----


REFUSED: list[tuple[str, str]] = [
    ("--arms kept,swapped", "--arms swapped: not one of kept, removed, zero, unit_noise, matched_noise, data_mean, "
     "first_slot, shuffled, other_item, markers; name some of these"),
    ("--arms ,", "--arms : not one of kept, removed, zero, unit_noise, matched_noise, data_mean, first_slot, shuffled, "
     "other_item, markers; name some of these"),
    ("--blind", "--blind: interventions are compared with kept latents alone; leave it out"),
    ("--baseline x", "--baseline: interventions are compared with kept latents alone; leave it out"),
    ("--latents off", "--latents off: nothing that is always there to intervene on; use mean, sample:T or vote:N"),
    ("--latents optional", "--latents optional: nothing that is always there to intervene on; use mean, sample:T or "
     "vote:N"),
    ("--latents markers", "--latents markers: nothing that is always there to intervene on; use mean, sample:T or "
     "vote:N"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), REFUSED, ids=[flags for flags, _ in REFUSED])
def test_what_cannot_be(export_of, data: Path, tmp_path: Path, monkeypatch, capsys, flags: str, line: str) -> None:
    monkeypatch.setattr(Answerer, "__init__", lambda *_: pytest.fail("the model was loaded"))
    assert refused(capsys, main, *words(export_of("amvl"), data, tmp_path / "out", *flags.split(" "))) == line
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_models_without_latents(export_of, tiny_backbone: Path, data: Path, tmp_path: Path, capsys) -> None:
    for folder in (export_of("sft"), tiny_backbone):
        text = refused(capsys, main, *words(folder, data, tmp_path / "out"))
        assert text == f"{folder}: this model has no latents to intervene on; name one that has"


def test_a_benchmark_that_is_none(capsys) -> None:
    assert refused(capsys, main, "blinc", "--checkpoint", "x") == (
        "blinc: not one of shards, blink, visual_puzzles, tsv; name one, or none"
    )


def test_too_few_items(export_of, data: Path, tmp_path: Path, capsys) -> None:
    assert call(main, *words(export_of("amvl"), data, tmp_path, "--limit", 1)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: other_item: 1 item is too few to exchange latents; raise --limit"


@pytest.mark.parametrize("word", ["", "shards", "blink", "visual_puzzles", "tsv"])
def test_options_are_those_of_the_benchmarks_own_command(word: str) -> None:
    """Also behind what the launcher puts first."""
    for before in ([], ["--local_rank=1"]):
        command, rest = run_interventions.chosen([*before, *[word][: len(word)], "--checkpoint", "x"])
        assert command.__name__ == f"eval.run_{word or 'shards'}" and rest == [*before, "--checkpoint", "x"]
    parsed = vars(run_interventions.parser(command).parse_args([*rest, "--data", "d", "--arms", "kept"]))
    own = vars(command.parser().parse_args([*rest, "--data", "d"]))
    assert parsed.pop("arms") == "kept" and parsed == own


def test_help(capsys) -> None:
    for some, wanted in ((("--help",), "--train"), (("blink", "--help"), "--split")):
        assert call(main, *some) == 0
        text = capsys.readouterr().out
        assert f"{', '.join(ARMS)}; default: all" in " ".join(text.split())
        assert wanted in text and "--arms" in text and text.startswith("usage: eval/run_interventions.py ")


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Every model that is loaded from now on is changed so."""
    load = Model.load

    def install(change: Callable) -> None:
        def loaded(self: Model, settings: Settings):
            model = load(self, settings)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(Model, "load", loaded)

    return install


ITEMS, SLOTS = "as that mean hardly differs from item to item", "as an item's slots hardly differ"
NOTHING = "as that mean is nearly zero"


def not_run(same: int, why: str, n: int = N) -> str:
    return f"no effect, not run: z of {same} of {n} items stays the prior's mean to 0.1%, {why}"


def alike(name: str, k: int = K) -> dict[str, Tensor]:
    """Means of ten items that are alike in one way or another."""
    torch.manual_seed(0)
    one, many = torch.randn(k, D), torch.randn(10, k, D)
    means = {
        "none": many,
        "items": one.expand(10, k, D) * (1 + 1e-5 * torch.randn(10, 1, 1)),
        "slots": many[:, :1].expand(10, k, D) + 1e-5 * torch.randn(10, k, D),
        "zero": torch.zeros(10, k, D),
        "two items' slots": torch.where(torch.arange(10).view(-1, 1, 1) < 2, many[:, :1], many),
        "an item's slots": torch.where(torch.arange(10).view(-1, 1, 1) < 1, many[:, :1], many),
    }
    return {f"item {number}": mean for number, mean in enumerate(means[name])}


@pytest.mark.parametrize(
    ("how", "k", "wanted"),
    [
        ("none", K, {}),
        ("none", 1, {}),
        ("items", K, {arm: (10, ITEMS) for arm in ("matched_noise", "data_mean", "other_item")}),
        ("slots", K, {"first_slot": (10, SLOTS), "shuffled": (10, SLOTS)}),
        ("an item's slots", K, {}),
        ("two items' slots", K, {"first_slot": (2, SLOTS), "shuffled": (2, SLOTS)}),
        ("zero", K, {arm: (10, ITEMS) for arm in ("matched_noise", "data_mean", "other_item")}
         | {"zero": (10, NOTHING), "first_slot": (10, SLOTS), "shuffled": (10, SLOTS)}),
    ],
)  # fmt: skip
def test_what_changes_nothing(how: str, k: int, wanted: dict[str, tuple[int, str]]) -> None:
    """Is told apart for each arm, by how far z moves: a zero by the length of the mean, whatever it is."""
    means = alike(how, k)
    for arm in GIVEN:
        if arm in ONE_SLOT and k == 1:
            continue
        moved = moved_by(replacement(arm, list(means), means, 0), means)
        why = wanted.get(arm)
        said = unchanged(arm, moved)
        assert (said and f"no effect, not run: {said}") == (why and not_run(*why, n=10)), arm
        assert len(moved) == 10 and int((moved <= SAME).sum()) >= (why[0] if why else 0)
        if arm == "zero" and not why:
            assert moved.allclose(torch.ones(10))


def test_a_prior_that_knows_no_items_apart(export_of, data: Path, tmp_path: Path, changed, capsys) -> None:
    """One mean for all items and slots: another item's is one's own, noise of its spread is none, and there is no other
    order. What can be run is, and is told of, and the command fails."""

    def collapsed(model: Any) -> None:
        model.prior.outer.weight.zero_()
        model.prior.outer.bias.normal_()

    changed(collapsed)
    assert call(main, *words(export_of("amvl"), data, tmp_path / "out")) == 2
    said = capsys.readouterr()
    wanted = {
        "matched_noise": not_run(N, ITEMS),
        "data_mean": not_run(N, ITEMS),
        "first_slot": not_run(N, SLOTS),
        "shuffled": not_run(N, SLOTS),
        "other_item": not_run(N, ITEMS),
    }
    assert said.err.splitlines()[-1] == "error: " + "; ".join(f"{arm}: {why}" for arm, why in wanted.items())
    arms = table_of(tmp_path / "out")["arms"]
    assert {arm: one["no_effect"] for arm, one in arms.items()} == dict.fromkeys(ARMS) | wanted
    for arm, one in arms.items():
        assert (one["accuracy"] is None) == (not (tmp_path / "out" / arm).exists()) == (arm in wanted)
    assert f"- other_item: {not_run(N, ITEMS)}" in (tmp_path / "out/interventions.md").read_text()
    assert arms["unit_noise"]["flips"] is not None and arms["zero"]["moved"] == pytest.approx(1)


@pytest.fixture(scope="module")
def one_slot(export_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with the first slot alone."""
    folder = Path(shutil.copytree(export_of("amvl"), tmp_path_factory.mktemp("one_slot") / "export"))
    facts = json.loads((folder / "latent.json").read_text())
    (folder / "latent.json").write_text(
        json.dumps(facts | {"latent": facts["latent"] | {"slots": 1}, "id": "one slot"})
    )
    weights = load_file(folder / "latent.safetensors")
    first = {name: value[:1].clone() if name.endswith("table.weight") else value for name, value in weights.items()}
    save_file(first, folder / "latent.safetensors")
    return folder


def test_a_model_of_one_slot(one_slot: Path, data: Path, tmp_path: Path, capsys) -> None:
    """Has no other order, and its first slot is all that it has: no failure, as there is nothing to see."""
    assert call(main, *words(one_slot, data, tmp_path / "out")) == 0
    left_out = (
        "shuffled: left out, as one slot alone has no other order; first_slot: left out, as one slot alone is the"
    )
    assert capsys.readouterr().out.splitlines()[0] == f"{left_out} first"
    arms = table_of(tmp_path / "out")["arms"]
    assert list(arms) == [arm for arm in ARMS if arm not in ONE_SLOT]
    assert not any(one["no_effect"] for one in arms.values())
    assert refused(capsys, main, *words(one_slot, data, tmp_path / "no", "--arms", "shuffled")) == (
        "--arms shuffled: one slot alone has no other order; use "
        "kept,removed,zero,unit_noise,matched_noise,data_mean,other_item,markers"
    )
    assert call(main, *words(one_slot, data, tmp_path / "out", "--arms", "zero,data_mean")) == 0
    assert "left out" not in capsys.readouterr().out, "these were asked for"


def test_latents_that_do_not_reach_the_answer(export_of, tmp_path: Path, changed) -> None:
    """The injection loses z: no log-likelihood moves, and that is no finding but a failure. Without the slots, or the
    marks, they do."""

    def deaf(model: Any) -> None:
        model.injection.project.weight.zero_()

    changed(deaf)
    benchmark = blink.read(write_blink(tmp_path / "BLINK", sizes={"Counting": 4, "Jigsaw": 2}, picture=(48, 40)))
    with pytest.raises(InterventionError) as caught:
        intervene(*asked(export_of("amvl"), benchmark, tmp_path / "out", mode="score"))
    why = "no effect: every log-likelihood stays what it was to 0.0001 nats, so latents do not reach the answer"
    assert str(caught.value) == "; ".join(f"{arm}: {why}" for arm in GIVEN)
    arms = table_of(tmp_path / "out")["arms"]
    assert all((one["no_effect"] == why) == (arm in GIVEN) for arm, one in arms.items())


def test_items_that_cannot_be_run(export_of, data: Path, tmp_path: Path) -> None:
    """Fail in every arm, and take nothing from the others."""
    benchmark = tsv.read(data, None, None)
    broken = replace(benchmark.items[3], images=(b"no picture",))
    one = replace(benchmark, items=(*benchmark.items[:3], broken, *benchmark.items[4:]))
    found = intervene(*asked(export_of("amvl"), one, tmp_path / "out"))
    assert found
    for arm in ARMS:
        failed = [result.key for result in read_results(tmp_path / "out" / arm / "results.jsonl") if result.failed]
        assert failed == [broken.key], arm
    nothing = replace(benchmark, items=(broken,))
    with pytest.raises(InterventionError, match=r"no item can be run: .*not a whole picture"):
        intervene(*asked(export_of("amvl"), nothing, tmp_path / "none"))


# ---- Slurm ----


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("runs/a --limit 5", "eval/run_shards.py --checkpoint runs/a --limit 5"),
        ("blink runs/a --data x", "eval/run_blink.py --checkpoint runs/a --data x"),
        ("interventions runs/a --arms removed", "eval/run_interventions.py --checkpoint runs/a --arms removed"),
        ("interventions tsv runs/a", "eval/run_interventions.py tsv --checkpoint runs/a"),
        ("interventions blink", "error: interventions of which run? give runs/NAME after it"),
        ("interventions --arms removed", "error: interventions of which run? give runs/NAME after it"),
        ("tsv", "error: tsv of which run? give runs/NAME after it"),
    ],
)
def test_words_of_the_slurm_script(tmp_path: Path, arguments: str, wanted: str) -> None:
    """What it runs, where a job runs it."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    place = {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "slurm/eval.sh", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True)
    assert (done.stdout + done.stderr).strip() == wanted
    assert done.returncode == (2 if wanted.startswith("error") else 0)
