"""Train a latent vision-language model:  deepspeed trainer/main.py CONFIG.yaml [dotted.key=value ...]"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import Config

# What the launcher would set: without it, one rank on its own.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="trainer/main.py",
        description="Train a vision-language model that reasons in latent slots (AMVL), under DeepSpeed ZeRO-3.",
        epilog="Start it with `deepspeed trainer/main.py ...`; --dry-run and --print-config run under plain python.",
    )
    parser.add_argument("config", type=Path, help="YAML file, e.g. configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="dotted.key=value", help="e.g. objective.name=elbo train.steps=500"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build the model without weights, read one batch, say whether it fits"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration")
    where = parser.add_argument_group("where a dry run would be (default: this machine)")
    where.add_argument("--gpus", type=int, help="how many GPUs")
    where.add_argument("--memory", help="of each, e.g. 80GiB")
    where.add_argument("--gpu", help="kind: a100, h100, h200")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()
    # Imported only now, so that --help answers at once.
    from data.sample import UserError
    from trainer import config as configuration

    try:
        config = configuration.load(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(config.to_yaml(), end="")
        elif arguments.dry_run:
            from trainer.plan import dry_run, target_of

            for line in dry_run(config, target_of(arguments)):
                print(line)
        else:
            run(config)
    except UserError as error:
        # What every rank finds, rank 0 says: the others leave it the time to, and the launcher then ends them.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(config: "Config") -> None:
    """Train from the newest checkpoint of the run folder, or from the start, and export the end."""
    import deepspeed
    import deepspeed.comm as dist

    from data.pipeline import packs_of
    from model.batch import cost
    from model.build import load_processor, markers_of
    from trainer import checkpoint, finish, loop
    from trainer.engine import build
    from trainer.report import Reporter
    from trainer.tracking import Tracker

    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    deepspeed.init_distributed()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    checkpoint.refuse_other(config)
    last = checkpoint.agreed(config.run.path)
    facts = checkpoint.facts_of(last) if last else {}
    if last and finish.is_finished(config):
        if rank == 0:
            print(f"{config.run.path}: all {config.train.steps} steps are done; delete the folder to train again")
        return
    processor = load_processor(config.model)
    recipe, slots = config.objective.recipe, config.latent.slots
    measure = partial(cost, recipe=recipe, slots=slots)
    quarantine = config.run.path / "quarantine"
    packs = packs_of(
        config.data, processor.encode, measure, config.train.tokens, config.run.seed, rank, ranks, quarantine
    )
    if last:
        checkpoint.restore_stream(last, packs)
    packs.prime()
    engine = build(config)
    if last:
        checkpoint.restore_engine(last, engine)
    progress = checkpoint.Progress(**facts.get("progress", {}))
    tracker = None
    if rank == 0:
        checkpoint.claim(config)
        backbone = engine.module.backbone
        print(f"attention: {backbone.attention}; of the vision tower: {backbone.vision_attention}")
        print(processor.describe())
        print(f"{config.run.path}: {ranks} ranks, step {progress.step} of {config.train.steps}")
        tracker = Tracker(config.tracking, config.run.folder, config.run.name, facts.get("mlflow_run_id"))
        tracker.parameters(config.model_dump(mode="json") | {"ranks": ranks}, [config.run.path / "config.yaml"])
    reporter = Reporter(config, tracker, ranks, progress.step)
    try:
        loop.train(config, engine, packs, markers_of(processor), progress, reporter)
        # The others are done: an export may take longer than they would wait for rank 0.
        dist.destroy_process_group()
        if tracker:
            finish.finish(config, progress, tracker, ranks)
    except BaseException:
        reporter.close("FAILED")
        raise


if __name__ == "__main__":
    main()
