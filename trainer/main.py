"""Train a latent vision-language model:  deepspeed trainer/main.py CONFIG.yaml [dotted.key=value ...]"""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from trainer.signals import Stop


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
    trains = not (arguments.print_config or arguments.dry_run)
    stop = Stop() if trains else None  # before the imports that take seconds, and that --help does without
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
            assert stop is not None
            from trainer.run import run

            leave(run(config, stop))
    except UserError as error:
        # What every rank finds, rank 0 says: the others leave it the time to, and the launcher then ends them.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
            if stop and stop.reason:
                leave(2)
        print(f"error: {error}", file=sys.stderr)
        leave(2)
    except Exception:
        traceback.print_exc()
        leave(1)


def leave(code: int) -> None:
    """End this process now: at the end of the interpreter, backends wait for ranks that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
