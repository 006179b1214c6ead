"""What the commands run_blink.py, run_visual_puzzles.py, run_tsv.py, run_shards.py and run_interventions.py share."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.benchmarks.item import Benchmark, Item
    from eval.models import Model
    from eval.request import Request
    from eval.settings import Settings

CHOICES = {"dtype": ("auto", "fp32", "bf16"), "mode": ("generate", "score")}
LATENTS = (
    "mean (default), sample:T, vote:N[:T] (N draws, of T times the spread), optional[:T] (where the model writes the "
    "start mark itself), off, or markers (the marks alone)"
)
BACK_ENDS = ("auto", "flash", "varlen", "sdpa")


def parser(command: str, description: str, data: str | None) -> argparse.ArgumentParser:
    """Arguments of every command; `data` says what --data names (None: it may be left out)."""
    found = argparse.ArgumentParser(prog=f"eval/{command}.py", description=description)
    add = found.add_argument
    add("--checkpoint", type=Path, required=True, help="a run, a checkpoint or export of it, or a Hugging Face model")
    add("--step", type=int, metavar="N", help="of the run; default: its newest")
    # A shard set may be a URL, which is no path.
    kind, said = (str, "shard set; default: the run's data.heldout") if data is None else (Path, data)
    add("--data", type=kind, required=data is not None, help=said)
    add("--out", type=Path, help="folder of the results; default: eval/ in the run, or in runs/ without one")
    asked = found.add_argument_group("how it is asked")
    add = asked.add_argument
    add("--mode", choices=CHOICES["mode"], help="generate a reply and read it (default), or score the options")
    add("--latents", help=LATENTS)
    add("--prompt", help="one of the benchmark's; a wrong name lists them")
    add("--max-new-tokens", type=int, metavar="N", help="a reply is cut there")
    add("--temperature", type=float, metavar="T", help="of the tokens; default 0, the likeliest")
    add("--top-p", type=float, metavar="P", help="share of the probability that tokens are drawn from")
    add("--seed", type=int, metavar="N", help="of tokens and latents")
    add("--stop", action="append", metavar="TEXT", help="ends a reply; may be given several times")
    add("--min-pixels", type=int, metavar="N", help="smaller images are enlarged to this many; default: the model's")
    add("--max-pixels", type=int, metavar="N", help="larger images are shrunk to this many; default: the model's")
    add("--dtype", choices=CHOICES["dtype"], help="default auto: bf16 on a GPU, fp32 elsewhere")
    add("--attention", choices=BACK_ENDS, help="of the language model; default auto")
    add("--vision-attention", choices=BACK_ENDS, help="of the vision tower; default auto")
    read = found.add_argument_group("how it is read and compared")
    add = read.add_argument
    add("--rules", choices=("plain", "official"), default="plain", help="plain: as a careful reader would (default)")
    add("--judge", metavar="URL", help="OpenAI-compatible endpoint that is asked where no rule reads a reply")
    add("--judge-model", metavar="NAME", help="its model; the key comes from OPENAI_API_KEY")
    add("--blind", action="store_true", help="once more without the pictures, as a baseline")
    add("--baseline", type=Path, metavar="FOLDER", help="another evaluation of the same items to compare with")
    how = found.add_argument_group("how it is run")
    add = how.add_argument
    add("--tasks", metavar="NAME[,NAME]", help="these sub-tasks alone")
    add("--limit", type=int, metavar="N", help="about N items, spread over the benchmark")
    add("--tokens", type=int, metavar="N", help="of a batch, pictures counted; default 16384")
    add("--processes", type=int, metavar="N", help="that share the items; default: one per GPU")
    add("--zero3", action="store_true", help="under deepspeed: spread the weights over the ranks")
    add("--retry", action="store_true", help="run items again that could not be run before")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    return found


def main(
    arguments: argparse.Namespace,
    asked: "Callable[[argparse.Namespace], tuple[Benchmark, Model, Request]]",
    run: "Callable[[Benchmark, Model, Request], object] | None" = None,
) -> None:
    """Run what the arguments ask for, by default an evaluation; what a user can mend is one line, and exit code 2."""
    from data.sample import UserError
    from eval.evaluate import evaluate

    try:
        (run or evaluate)(*asked(arguments))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def found(arguments: argparse.Namespace) -> "Model":
    """The model that is evaluated. Of several ranks the first looks, as it may have to export it."""
    from eval import zero3
    from eval.models import find_model

    if not arguments.zero3:
        return find_model(arguments.checkpoint, arguments.step)
    zero3.join()
    return zero3.found_by_first(lambda: find_model(arguments.checkpoint, arguments.step))


def request(arguments: argparse.Namespace, benchmark: "Benchmark", **more: Any) -> "Request":
    """What was asked for; SettingsError names the flag that cannot be."""
    from eval.request import Request

    return Request(
        settings=settings(arguments),
        out=arguments.out,
        rules=arguments.rules,
        judge=_judge(arguments),
        with_blind=arguments.blind,
        baseline=arguments.baseline,
        only=_chosen(arguments, benchmark),
        selection=_selection(arguments),
        retry=arguments.retry,
        rank=int(os.environ.get("RANK", "0")) if arguments.zero3 else 0,
        **more,
    )


def settings(arguments: argparse.Namespace) -> "Settings":
    from pydantic import ValidationError

    from eval.settings import Settings, SettingsError

    given = {name: getattr(arguments, name) for name in Settings.model_fields if hasattr(arguments, name)}
    given.pop("blind", None)  # the flag asks for a second run
    given["stop"] = tuple(given.get("stop") or ()) or None
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: " if first["loc"] else ""
        raise SettingsError(f"{flag}{first['msg'].removeprefix('Value error, ')}") from error


def _judge(arguments: argparse.Namespace) -> Any:
    from eval.judge import JudgeConfig
    from eval.settings import SettingsError

    if bool(arguments.judge) != bool(arguments.judge_model):
        raise SettingsError("--judge and --judge-model belong together; give both or neither")
    if not arguments.judge:
        return None
    if not arguments.judge.startswith(("http://", "https://")):
        raise SettingsError(f"--judge {arguments.judge}: not a URL; e.g. http://localhost:8000/v1")
    return JudgeConfig(url=arguments.judge, model=arguments.judge_model)


def _selection(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Which items, in words, where that was asked for by hand."""
    asked = ((name, getattr(arguments, name, None)) for name in ("split", "tasks", "limit"))
    return tuple(f"{name}={value}" for name, value in asked if value not in (None, "val"))


def _chosen(arguments: argparse.Namespace, benchmark: "Benchmark") -> "Callable[[Item], bool] | None":
    """Which items --tasks and --limit leave."""
    from eval.request import spread
    from eval.settings import SettingsError

    if arguments.tasks is None and arguments.limit is None:
        return None
    there = {item.task for item in benchmark.items}
    tasks = set(arguments.tasks.split(",")) if arguments.tasks is not None else there
    if unknown := sorted(tasks - there):
        raise SettingsError(
            f"--tasks {unknown[0]}: {benchmark.name} has {', '.join(sorted(there))}; name some of these"
        )
    keys = [item.key for item in benchmark.items if item.task in tasks]
    if arguments.limit is not None:
        if arguments.limit < 1:
            raise SettingsError(f"--limit {arguments.limit}: below 1; give a number of items")
        keys = spread(keys, arguments.limit)
    chosen = set(keys)
    return lambda item: item.key in chosen
