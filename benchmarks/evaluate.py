"""Items per second of the evaluator, against transformers' own `generate` called item by item.

    OMP_NUM_THREADS=2 python -m benchmarks.evaluate --checkpoint runs/quickstart [--save]

Generated puzzles of all kinds with their options, from encoded pictures to replies; loading the model is not counted.
Both sides run in turn in one process; rates are medians. Nothing is timed unless both give the same answers.

- `latents off` is the very work of `model.generate(input_ids, pixel_values, ...)`. With `mean` the peer runs one pass
  over prompt and slots for the prior, and then `generate` from the prompt's embeddings, the latents behind them.
- `one process` computes with all cores; `2 processes` (one per core, `--processes 2`) with one each, items shared.
- `natural` replies end by themselves: the quickstart's model says a letter. `long` ones have --long tokens whatever
  the model says, on both sides, as where a model reasons before it answers; the peer does some of the items.
- `score` measures four options; its peers are our own `generate`, and a bare pass over prompts and pictures alone.

One JSON object a line, `ratio` = ours / peer: of rates more is better; of the last, in seconds, less.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, Row, emit, row
from benchmarks.reference import plain_copy, prompt_inputs
from data import puzzles
from data.processor import Encoded
from data.quickstart import KINDS
from eval.answer import Answerer, Job, Planner
from eval.benchmarks.item import Item, sample_of
from eval.benchmarks.shards import PROMPTS, item_of
from eval.models import Model, find_model
from eval.predictions import Prediction
from eval.settings import Settings
from eval.workers import Pool
from model.batch import collate
from model.objective import RECIPES

PROMPT = PROMPTS["amvl"]
TOKENS = 4096  # of a batch: some for each process
Ways = dict[str, tuple[Callable[[], Any], int]]  # what is timed, and how many items it does


def items(count: int, n_choices: int | None = None) -> list[Item]:
    """Held-out puzzles that no training has seen."""
    drawn = (item_of(s) for s in puzzles.stream(KINDS, "heldout", 4 * count, sizes=(64,), difficulties=(1,)))
    fitting = [item for item in drawn if item.n_choices and n_choices in (None, item.n_choices)]
    return fitting[:count]


class Ours:
    """The evaluator with one setting: in this process, or in one per core, which have loaded the model."""

    def __init__(self, model: Model, wanted: list[Item], long: bool = False, **settings: Any) -> None:
        self.settings = model.effective(Settings(**settings)).model_copy(update={"prompt": "amvl"})
        planner = Planner(model, self.settings)
        letters = self.settings.mode == "score"
        jobs = [planner.job(sample_of(i, PROMPT), tuple(i.letters) if letters else ()) for i in wanted]
        self.batches = planner.batches(jobs)
        self.answerer = Answerer(model, self.settings, "cuda" if torch.cuda.is_available() else "cpu")
        if long:
            self.answerer.ends = frozenset()

    def __call__(self) -> dict[str, Prediction]:
        return {p.key: p for found in self.answerer.stream(self.batches) for p in found}


class Peer:
    """transformers' `generate`, one item after the other."""

    def __init__(self, ours: Ours, wanted: list[Item], tokens: int, long: bool) -> None:
        self.answerer = ours.answerer
        self.jobs = [Job("", sample_of(item, PROMPT), (), 0, ours.settings) for item in wanted]
        self.own = plain_copy(self.answerer.model)
        self.model = self.own.backbone.model
        end = None if long else sorted(self.answerer.ends)
        self.how = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}

    @torch.no_grad()
    def __call__(self) -> dict[str, str]:
        found = {}
        for job in self.jobs:
            item = self.answerer.processor.encode(job.sample)
            ids = self._with_latents(item) if job.settings.latents != "off" else self._plain(item)
            stop = [n for n, token in enumerate(ids) if token in self.answerer.ends]
            found[job.sample.key] = self.answerer.processor.decode(ids[: stop[0]] if stop else ids).strip()
        return found

    def _plain(self, item: Encoded) -> list[int]:
        places = (item.prompt == self.model.config.image_token_id).int()[None]
        pictures = {"pixel_values": item.pixels, "image_grid_thw": item.grids, "mm_token_type_ids": places}
        ids = self.model.generate(input_ids=item.prompt[None], **pictures, **self.how)[0, len(item.prompt) :]
        return list(map(int, ids))

    def _with_latents(self, item: Encoded) -> list[int]:
        ours = self.own
        prompt, positions = prompt_inputs(ours, item)  # [P, C], [3, P]
        following = positions.max() + 1 + torch.arange(ours.config.slots + 2)

        def inputs(behind: torch.Tensor) -> dict[str, torch.Tensor]:
            where = torch.cat([positions, following[: len(behind)].expand(3, -1)], 1)[:, None]
            return {"inputs_embeds": torch.cat([prompt, behind])[None], "position_ids": where}

        slots = ours.slots(ours.scale)
        states = self.model.model.language_model(**inputs(slots), use_cache=False).last_hidden_state[:, -len(slots) :]
        markers = torch.tensor([self.answerer.markers.start, self.answerer.markers.end])
        start, end = ours.backbone.embedding(markers).split(1)
        whole = inputs(torch.cat([start, ours.injection(ours.prior(states).mean, ours.scale)[0], end]))
        text = torch.arange(whole["position_ids"].shape[2])[None, None]
        whole["position_ids"] = torch.cat([text, whole["position_ids"]])
        return list(map(int, self.model.generate(**whole, **self.how)[0]))


