"""The command: files, the MLflow run of the training, the gap of every step, and what cannot be diagnosed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from data import shards
from data.processor import Processor
from data.sample import Sample, Text
from data.shards import WriteOptions
from eval.diagnose import main
from eval.diagnosis.arms import GIVEN_ANSWER, KEPT, MARKERS, ORACLE, REMOVED
from eval.diagnosis.collect import Collector
from eval.diagnosis.diagnosis import metrics, spread
from eval.diagnosis.findings import Findings, Gap
from eval.replacements import GIVEN
from model.build import load_export
from model.export import write
from tests.eval.commands import call, lines_of, refused
from trainer.tracking import Tracker, TrackingConfig, store_uri

N, K, D = 7, 3, 8  # items that are asked for; slots and width of the exports
FILES = {"diagnosis.json", "items.jsonl", "diagnosis.md", "diagnosis.html"}
NAME = f"shards,diagnosis,limit={N}"
NOT_REACHED = "every log-likelihood stays what it was to 0.0001 nats, so latents do not reach the answer"


class Run(NamedTuple):
    folder: Path
    mlflow_id: str
    mlflow_uri: str

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.mlflow_uri)


@pytest.fixture(scope="module")
def trained(export_of: Callable[[str], Path], tiny_shards: Path, tmp_path_factory) -> Run:
    """A run with two exports, as training leaves it."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    folder = runs / "one"
    (folder / "export").mkdir(parents=True)
    for step, objective in ((900, "ntp"), (1000, "amvl")):
        (folder / "export" / f"step_{step}").symlink_to(export_of(objective))
    config = f"data:\n  train: [{{folder: {tiny_shards}}}]\n  heldout: {tiny_shards}\ntracking:\n  uri: null\n"
    (folder / "config.yaml").write_text(config)
    tracker = Tracker(TrackingConfig(patience=60), runs, "one", folder)
    tracker.finish()
    uri = store_uri(TrackingConfig(), runs)
    (folder / "summary.json").write_text(json.dumps({"mlflow_run_id": tracker.run_id, "mlflow_uri": uri}))
    assert tracker.run_id
    return Run(folder, tracker.run_id, uri)


@pytest.fixture(scope="module")
def diagnosed(trained: Run) -> Path:
    """The results of its newest step, and with them the gap of the other."""
    assert call(main, "--checkpoint", trained.folder, "--limit", N, "--history") == 0
    return trained.folder / "eval/step_1000" / NAME


def findings_of(out: Path) -> Findings:
    assert {path.name for path in out.iterdir()} == FILES
    return Findings.model_validate_json((out / "diagnosis.json").read_text())


