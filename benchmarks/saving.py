"""How long a checkpoint keeps training waiting, against DeepSpeed's own save, and how long until it is complete.

    OMP_NUM_THREADS=1 python -m benchmarks.saving [--save]

One rank under ZeRO-3 with its optimizer state. `in the background`: a copy in memory, which is written meanwhile;
`at once`: train.save_in_background=false. DeepSpeed's save_checkpoint (its torch engine) writes files without waiting
for the disk, ours does wait. The ways take turns; seconds, medians. One JSON object a line, `ratio` = ours / peer.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import ROOT, batch_of, config_of, save_model
from benchmarks.record import RESULTS, Row, emit, row
from model.latent_vlm import Weights

PEER = "deepspeed save_checkpoint"


def measure(folder: Path, width: int, layers: int, repeats: int) -> list[Row]:
    """Both rows."""
    import deepspeed

    from trainer.engine import build, take_step
    from trainer.run import ALONE
    from trainer.saver import Saver

    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    deepspeed.init_distributed()
    save_model(folder / "model", width, layers)
    (folder / "zero3.json").write_text((ROOT / "configs/deepspeed/zero3.json").read_text())
    config = config_of(folder / "model", 300, {"run.folder": folder / "runs", "train.keep_last": 1})
    engine = build(config)
    engine.train()
    take_step(engine, [(batch_of(config), Weights(1.0, 1.0, 1.0, 1.0))], 2)  # the optimizer has its state now
    ways = {"in the background": True, "at once": False}
    savers = {
        name: Saver(
            config.model_copy(update={"train": config.train.model_copy(update={"save_in_background": how})}), engine
        )
        for name, how in ways.items()
    }
    stalls: dict[str, list[float]] = {name: [] for name in (*ways, PEER)}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first warms up
        for number, (name, saver) in enumerate(savers.items()):
            saver.save(2 * turn + number + 1, {}, {})
            saver.finish()
            if turn:
                stalls[name].append(saver.seconds["stall"])
                whole[name].append(saver.seconds["whole"])
        start = time.perf_counter()
        engine.save_checkpoint(str(folder / "theirs"), tag=f"step_{turn % 2}", save_latest=False)
        if turn:
            stalls[PEER].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in stalls.items()}
    numbers = sum(p.ds_numel for p in engine.module.parameters())
    return [
        row(
            f"{name}, {numbers / 1e6:.0f} M parameters",
            *(middle[name], middle[PEER], PEER, "s"),
            until_complete=statistics.median(whole[name]),
        )
        for name in ways
    ]


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/saving.jsonl")
    parser.add_argument("--width", type=int, default=768, help="of the model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory(dir=ROOT) as folder, contextlib.redirect_stdout(sys.stderr):
        rows = measure(Path(folder), arguments.width, arguments.layers, arguments.repeats)
    emit("saving", rows, RESULTS if arguments.save else None)


if __name__ == "__main__":
    main()
