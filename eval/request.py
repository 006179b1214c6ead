"""An evaluation as it is asked for: what of it is the benchmark's or the model's own, and where it is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.sample import DataError
from eval.benchmarks.item import Benchmark, Item, Prompt
from eval.judge import JudgeConfig
from eval.models import Model
from eval.results import FREE
from eval.scores import Scores
from eval.settings import Settings, SettingsError

T = TypeVar("T")
MOST_TOKENS = 1024  # of a reply, where neither the settings nor the benchmark say


@dataclass(frozen=True)
class Request:
    """One evaluation as it was asked for."""

    settings: Settings
    out: Path | None = None  # default: beside the model
    rules: str = "plain"
    judge: JudgeConfig | None = None
    with_blind: bool = False  # once more without the pictures, as a baseline
    baseline: Path | None = None  # another evaluation's folder, compared with this one
    only: Callable[[Item], bool] | None = None  # which items to take
    selection: tuple[str, ...] = ()  # that in words, e.g. limit=40
    retry: bool = False  # items that could not be run before
    rank: int = 0  # of several, with zero3
    max_new_tokens: int = MOST_TOKENS  # of the benchmark
    summary: Callable[[Scores], dict[str, Any]] = lambda scores: {}  # more for the run's summary
    given: Mapping[str, str] | None = None  # packed z of every item by key, with latents given
    facts: Mapping[str, Any] = field(default_factory=dict)  # more that the numbers depend on, for the result
    text: Callable[[list[Item]], tuple[list[bool], dict[str, float]]] | None = None  # a text baseline, chance by task


class Folders(NamedTuple):
    """Where an evaluation writes: what the model said, and what is made of it anew each time."""

    said: Path
    read: Path


def settle(benchmark: Benchmark, model: Model, request: Request) -> Request:
    """The same with what is left to the benchmark and to the model filled into its settings."""
    settings = model.effective(request.settings)
    name = settings.prompt or next(iter(benchmark.prompts))
    if name not in benchmark.prompts:
        raise SettingsError(f"--prompt {name}: {benchmark.name} has {', '.join(benchmark.prompts)}; name one of these")
    if request.rules == "official" and benchmark.rules == "plain":
        raise SettingsError(f"--rules official: {benchmark.name} has none of its own; leave it out")
    filled: dict[str, Any] = {"prompt": name}
    if settings.mode == "generate":
        filled["max_new_tokens"] = settings.max_new_tokens or request.max_new_tokens
    return replace(request, settings=settings.model_copy(update=filled))


def prompt_of(benchmark: Benchmark, request: Request) -> Prompt:
    """Of a settled request."""
    assert request.settings.prompt
    return benchmark.prompts[request.settings.prompt]


def folders(benchmark: Benchmark, model: Model, request: Request, more: str = "") -> Folders:
    """`more`: what the folder's name ends with. What was said stays where it is, however it is read."""
    said = request.out or model.results / f"{label(benchmark, request)}{more}"
    read = reading(request)
    return Folders(said, said / ",".join(read) if read and not request.out else said)


def chosen(benchmark: Benchmark, request: Request) -> list[Item]:
    """The items that are asked."""
    items = [item for item in benchmark.items if request.only is None or request.only(item)]
    if not items:
        raise DataError(f"{benchmark.name}: no item is left; choose others with --tasks or --limit")
    return items


def label(benchmark: Benchmark, request: Request) -> str:
    """A benchmark's name with what was asked for by hand, so that evaluations of one checkpoint stand side by side."""
    own, default = request.settings.model_dump(), Settings().model_dump() | {"prompt": next(iter(benchmark.prompts))}
    asked = {name: value for name, value in own.items() if value not in (default[name], None) and name not in FREE}
    parts = [benchmark.name, *request.selection, *(f"{name}={value}" for name, value in asked.items())]
    return ",".join(parts).replace("/", "_")[:200]


def spread(things: Sequence[T], count: int) -> list[T]:
    """`count` of them, or all there are, at equal distances."""
    count = min(count, len(things))
    return [things[number * len(things) // count] for number in range(count)]


def reading(request: Request) -> list[str]:
    """How replies are read, where that was asked for by hand."""
    rules = [f"rules={request.rules}"] if request.rules != "plain" else []
    return [*rules, *([f"judge={request.judge.model}".replace("/", "_")[:100]] if request.judge else [])]
