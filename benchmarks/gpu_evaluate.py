"""Answering with the 7B shape on one GPU, random weights: against transformers one by one, and score against a pass.

    python -m benchmarks.gpu_evaluate [--save | --out DIR]
    python -m benchmarks.gpu_evaluate --tiny            # the same code on a CPU, with a small model

Prompts have one image, 704 to 832 tokens; 8 slots. First two full-width layers in fp32: replies of a batch must be
those of batches of one, and transformers' own; otherwise nothing is timed. Then the whole model in bf16, where the
share of items is told whose reply is the same in both.

One JSON object a line, `ratio` = ours / peer; medians, ways take turns.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu import back_ends
from benchmarks.gpu_models import GPU, MARKERS, TINY, Setting, backbone_of, items_of, model_of
from benchmarks.record import RESULTS, Row, emit, row
from benchmarks.reference import plain_copy
from data.processor import Encoded
from model.batch import collate
from model.generate import Decoding, generate, score
from model.latent_vlm import LatentVLM
from model.objective import RECIPES
from model.thinking import Thinking

OFF, MEAN, VOTES = Thinking("off"), Thinking(), Thinking("vote", draws=8)
LETTERS = [[20], [21], [22], [23]]  # as options are in most tokenizers
WORDS = [[20 + n, 30, 31 + n, 40] for n in range(4)]


def replies(model: LatentVLM, items: list[Encoded], tokens: int, thinking: Thinking, size: int) -> list[list[int]]:
    """Of exactly so many tokens, from batches of this size."""
    batches = [items[at : at + size] for at in range(0, len(items), size)]
    found = (generate(model, batch, MARKERS, Decoding(frozenset(), tokens), thinking) for batch in batches)
    return [reply.ids for batch in found for reply, *_ in batch]


@torch.no_grad()
def one_by_one(plain: LatentVLM, items: list[Encoded], tokens: int) -> list[list[int]]:
    """transformers' own `generate`, without latents."""
    device, found = plain.backbone.embedding.weight.device, []
    for item in items:
        ids = item.prompt[None].to(device)
        places = (ids == plain.backbone.config.image_token_id).int()
        pictures = {"pixel_values": item.pixels.to(device), "image_grid_thw": item.grids.to(device)}
        how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = plain.backbone.model.generate(input_ids=ids, mm_token_type_ids=places, **pictures, **how)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def agree(setting: Setting) -> Row:
    """Two layers in fp32: batches, single items and transformers give the same replies. RuntimeError when not."""
    model = model_of(backbone_of(setting, "7B", "sdpa", layers=2, fp32=True), "amvl").eval()
    items = items_of(setting, model.backbone, 8)
    together, alone = (replies(model, items, 16, MEAN, size) for size in (8, 1))
    plain = one_by_one(plain_copy(model), items, 16)
    if together != alone or replies(model, items, 16, OFF, 8) != plain:
        raise RuntimeError("replies depend on the batch, or are not those of transformers; nothing was timed")
    scores = [score(model, items[at : at + n], MARKERS, [WORDS] * n, MEAN) for n in (8, 1) for at in range(0, 8, n)]
    flat = [x for found in scores for x in found]
    off = max((a - b).abs().max().item() for a, b in zip(flat[:8], flat[8:], strict=True))
    return row("two layers, fp32: scores of a batch of 8 and of one", off, 1e-5, "allowed", "nats")


def timed(setting: Setting, ways: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """Median items per second of ways that take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + setting.repeats):
        for name, (way, count) in ways.items():
            start = time.perf_counter()
            way()
            setting.synchronize()
            if turn:  # the first one warms up
                rates[name].append(count / (time.perf_counter() - start))
    return {name: median(found) for name, found in rates.items()}


def whole(setting: Setting, back_end: Any, count: int, tokens: int) -> list[Row]:
    """The whole model in its precision."""
    model = model_of(backbone_of(setting, "7B", back_end), "amvl").eval()
    plain = plain_copy(model)
    items = items_of(setting, model.backbone, count)
    few = items[: max(1, count // 16)]
    together, alone = (replies(model, items, 16, MEAN, size) for size in (count, 1))
    same = sum(a == b for a, b in zip(together, alone, strict=True)) / count

    @torch.no_grad()
    def prefill() -> None:
        batch = collate(items, RECIPES["sft"], model.config, model.backbone, MARKERS, answers=False).to(setting.device)
        states, round_ = model.prompt_round(batch)
        model.backbone.logits(states[round_.layout.last_rows()])

    found = timed(
        setting,
        {
            "off": (lambda: replies(model, items, tokens, OFF, count), count),
            "mean": (lambda: replies(model, items, tokens, MEAN, count), count),
            "votes": (lambda: generate(model, few, MARKERS, Decoding(frozenset(), tokens), VOTES), len(few)),
            "few": (lambda: replies(model, few, tokens, MEAN, len(few)), len(few)),
            "transformers": (lambda: one_by_one(plain, few, tokens), len(few)),
            "letters": (lambda: score(model, items, MARKERS, [LETTERS] * count, MEAN), count),
            "words": (lambda: score(model, items, MARKERS, [WORDS] * count, MEAN), count),
            "prefill": (prefill, count),
        },
    )
    what, peer = f"{count} items, {tokens} tokens a reply, {back_end}", "transformers, one by one (sdpa)"
    return [
        row(f"generate, latents off, {what}", found["off"], found["transformers"], peer, "items/s"),
        row(f"generate, latents mean, {what}", found["mean"], found["transformers"], peer, "items/s", same_alone=same),
        row(f"score, 4 letters, {count} items", found["letters"], found["mean"], "generate, latents mean", "items/s"),
        row(f"8 votes, {len(few)} items, {tokens} tokens", 1 / found["votes"], 1 / found["few"], "one reply", "s/item"),
        *(
            row(f"score, 4 {name}, latents mean", 1 / found[name], 1 / found["prefill"], "one pass", "s/item")
            for name in ("letters", "words")
        ),
    ]


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/gpu_evaluate.jsonl")
    parser.add_argument("--out", type=Path, help="also write gpu_evaluate.jsonl to this folder")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--reply", type=int, default=128, help="tokens of a reply")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, to see that all of it runs")
    arguments = parser.parse_args(given)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --tiny runs on the CPU")
    setting = TINY if arguments.tiny else GPU
    folder = RESULTS if arguments.save else arguments.out
    names, rows = back_ends(setting)
    rows.append(agree(setting))
    emit("gpu_evaluate", rows, folder)
    shown = len(rows)
    rows += whole(setting, names[0], arguments.items, arguments.reply)
    emit("gpu_evaluate", rows, folder, shown)


if __name__ == "__main__":
    main()
