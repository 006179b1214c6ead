"""What the ranks of test_answer.py do: share one model under ZeRO-3 and answer with several settings.

deepspeed --num_gpus 2 --module tests.distributed.answer_ranks OUT.json SHARDS EXPORT
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.sample import DataError
from data.shards import read_set
from eval import zero3
from eval.answer import Job, Planner
from eval.benchmarks.item import sample_of
from eval.benchmarks.shards import PROMPTS, item_of
from eval.models import Model, find_model
from eval.predictions import pack
from eval.settings import Settings
from model.batch import generator_of

ITEMS, TOKENS = 26, 400
WIDTH = 8  # of a latent
CUT = 60  # bytes that are left of a damaged picture
CASES: dict[str, dict[str, Any]] = {
    "mean": {"max_new_tokens": 6},
    "off": {"max_new_tokens": 6, "latents": "off"},
    "votes": {"max_new_tokens": 4, "latents": "vote:2", "temperature": 0.7, "seed": 5},
    "score": {"mode": "score"},
    "markers": {"max_new_tokens": 6, "latents": "markers"},
    "optional": {"max_new_tokens": 6, "latents": "optional"},
    "given": {"max_new_tokens": 6, "latents": "given"},
    "prior": {"mode": "prior"},
}
OPTIONS = ("A", "the third picture")  # of one token and of several


def plan(model: Model, shards: str, case: str) -> tuple[Settings, list[list[Job]]]:
    """Jobs of the first samples, of which one has a damaged picture, in batches."""
    latents = CASES[case].get("latents", "mean")
    asked = Settings(tokens=TOKENS, **CASES[case] | {"latents": latents if latents != "given" else "mean"})
    settings = model.effective(asked).model_copy(update={"latents": latents})
    planner, prompt = Planner(model, settings), PROMPTS["amvl"]
    items = [item_of(sample) for sample in itertools.islice(read_set(shards), ITEMS)]
    damaged = next(n for n, item in enumerate(items) if item.images)
    items[damaged] = replace(items[damaged], images=tuple(image[:CUT] for image in items[damaged].images))
    options = OPTIONS if settings.mode == "score" else ()
    z = {item.key: noise(item.key, model.slots) for item in items} if latents == "given" else {}
    return settings, planner.batches(planner.job(sample_of(item, prompt), options, z.get(item.key)) for item in items)


def noise(name: str, slots: int) -> str:
    """z of an item, packed."""
    return pack(torch.randn(slots, WIDTH, generator=generator_of(name)))


def todo_of(batches: list[list[Job]]) -> list[int]:
    """All but one or two, known already: an odd number, so that two ranks have one batch in their last turn."""
    whole = [n for n, batch in enumerate(batches) if not any(map(is_damaged, batch))]
    known = set(whole[: 1 + len(batches) % 2])
    return [number for number in range(len(batches)) if number not in known]


def is_damaged(job: Job) -> bool:
    return any(len(image) == CUT for image in job.sample.images)


def refused() -> str:
    """What every rank says where the first finds no model."""

    def find() -> None:
        raise DataError("nothing there; look elsewhere")

    try:
        zero3.found_by_first(find)
    except DataError as error:
        return str(error)
    return "not refused"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "shards", "export"):
        parser.add_argument(name)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    rank = zero3.join()
    model = zero3.found_by_first(lambda: find_model(Path(arguments.export)))
    results: dict[str, Any] = {}
    ranks = zero3.Ranks(model, model.effective(Settings(tokens=TOKENS)))
    for case in CASES:
        _, batches = plan(model, arguments.shards, case)
        todo = todo_of(batches)
        if rank > 0:
            ranks.help(batches)
            continue
        found = itertools.chain.from_iterable(ranks.run(batches, todo))
        results[case] = {p.id: p.model_dump(mode="json") for p in found}
    said: list[Any] = [None, None]
    torch.distributed.all_gather_object(said, refused())
    if rank == 0:
        Path(arguments.out).write_text(json.dumps(results | {"refused": said}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
