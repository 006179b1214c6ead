"""Time of one training step on the CPU: AMVL on packed rounds against SFT, and both against plain code.

    OMP_NUM_THREADS=2 python -m benchmarks.step [--save]

Samples of one length (P prompt tokens, A answer tokens, k slots) show what the method costs: nothing is padded, on
either side. Samples of mixed lengths, questions of easy-vqa and puzzles as in the quickstart but with pictures of 64,
96 and 128 pixels, show what packing gains. Plain code (benchmarks/reference.py) pads to the longest and takes
transformers' own attention: `transformers` is its fine-tuning loss, with logits of every token; `logits at targets`
the same without those; `three passes` an AMVL step. Vision towers are frozen. All cases of a group run in turn in one
process, after their losses were compared; the figures are medians. One JSON object a line, `ratio` = ours / peer.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from benchmarks.record import RESULTS, Row, emit, row
from benchmarks.reference import Model, plain_copy, separate_loss, transformers_loss
from data import puzzles
from data.convert import easy_vqa
from data.processor import IMAGE_PAD, Encoded, Processor
from data.puzzles.registry import SIZES
from data.quickstart import KINDS, TRAIN
from data.sample import Sample, Text
from model.backbones import tiny
from model.backbones.qwen2_5_vl import Qwen2_5VL
from model.batch import Markers, collate
from model.latent import LatentConfig
from model.latent_vlm import LatentVLM, Weights
from model.objective import RECIPES

WIDTH, LAYERS, VOCABULARY = 256, 6, 1000
IMAGE = tiny.SPECIAL.index(IMAGE_PAD)
MARKERS = Markers(len(tiny.SPECIAL) - 2, len(tiny.SPECIAL) - 1)
Steps = dict[str, Callable[[], Tensor]]  # by "objective: way"; each returns the step's loss
Pairs = list[tuple[str, str]]  # ours and its peer
EQUAL: Pairs = [("amvl", "sft"), ("amvl", "amvl: three passes"), ("sft", "sft: transformers")]
MIXED: Pairs = [
    ("sft", "sft: transformers"),
    ("sft", "sft: logits at targets"),
    ("amvl", "amvl: three passes"),
    ("amvl", "sft"),
]


def model(
    objective: str,
    slots: int,
    checkpointing: bool = False,
    width: int = WIDTH,
    kind: type[Model] = LatentVLM,  # type: ignore[assignment]
) -> Model:
    """A small random model in the proportions of the large ones (head size 64, two query heads a key head)."""
    torch.manual_seed(0)
    config: Qwen2_5_VLConfig = tiny.config(VOCABULARY, width, LAYERS, vision_layers=1)
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = width // 64, width // 128
    config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    backbone = Qwen2_5VL.from_config(config)
    backbone.vision.requires_grad_(False)
    if checkpointing:
        backbone.checkpoint_layers(LAYERS)
    built = kind(backbone, LatentConfig(slots=slots, width=64, head_width=256), RECIPES[objective])
    built.reset_latent()
    return built.train()


def equal(count: int, prompt: int, answer: int) -> list[Encoded]:
    """Samples of one length, text only."""
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(
            sample=Sample(key=str(n), text=Text(question="?", answer="!", task="t", source="s")),
            prompt=torch.randint(len(tiny.SPECIAL), VOCABULARY, (prompt,), generator=generator),
            answer=torch.randint(len(tiny.SPECIAL), VOCABULARY, (answer,), generator=generator),
            pixels=torch.zeros(0, 3 * 2 * tiny.PATCH**2),
            grids=torch.zeros(0, 3, dtype=torch.long),
        )
        for n in range(count)
    ]


def mixed(count: int) -> list[Encoded]:
    """Samples of easy-vqa and of puzzles of all kinds and sizes in the quickstart's shares, in random order."""
    rng, real = random.Random(0), count * TRAIN["easy_vqa"] // sum(TRAIN.values())
    samples = rng.sample(list(easy_vqa.read("train")), real)
    turns = len(KINDS) * len(SIZES) * -(-count // (len(KINDS) * len(SIZES)))  # whole cycles over kinds and sizes
    samples += rng.sample(list(puzzles.stream(KINDS, "train", turns, sizes=SIZES)), count - real)
    rng.shuffle(samples)
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(samples, Path(folder) / "backbone", VOCABULARY)
        processor = Processor(f"{folder}/backbone", min(SIZES) ** 2, max(SIZES) ** 2)
        return [processor.encode(sample) for sample in samples]


def steps(models: dict[str, LatentVLM], batches: list[list[Encoded]]) -> Steps:
    """Forward and backward passes over all batches, by ours and by plain code."""
    targets = sum(len(item.answer) for batch in batches for item in batch)
    weights, found = Weights(1.0, 1.0, 1 / targets, 1 / targets), {}

    def packed(own: LatentVLM, items: list[Encoded]) -> Tensor:
        total = torch.zeros(())
        for loss in own(collate(items, own.recipe, own.config, own.backbone, MARKERS), weights)[0]:
            loss.backward()
            total += loss.detach()
        return total

    def padded(own: LatentVLM, items: list[Encoded]) -> Tensor:
        loss = separate_loss(own, items, MARKERS, 0, weights)
        loss.backward()
        return loss.detach()

    def plain(own: LatentVLM, items: list[Encoded]) -> Tensor:
        loss = transformers_loss(own, items) * sum(len(item.answer) for item in items) / targets
        loss.backward()
        return loss.detach()

    def step(own: LatentVLM, way: Callable[[LatentVLM, list[Encoded]], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            own.zero_grad()
            return torch.stack([way(own, items) for items in batches]).sum()

        return run

    for name, own in models.items():
        found[name] = step(own, packed)
        copy = plain_copy(own)
        found[f"{name}: {'three passes' if name == 'amvl' else 'logits at targets'}"] = step(copy, padded)
        if name == "sft":
            found[f"{name}: transformers"] = step(copy, plain)
    return found


def measure(name: str, cases: Steps, pairs: Pairs, repeats: int) -> list[Row]:
    """Median seconds of the steps in pairs; they take turns, so that a slow moment hits all of them."""
    wanted = dict.fromkeys(name for pair in pairs for name in pair)
    losses = {way: cases[way]().item() for way in wanted}  # warms up, too
    for way, loss in losses.items():
        if not math.isclose(loss, losses[way.partition(":")[0]], rel_tol=1e-4):
            raise RuntimeError(f"not the same step, nothing was timed: {losses}")
    seconds: dict[str, list[float]] = {way: [] for way in wanted}
    for _ in range(repeats):
        for way, times in seconds.items():
            start = time.perf_counter()
            cases[way]()
            times.append(time.perf_counter() - start)
    taken = {way: statistics.median(times) for way, times in seconds.items()}
    return [row(f"{ours}, {name}", taken[ours], taken[peer], peer, "s") for ours, peer in pairs]


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/step.jsonl")
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 1024, 4096], help="prompt lengths, P")
    parser.add_argument("--answer", type=int, default=64, help="answer length, A")
    parser.add_argument("--slots", type=int, default=8, help="latent slots, k")
    parser.add_argument("--tokens", type=int, default=2048, help="prompt tokens of a batch of equal lengths, at least")
    parser.add_argument("--batches", type=int, default=2, help="batches of mixed lengths; 0 for none")
    parser.add_argument("--batch", type=int, default=32, help="samples in each")
    parser.add_argument("--checkpointing", type=int, nargs="*", default=[1024], help="P with checkpointing as well")
    parser.add_argument("--repeats", type=int, default=7, help="turns; 3 at most where prompts are long")
    arguments = parser.parse_args(given)
    slots, repeats = arguments.slots, arguments.repeats
    rows: list[Row] = []

    def case(name: str, batches: list[list[Encoded]], pairs: Pairs, turns: int, checkpointing: bool = False) -> None:
        models: dict[str, LatentVLM] = {
            objective: model(objective, slots, checkpointing) for objective in ("sft", "amvl")
        }
        rows.extend(measure(name, steps(models, batches), pairs, turns))

    for prompt in arguments.prompts:
        items = equal(max(1, arguments.tokens // prompt), prompt, arguments.answer)
        turns = repeats if prompt <= 1024 else min(3, repeats)
        name = f"P={prompt} A={arguments.answer} k={slots}"
        case(name, [items], EQUAL, turns)
        if prompt in arguments.checkpointing:
            case(f"{name} checkpointing", [items], EQUAL, turns, checkpointing=True)
    if number := arguments.batches:
        items = mixed(number * arguments.batch)
        lengths = [len(item.prompt) + len(item.answer) for item in items]
        name = f"{number} x {arguments.batch} samples of {min(lengths)} to {max(lengths)} tokens, k={slots}"
        case(name, [items[n::number] for n in range(number)], MIXED, min(5, repeats))
    emit("step", rows, RESULTS if arguments.save else None)


if __name__ == "__main__":
    main()
