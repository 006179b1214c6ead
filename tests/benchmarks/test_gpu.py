"""The GPU benchmark's code runs, on the CPU with a small model; what it must refuse to time, it refuses."""

import gc
import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_models
from benchmarks.gpu_cases import Case, measure
from benchmarks.gpu_models import TINY
from model.attention import SDPA, BackEnd
from tests.attention import DenseKernel

ROW = ["case", "ours", "peer", "peer_name", "ratio", "unit"]


class OffKernel(DenseKernel):
    """Wrong in the last key, as a mask off by one is."""

    def forward(self, q, k, v, spans, scale):
        return super().forward(q, k, torch.cat([v[:-1], v[-1:] + 1]), spans, scale)


@pytest.fixture
def with_varlen(monkeypatch: pytest.MonkeyPatch):
    """A function that lets a kernel in float64 stand in for the fused one."""

    def use(kernel: DenseKernel) -> None:
        varlen = BackEnd("varlen", "in float64, for tests", kernel)
        for module in (gpu_checks, gpu_models):
            monkeypatch.setattr(module, "choose", lambda name, *_: varlen if name == "varlen" else SDPA)

    return use


@pytest.fixture(scope="module")
def alone():
    """A process group of this process."""
    assert gpu.obstacle_to_zero3() is None
    yield
    torch.distributed.destroy_process_group()


def live_bytes() -> int:
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}.values())


def test_it_runs(alone, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    circumstances, *kept = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert kept == rows
    assert circumstances["liger-kernel"]
    assert all(list(row)[:6] == ROW for row in rows)
    steps = {row["case"]: row for row in rows if "tokens_per_s" in row}
    for case in gpu.cases(["sdpa"], liger=False, zero3=True):
        sft, amvl = (steps[f"{objective}, {case}"] for objective in ("sft", "amvl"))
        assert amvl["peer"] == sft["ours"]
        assert amvl["ratio"] == pytest.approx(amvl["ours"] / sft["ours"])
    assert sum("ZeRO-3" in case for case in steps) == 2 * 3


def test_no_case_starts_when_the_time_is_spent(alone, capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--tiny", "--seconds", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    left = [row["case"] for row in rows if row.get("note") == "left out: the time is spent"]
    assert left == [str(case) for case in gpu.cases(["sdpa"], liger=False, zero3=True)]


def test_a_case_under_deepspeed_leaves_no_memory_behind(alone):
    before = live_bytes()
    measure(TINY, Case("3B", "sdpa", "half", liger=False, zero3=True))
    assert live_bytes() - before < 2**16


def test_without_memory_there_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("benchmarks.gpu_cases.batch_of", full)
    rows = measure(TINY, Case("7B", "sdpa", "no", liger=False))
    assert [(row["ours"], row["note"]) for row in rows] == [(None, "out of memory")] * 2


def test_without_deepspeed_its_cases_are_left_out():
    with_deepspeed, without = (gpu.cases(["flash", "varlen", "sdpa"], True, zero3) for zero3 in (True, False))
    assert without == [case for case in with_deepspeed if not case.zero3]
    assert with_deepspeed[0] == Case("7B", "flash", "half", liger=True)
    plain = {(c.back_end, c.recomputed, c.liger) for c in without}
    assert len(plain) >= 3 * 2 * 2 + 4, "every back end with all and no layers recomputed, with liger and without"


def test_back_ends_that_agree_pass(with_varlen):
    with_varlen(DenseKernel())
    rows = gpu_checks.layouts_agree(TINY, ["varlen", "sdpa"], 3) + gpu_checks.models_agree(TINY, ["varlen", "sdpa"])
    rows += gpu_checks.attention_alone(TINY, ["varlen", "sdpa"])
    assert {row["case"].partition(",")[0] for row in rows} == {"varlen", "sdpa", "one mask"}


@pytest.mark.parametrize(
    "check",
    [
        lambda names: gpu_checks.layouts_agree(TINY, names, 3),
        lambda names: gpu_checks.models_agree(TINY, names),
        lambda names: gpu_checks.attention_alone(TINY, names),
    ],
)
def test_a_back_end_that_is_wrong_stops_everything(with_varlen, check):
    with_varlen(OffKernel())
    with pytest.raises(gpu_checks.DisagreementError, match="varlen"):
        check(["varlen", "sdpa"])