def rates(ways: Ways, repeats: int) -> dict[str, float]:
    """Median items per second of each way, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (way, count) in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in taken.items()}


def generation(
    model: Model, wanted: list[Item], some: list[Item], latents: str, tokens: int, repeats: int
) -> list[Row]:
    """Ours against transformers. `some` are the peer's items; tokens 0: natural replies, also by one process a core."""
    most = tokens or 8
    ours = Ours(model, wanted, bool(tokens), latents=latents, max_new_tokens=most, tokens=TOKENS)
    peer = Peer(ours, some, most, bool(tokens))
    replies = {key: p.replies[0] for key, p in ours().items()}
    other = [key for key, reply in peer().items() if replies[key] != reply]
    if other:
        raise RuntimeError(f"not the same answers, nothing was timed: {len(other)} of {len(some)}, e.g. {other[0]}")
    ways: Ways = {"one process": (ours, len(wanted)), "peer": (peer, len(some))}
    with contextlib.ExitStack() as stack:
        if not tokens:
            count = os.cpu_count() or 1
            pool = stack.enter_context(contextlib.closing(Pool(model, ours.settings, count)))
            pool.warm()
            ways[f"{count} processes"] = (lambda: list(pool.run(ours.batches)), len(wanted))
        found = rates(ways, repeats)
    peer_rate = found.pop("peer")
    kind = f"long replies of {tokens} tokens" if tokens else "natural replies"
    counts = {"items": len(wanted), "peer_items": len(some)}
    return [
        row(
            f"generate, latents {latents}, {kind}, {way}",
            rate,
            peer_rate,
            "transformers, one by one",
            "items/s",
            **counts,
        )
        for way, rate in found.items()
    ]


def scoring(model: Model, wanted: list[Item], latents: str, tokens: int, repeats: int) -> list[Row]:
    """`score` against our own `generate`, with natural and with long replies."""
    ways = {
        "score": Ours(model, wanted, latents=latents, mode="score"),
        "natural replies": Ours(model, wanted, latents=latents, max_new_tokens=8),
        f"long replies of {tokens} tokens": Ours(model, wanted, True, latents=latents, max_new_tokens=tokens),
    }
    for way in ways.values():
        way()
    found = rates({name: (way, len(wanted)) for name, way in ways.items()}, repeats)
    own = found.pop("score")
    return [
        row(f"score, latents {latents}", own, rate, f"generate, {name}", "items/s", items=len(wanted))
        for name, rate in found.items()
    ]


@torch.no_grad()
def prefill(model: Model, wanted: list[Item], latents: str, repeats: int) -> Row:
    """Seconds of the model alone: scoring four options, and one pass over the same prompts and pictures."""
    ours = Ours(model, wanted, latents=latents, mode="score")
    answerer, encoded = ours.answerer, [ours.answerer.encode(batch) for batch in ours.batches]
    plain = answerer.model

    def one_pass() -> None:
        for batch in encoded:
            prompts = [x for _, x in batch if isinstance(x, Encoded)]
            layout = collate(prompts, RECIPES["sft"], plain.config, plain.backbone, answerer.markers, answers=False)
            states, round_ = plain.prompt_round(layout)
            plain.backbone.logits(states[round_.layout.last_rows()])

    def score() -> None:
        for batch in encoded:
            answerer.answer(batch)

    score()
    one_pass()
    found = rates({"score": (score, len(wanted)), "prefill": (one_pass, len(wanted))}, repeats)
    name = f"score of 4 options, latents {latents}, the model alone"
    return row(name, 1 / found["score"], 1 / found["prefill"], "one pass over the prompts", "s/item", items=len(wanted))


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, e.g. runs/quickstart, or an export")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/evaluate.jsonl")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--long", type=int, default=64, help="tokens of a long reply")
    parser.add_argument("--some", type=int, default=60, help="items of the peer with long replies")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(given)
    model, wanted = find_model(arguments.checkpoint), items(arguments.items)
    some = wanted[:: max(1, len(wanted) // arguments.some)]
    rows: list[Row] = []

    def add(*more: Row) -> None:
        rows.extend(more)
        emit("evaluate", rows, RESULTS if arguments.save else None, len(rows) - len(more))

    for latents in ("off", "mean"):
        add(*generation(model, wanted, wanted, latents, 0, arguments.repeats))
        add(*generation(model, wanted, some, latents, arguments.long, arguments.repeats))
    add(*scoring(model, wanted, "mean", arguments.long, arguments.repeats))
    for latents in ("off", "mean"):
        add(prefill(model, items(arguments.items, 4), latents, arguments.repeats))


if __name__ == "__main__":
    main()