def test_every_file_is_there(diagnosed: Path, tiny_shards: Path) -> None:
    found, items = findings_of(diagnosed), lines_of(diagnosed / "items.jsonl")
    samples = {s.key: s for s in spread(list(shards.read_set(tiny_shards)), N)}
    left_out = found.facts["left_out"]
    assert len(items) + len(left_out) == len(samples) == N and found.n == len(items) >= N - 1
    assert {item["key"] for item in items} <= set(samples)
    assert (found.slots, found.width) == (K, D)
    assert (found.facts["step"], found.facts["limit"], found.facts["seed"]) == (1000, N, 0)
    assert found.facts["data"] == str(tiny_shards) and found.facts["objective"]["name"] == "amvl"
    assert set(found.use) == {KEPT, *GIVEN, ORACLE, MARKERS, REMOVED} and list(found.by_slots) == [1, 2]
    assert found.leakage and found.verdicts and found.inputs
    assert all(arm.no_effect is None for arm in found.use.values())
    page = (diagnosed / "diagnosis.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and found.verdicts[0].question in page
    assert found.verdicts[0].question in (diagnosed / "diagnosis.md").read_text()


def test_items_are_what_the_numbers_rest_on(diagnosed: Path, tiny_shards: Path) -> None:
    found, items = findings_of(diagnosed), lines_of(diagnosed / "items.jsonl")
    samples = {s.key: s.text for s in shards.read_set(tiny_shards)}
    for item in items:
        assert item["label"] == samples[item["key"]].answer and item["label"] not in item["shown"]
        assert set(item["answers"]) == set(item["nats"]) > set(found.use)
        assert sum(arm.startswith(GIVEN_ANSWER) for arm in item["answers"]) == len(item["shown"])
    for name, arm in found.use.items():
        assert arm.accuracy.value == pytest.approx(sum(i["answers"][name] == i["label"] for i in items) / len(items))
        changes = [item["nats"][name] - item["nats"][KEPT] for item in items]
        assert arm.nats.value == pytest.approx(sum(changes) / len(items), abs=1e-5)
    nats = [item["nats"]["posterior"] for item in items]
    assert found.gap.sources["posterior"].nats.value == pytest.approx(sum(nats) / len(items), abs=1e-5)


def test_the_run_in_mlflow_has_the_numbers(diagnosed: Path, trained: Run) -> None:
    logged, name = metrics(findings_of(diagnosed), NAME), f"eval/shards_diagnosis_limit_{N}"
    assert {f"{name}/leakage/rate", f"{name}/gap/mean", f"{name}/use/removed/change"} <= set(logged)
    client = trained.client
    assert client.get_run(trained.mlflow_id).data.metrics == pytest.approx(logged)
    place = f"eval/step_1000/{NAME}"
    files = {file.path for file in client.list_artifacts(trained.mlflow_id, place)}
    assert files == {f"{place}/{file}" for file in FILES}


def test_the_gap_of_every_step(diagnosed: Path, trained: Run) -> None:
    """Those of the other step beside it, in MLflow at their own step, and on the page."""
    path = trained.folder / "eval/step_900" / NAME / "gap.json"
    earlier = Gap.model_validate(json.loads(path.read_text())["gap"])
    now = findings_of(diagnosed).gap
    assert earlier.mean and now.mean and earlier.sources["posterior"] != now.sources["posterior"]
    history = trained.client.get_metric_history(trained.mlflow_id, f"eval/shards_diagnosis_limit_{N}/gap/mean")
    assert {entry.step: entry.value for entry in history} == {
        900: pytest.approx(earlier.mean.value),
        1000: pytest.approx(now.mean.value),
    }
    assert "900" in (diagnosed / "diagnosis.md").read_text()


def test_a_step_that_is_known_is_not_measured_again(diagnosed: Path, trained: Run, capsys, tmp_path: Path) -> None:
    """And a whole diagnosis of it comes to the same gap."""
    path = trained.folder / "eval/step_900" / NAME / "gap.json"
    before, written = path.read_bytes(), os.stat(path).st_mtime_ns
    capsys.readouterr()
    common = ("--checkpoint", trained.folder, "--limit", N)
    assert call(main, *common, "--step", 900, "--out", tmp_path / NAME, "--history") == 0
    said = capsys.readouterr().out
    assert "the gap alone" not in said and f"page: {tmp_path / NAME / 'diagnosis.html'}" in said
    assert (path.read_bytes(), os.stat(path).st_mtime_ns) == (before, written)
    whole, alone = findings_of(tmp_path / NAME), Gap.model_validate(json.loads(before)["gap"])
    assert whole.facts["step"] == 900 and whole.gap.mean and alone.mean
    assert whole.gap.mean.value == pytest.approx(alone.mean.value, abs=1e-5)


def test_without_a_posterior(export_of, tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--checkpoint", export_of("deterministic"), "--data", tiny_shards, "--limit", 4)
    assert call(main, *arguments, "--out", tmp_path / "out") == 0
    found = findings_of(tmp_path / "out")
    assert found.leakage is None and found.gap.mean is None and "posterior" not in found.gap.sources
    assert ORACLE not in found.use and found.use[REMOVED] and found.geometry.sigma_posterior is None
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["leakage"] is None
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    assert all(verdict.question in page for verdict in found.verdicts) and len(found.verdicts) > 3


def test_latents_that_do_not_reach_the_answer(export_of, tiny_shards, processor: Processor, tmp_path, capsys) -> None:
    """All is written, and then it is told of, with exit code 2."""
    model = load_export(export_of("amvl"))
    torch.nn.init.zeros_(model.injection.project.weight)
    export = write(model, model.state_dict(), processor, {"name": "amvl"}, tmp_path / "export")
    capsys.readouterr()
    out = tmp_path / "out"
    assert call(main, "--checkpoint", export, "--data", tiny_shards, "--limit", 4, "--out", out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    found = findings_of(out)
    assert found.use[ORACLE].no_effect == NOT_REACHED and "oracle" not in line, "a posterior may agree with the prior"
    for name in GIVEN:
        assert found.use[name].no_effect == NOT_REACHED and f"{name}: no effect: {NOT_REACHED}" in line
        assert found.use[name].change.value == found.use[name].flips.value == 0
    assert found.use[REMOVED].no_effect is found.use[MARKERS].no_effect is None, "marks and slots do reach it"
    assert len(lines_of(out / "items.jsonl")) == found.n


@pytest.mark.parametrize("limit", [0, 1])
def test_one_item_is_too_few(export_of, tiny_shards: Path, capsys, limit: int) -> None:
    text = refused(capsys, main, "--checkpoint", export_of("amvl"), "--data", tiny_shards, "--limit", limit)
    assert text == f"--limit {limit}: two items at least are needed; raise it"


@pytest.mark.parametrize("objective", ["sft", "pause"])
def test_a_model_without_z(export_of, tiny_shards: Path, tmp_path: Path, capsys, objective: str) -> None:
    export = export_of(objective)
    arguments = ("--checkpoint", export, "--data", tiny_shards, "--out", tmp_path / "out")
    text = refused(capsys, main, *arguments)
    assert text.startswith(f"{export}: has no z to diagnose") and not (tmp_path / "out").exists()


def test_an_export_outside_a_run_needs_its_set(export_of, capsys) -> None:
    export = export_of("amvl")
    text = refused(capsys, main, "--checkpoint", export)
    assert text == f"{export}: stands outside a run, so its data.heldout is not known; name the set with --data"


def test_too_many_tokens_for_the_memory(export_of, tiny_shards, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Collector, "_believe", full)
    words = ("--checkpoint", export_of("amvl"), "--data", tiny_shards, "--out", tmp_path, "--tokens", 4000)
    assert refused(capsys, main, *words).startswith("--tokens 4000: more than the memory holds (CUDA out of memory.")


def test_a_set_whose_answers_have_no_others(export_of, tmp_path: Path, capsys) -> None:
    """Nothing can be chosen between."""

    def alone(number: int) -> Sample:
        return Sample(
            key=f"s{number}", text=Text(question="How many?", answer="one", task=f"t{number}", source="tests")
        )

    shards.write([alone(n) for n in range(3)], tmp_path / "set", WriteOptions(per_shard=3))
    text = refused(capsys, main, "--checkpoint", export_of("amvl"), "--data", tmp_path / "set")
    assert text.startswith("0 of 3 items can be diagnosed") and "no other answer than 'one' is known" in text


def test_a_folder_that_cannot_be_made(export_of, tiny_shards: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("--checkpoint", export_of("amvl"), "--data", tiny_shards, "--limit", 2)
    assert call(main, *arguments, "--out", tmp_path / "file" / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    text = line.removeprefix("error: ")
    assert text.startswith(f"{tmp_path / 'file' / 'out'}: cannot be made (") and text.endswith("name another --out")


def test_samples_are_spread_over_the_set() -> None:
    numbers = list(range(10))
    assert spread(numbers, 5) == [0, 2, 4, 6, 8]  # type: ignore[arg-type, comparison-overlap]
    assert spread(numbers, 3) == [0, 3, 6]  # type: ignore[arg-type, comparison-overlap]
    assert spread(numbers, 500) == numbers  # type: ignore[arg-type, comparison-overlap]
