"""Memory of a training step on the CPU: what the plan says (trainer/memory.py) against what the process takes.

    OMP_NUM_THREADS=1 python -m benchmarks.memory [--save]

A model of 27 million parameters in fp32 takes steps under ZeRO-3 on one rank and on two. Measured is the peak of the
resident memory (VmHWM of /proc/self/status, Linux) over two steps, beyond what the same process held before it built
the engine. By then a model of next to no weights has taken the same steps, so that libraries, threads and caches,
which are no tensors and no part of the plan, are there already and do not count. malloc is told to give memory back
at once. On two ranks the figure is rank 0's. One JSON object a line, `ratio` = planned / measured.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.record import RESULTS, Row, emit, row
from data.processor import Encoded
from data.sample import Sample, Text
from model.backbones import tiny
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.batch import Batch, Markers, collate, cost
from model.build import shape_only
from model.latent_vlm import LatentVLM, Weights
from trainer import config as configuration
from trainer.config import Config
from trainer.plan import Plan

ROOT = Path(__file__).parents[1]
VOCABULARY, LAYERS, STEPS = 1024, 8, 2
CASES: dict[str, dict[str, object]] = {
    "sft": {"objective.name": "sft"},
    "amvl": {},
    "amvl, all layers recomputed": {"model.checkpoint_layers": "all"},
    "amvl, half of the layers recomputed": {"model.checkpoint_layers": LAYERS // 2},
    "amvl, frozen tower": {"model.freeze_vision": True},
    "amvl, few tokens": {"train.tokens": 300},  # here the optimizer's step takes the most
    "amvl, one bucket of gradients": {"deepspeed.file": "configs/deepspeed/zero3.json"},
}
TWO_RANKS = ("amvl", "amvl, all layers recomputed", "amvl, few tokens")
MIB = 2**20
BUCKET = 1_000_000  # numbers; as small beside the model as DeepSpeed's 500 million are beside a large one
# Freed memory goes back to the system at once, so that the peak is that of what is alive.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def config_of(folder: Path, tokens: int, changes: dict[str, object]) -> Config:
    """The quickstart's configuration with a model of this benchmark."""
    values = {"model.folder": folder, "train.tokens": tokens, "train.precision": "fp32"}
    values |= {"deepspeed.file": folder.parent / "zero3.json"} | changes
    return configuration.load(ROOT / "configs/quickstart.yaml", [f"{key}={value}" for key, value in values.items()])


def save_model(folder: Path, width: int, layers: int) -> None:
    """Random weights of a size."""
    torch.manual_seed(0)
    config = tiny.config(VOCABULARY, width, layers, vision_layers=layers // 2)
    Qwen2_5VL.from_config(config).model.save_pretrained(folder)


def samples(model: LatentVLM, tokens: int) -> Iterator[Encoded]:
    """As many samples as fit a budget: prompts of several lengths with an image of several sizes."""
    generator = torch.Generator().manual_seed(0)

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    image = model.backbone.config.image_token_id
    while True:
        rows, columns, words = number(2, 6), number(2, 6), number(10, 60)
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        sample = Encoded(
            sample=Sample(key="memory", text=Text(question="?", answer="!", task="memory", source="memory")),
            prompt=torch.tensor([image] * rows * columns + [tiny.SPECIAL.index(tiny.START)] * words),
            answer=torch.full((number(1, 12),), tiny.SPECIAL.index(tiny.END)),
            pixels=torch.randn(int(grid.prod()), model.backbone.patch_width, generator=generator),
            grids=grid,
        )
        tokens -= cost(sample, model.recipe, model.config.slots)
        if tokens < 0:
            return
        yield sample


def batch_of(config: Config) -> Batch:
    """The micro-step that is measured, and planned for."""
    model = shape_only(config.model, config.latent, config.objective.recipe)
    markers = Markers(VOCABULARY - 2, VOCABULARY - 1)
    chosen = list(samples(model, config.train.tokens))
    return collate(chosen, model.recipe, model.config, model.backbone, markers)


def planned(config: Config, ranks: int) -> float:
    """Peak bytes of a rank, by the plan."""
    return Plan(config, batch_of(config), gpu=False).memory(ranks).peak


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process in memory now; VmHWM: at most, since the peak was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def measured(config: Config) -> int:
    """Peak bytes that building the engine and two steps add to this process."""
    import deepspeed.comm as dist

    from trainer.engine import build, take_step

    batch = batch_of(config)
    gc.collect()
    before = resident()
    engine = build(config)
    engine.train()
    gc.collect()
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    for _ in range(STEPS):
        take_step(engine, [(batch, Weights(1.0, 1.0, 1.0, 1.0))], config.objective.recipe.rounds)
    peak = resident("VmHWM")
    engine.destroy()
    return peak - before


def work(arguments: argparse.Namespace) -> None:
    """Measure cases one after the other; rank 0 writes {case: bytes}."""
    import deepspeed
    import deepspeed.comm as dist

    from trainer.run import ALONE

    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    deepspeed.init_distributed()
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        for case, changes in {"": {}, **json.loads(arguments.cases)}.items():
            folder = arguments.folder / ("model" if case else "nothing")
            found[case] = measured(config_of(folder, arguments.tokens if case else 300, changes))
    if dist.get_rank() == 0:
        (arguments.folder / "measured.json").write_text(json.dumps(found))


def compare(cases: dict[str, dict[str, object]], ranks: int, width: int = 512, tokens: int = 4000) -> list[Row]:
    """Planned and measured peaks, MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", width, LAYERS)
        save_model(folder / "nothing", 32, 2)
        zero = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())["zero_optimization"]
        settings = {"zero_optimization": zero | {"reduce_bucket_size": BUCKET}}
        (folder / "zero3.json").write_text(json.dumps(settings))
        more = ["--folder", name, "--tokens", str(tokens), "--cases", json.dumps(cases)]
        start: list[str] = [sys.executable, "-m"]
        if ranks > 1:
            start = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks), "--module"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | MALLOC | {"PATH": path, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([*start, "benchmarks.memory", *more], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        found: dict[str, int] = json.loads((folder / "measured.json").read_text())
        ours = {case: planned(config_of(folder / "model", tokens, changes), ranks) for case, changes in cases.items()}
    words = "" if ranks == 1 else f", {ranks} ranks"
    return [row(case + words, ours[case] / MIB, found[case] / MIB, "measured", "MiB") for case in cases]


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results/memory.jsonl")
    for hidden in ("--cases", "--local_rank"):  # of the process that measures
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cases:
        work(arguments)
        return
    rows = compare(CASES, 1)
    emit("memory", rows, None)
    rows += compare({case: CASES[case] for case in TWO_RANKS}, 2)
    emit("memory", rows, RESULTS if arguments.save else None, len(CASES))


if __name__ == "__main__":
    main()
