"""An export holds the weights of the ranks, is loaded again by us and by plain transformers, and is whole or absent."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from data.processor import Processor
from model import export as module
from model.backbones import tiny
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.build import ModelConfig, ModelError, load_export, shape_only
from model.export import check, write
from model.objective import RECIPES
from tests.refusal import refusal

ROOT = Path(__file__).parents[2]
ExportOf = Callable[[str], Path]
Call = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_backbone: Path, tiny_qwen3_vl: Path) -> Path:
    """Run folders qwen2_5_vl (fp32), qwen3_vl (bf16, tied, its tower frozen) and wide (87 million parameters, fp32)."""
    folder = tmp_path_factory.mktemp("runs")
    wide = Path(shutil.copytree(tiny_backbone, folder / "backbone", ignore=shutil.ignore_patterns("*.safetensors")))
    shape = tiny.config(len(AutoTokenizer.from_pretrained(wide)), width=768, layers=12)
    Qwen2_5VL.model_class._from_config(shape).save_pretrained(wide)
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29617"]
    command = [
        *launcher,
        "--module",
        "tests.model.checkpoints",
        folder,
        tiny_shards,
        tiny_backbone,
        tiny_qwen3_vl,
        wide,
    ]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run qwen2_5_vl, to damage."""
    return Path(shutil.copytree(runs / "qwen2_5_vl", tmp_path / "run"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line; returns what it prints last, the folder or the error."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        try:
            module.main()
            return capsys.readouterr().out.splitlines()[-1]
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.mark.parametrize("objective", ["sft", "pause", "deterministic", "amvl"])
def test_what_is_exported_is_loaded_again(
    export_of: ExportOf, objective: str, processor: Processor, tmp_path: Path
) -> None:
    model = load_export(export_of(objective))
    assert model.recipe == RECIPES[objective]
    again = load_export(write(model, model.state_dict(), processor, {"name": objective}, tmp_path / "again"))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


def test_plain_transformers_loads_the_backbone(export_of: ExportOf) -> None:
    plain = AutoModelForImageTextToText.from_pretrained(export_of("amvl")).state_dict()
    ours = load_export(export_of("amvl")).backbone.model.state_dict()
    assert set(plain) == set(ours) and all(torch.equal(value, ours[name]) for name, value in plain.items())


@pytest.mark.parametrize(
    "name,step,dtype", [("qwen2_5_vl", 1, "fp32"), ("qwen2_5_vl", 2, "fp32"), ("qwen3_vl", 1, "bf16")]
)
def test_an_export_holds_the_weights_of_the_ranks(
    runs: Path, call: Call, tmp_path: Path, name: str, step: int, dtype: str
) -> None:
    """Also in many files; those of a run in bf16 rounded as the ranks compute with them, its latent parts unrounded."""
    expected = torch.load(runs / name / f"weights_{step}.pt")
    options = ["--step", step, "--shard-size", "50KB", "--out", tmp_path / "out"]
    assert call(runs / name, *options) == str(tmp_path / "out")
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) > 5 and (tmp_path / "out" / "model.safetensors.index.json").is_file()
    backbone = {name: value for file in files for name, value in load_file(file).items()}
    assert {value.dtype for value in backbone.values()} == {module.DTYPES[dtype]}
    assert ("lm_head.weight" in backbone) == (name != "qwen3_vl")
    latent = load_file(tmp_path / "out" / "latent.safetensors")
    assert {value.dtype for value in latent.values()} == {torch.float32}

    ours = load_export(tmp_path / "out").state_dict()
    assert set(ours) == set(expected)
    assert all(torch.equal(value.to(expected[name].dtype), expected[name]) for name, value in ours.items())
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert plain.dtype == module.DTYPES[dtype]
    state = plain.state_dict()
    assert {module.BACKBONE + name for name in state} == set(expected) - set(latent)
    assert all(torch.equal(value, expected[module.BACKBONE + name]) for name, value in state.items())


def test_another_dtype_can_be_asked_for(runs: Path, call: Call, tmp_path: Path) -> None:
    """fp32 of a run in bf16 is what its optimizer keeps, not what its ranks compute with."""
    half = load_file(Path(call(runs / "qwen3_vl", "--out", tmp_path / "half")) / "model.safetensors")
    full = load_file(Path(call(runs / "qwen3_vl", "--dtype", "fp32", "--out", tmp_path / "full")) / "model.safetensors")
    assert json.loads((tmp_path / "full" / "config.json").read_text())["dtype"] == "float32"
    assert all(full[name].dtype == torch.float32 and torch.equal(full[name].bfloat16(), half[name]) for name in half)
    assert any(not torch.equal(full[name], half[name].float()) for name in half)


def test_the_newest_complete_checkpoint_is_exported_once(run: Path, call: Call) -> None:
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step_2", checkpoints / "step_3", ignore=shutil.ignore_patterns("complete.json"))
    shutil.copytree(checkpoints / "step_2", checkpoints / "step_4.part")
    (run / "export" / "step_2.part" / "left").mkdir(parents=True)
    out = run / "export" / "step_2"
    assert call(run) == str(out)
    assert [p.name for p in run.glob("export/*")] == ["step_2"] and not (out / "left").exists()
    facts = (out / "latent.json").read_bytes()
    assert call(run) == str(out) and (out / "latent.json").read_bytes() == facts
    for option in (["--dtype", "bf16"], ["--shard-size", "1MB"], ["--out", out]):
        assert call(run, *option).startswith(f"error: {out}: there already")


def test_the_config_of_the_checkpoint_goes_before_that_of_the_run(run: Path, call: Call) -> None:
    config = (run / "config.yaml").read_text()
    (run / "checkpoints" / "step_2" / "config.yaml").write_text(config)
    (run / "config.yaml").write_text("other: true")
    assert load_export(Path(call(run))).config.width == yaml.safe_load(config)["latent"]["width"]
    assert call(run, "--step", 1).startswith(f"error: {run}/checkpoints/step_1: the run's config cannot be used")


def change(run: Path, part: str, key: str, value: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[part][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


@pytest.mark.parametrize(
    "fault,place,told",
    [
        (shutil.rmtree, "", "no such folder"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml", "cannot be read"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml", "cannot be read"),
        (lambda run: (run / "config.yaml").write_text("a"), "config.yaml", "not the config"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "", "no complete checkpoint of step 1; there is none"),
        (lambda run: shutil.rmtree(run / "checkpoints/step_1"), "", "no complete checkpoint of step 1; there are 0, 2"),
        (lambda run: change(run, "latent", "width", 48), "checkpoints/step_1", "not a checkpoint of this config"),
        (lambda run: change(run, "objective", "name", "sft"), "checkpoints/step_1", "it is of another config"),
        (lambda run: change(run, "model", "folder", "/none"), "/none/config.json", "no such file"),
        *[
            (
                lambda run, kind=kind: cut(run / "checkpoints/step_1" / f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt"),
                f"checkpoints/step_1/zero_pp_rank_1_mp_rank_00_{kind}_states.pt",
                "cut short or not readable; export an older step with --step",
            )
            for kind in ("model", "optim")
        ],
        (
            lambda run: (run / "checkpoints/step_1/zero_pp_rank_1_mp_rank_00_model_states.pt").unlink(),
            "checkpoints/step_1",
            "holds 1 files of model states and 2 of optimizer states",
        ),
        (
            lambda run: [p.unlink() for p in run.glob("checkpoints/step_1/*rank_1_*.pt")],
            "checkpoints/step_1",
            "cannot be read (Expected 2",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    run: Path, call: Call, fault: Callable[[Path], object], place: str, told: str
) -> None:
    fault(run)
    line = call(run, "--step", 1)
    assert line.startswith(f"error: {run / place}: ") and told in line
    assert not list(run.glob("export/*"))


@pytest.mark.parametrize("fault", ["missing", "left over", "empty"])
def test_weights_of_another_model_are_refused(export_of: ExportOf, tiny_backbone: Path, fault: str) -> None:
    model = load_export(export_of("amvl"))
    expected = shape_only(ModelConfig(folder=tiny_backbone), model.config, model.recipe).state_dict()
    state = dict(model.state_dict())
    check(Path("step_1"), state, expected)
    name = "prior.outer.weight"
    if fault == "missing":
        del state[name]
    elif fault == "left over":
        state["extra"] = state[name]
    else:
        state[name] = state[name][:0]
    with pytest.raises(ModelError, match="extra" if fault == "left over" else name):
        check(Path("step_1"), state, expected)


@pytest.mark.parametrize("name", ["prior.outer.weight", "backbone.model.lm_head.weight"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused(
    export_of: ExportOf, processor: Processor, tmp_path: Path, name: str, value: str
) -> None:
    model = load_export(export_of("amvl"))
    state = dict(model.state_dict())
    state[name] = state[name].clone()
    state[name][1, 2] = float(value)
    text = refusal(lambda: write(model, state, processor, {}, tmp_path / "out"), ModelError)
    assert f"{name} is not finite" in text
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: the system refuses to write any further, likewise."""
    command = [sys.executable, "-m", "model.export", runs / "qwen2_5_vl", "--out", tmp_path / "out"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out: cannot be written (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["5", "0GB", "much"])
def test_a_file_size_without_sense(call: Call, tmp_path: Path, size: str) -> None:
    assert f"--shard-size: '{size}' is not a number and a unit" in call(tmp_path, "--shard-size", size)


def test_a_folder_that_cannot_be_written(runs: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert call(runs / "qwen2_5_vl", "--out", out).startswith(f"error: {out}: cannot be written (")


def test_a_model_larger_than_any_disk_is_refused_before_anything_is_written(
    export_of: ExportOf, processor: Processor, tmp_path: Path
) -> None:
    small, config = load_export(export_of("amvl")), tmp_path / "config.json"
    values = json.loads((export_of("amvl") / "config.json").read_text())
    values["text_config"]["vocab_size"] = 10**13
    config.write_text(json.dumps(values))
    model = shape_only(ModelConfig(folder=tmp_path), small.config, small.recipe)
    text = refusal(lambda: write(model, model.state_dict(), processor, {}, tmp_path / "out"), ModelError)
    needed = sum(4 * p.numel() for p in model.parameters())
    assert f"needs {needed + module.OTHER_FILES:,} bytes" in text
    assert list(tmp_path.iterdir()) == [config]


def most_memory(command: list[object]) -> int:
    """Bytes that a command held at most, other than pages of files, which the system takes back as it needs them."""
    process, peak = subprocess.Popen(list(map(str, command)), cwd=ROOT), 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.002)
    assert process.returncode == 0
    return peak


def test_the_whole_model_is_never_in_memory(runs: Path, tmp_path: Path) -> None:
    """Over what the export of a small model takes: a file of weights, and the tensor that is gathered."""
    base, peak = (
        most_memory(
            [sys.executable, "-m", "model.export", runs / name, "--shard-size", "20MB", "--out", tmp_path / name]
        )
        for name in ("qwen2_5_vl", "wide")
    )
    weights = sum(path.stat().st_size for path in (tmp_path / "wide").glob("*.safetensors"))
    print(f"{weights / 1e6:.0f} MB of weights, {base / 1e6:.0f} MB at least, {(peak - base) / 1e6:.0f} MB more")
    assert weights > 300e6
    assert peak - base < 0.4 * weights
