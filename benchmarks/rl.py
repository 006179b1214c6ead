"""What shared prefixes are worth in reinforcement learning: updates and rollouts against a sequence per completion.

    OMP_NUM_THREADS=2 python -m benchmarks.rl [--save]

Prompts of P tokens with G completions of A tokens each, k slots, on the CPU in fp32. An update is forward and backward
of GRPO's loss. Its peers are `separate sequences`, the very same code with a prompt for every completion, and
`transformers`, two passes of its own model per completion (benchmarks/reference.py: separate_policy_loss). Nothing is
timed unless all gradients agree to 1e-5, relative. A rollout's peers are `one by one`, our own generation of a
completion at a time, and transformers' `generate` of one at a time behind a pass for the prior; completions have A
tokens whatever they say. All ways of a case take turns in one process; figures are medians. One JSON object a line,
`ratio` = ours / peer: of seconds less is better, of completions per second more.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import step as shapes
from benchmarks.record import RESULTS, Row, emit, row
from benchmarks.reference import plain_copy, prompt_inputs, separate_policy_loss
from benchmarks.step import MARKERS, VOCABULARY, equal
from data.processor import Encoded
from model.branches import lay_out
from model.completion import Completion
from model.generate import Decoding, generate
from model.policy import Old, Policy, Reading, Step, measure, update
from model.thinking import Thinking, draw_name

READING, STEP = Reading(1.0, 1.0), Step(1e-3, (0.2, 0.2), 0.0, "eps_replay")
Groups = tuple[list[Encoded], list[list[Completion]]]


def groups(prompts: int, prompt: int, completions: int, answer: int) -> Groups:
    """Random ones of equal lengths."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, VOCABULARY, (prompts, completions, answer), generator=generator).tolist()
    made = [
        [Completion(tuple(ids), False, 0, draw_name(n, i), ()) for i, ids in enumerate(of_prompt)]
        for n, of_prompt in enumerate(tokens)
    ]
    return equal(prompts, prompt, answer), made


def separate(some: Groups) -> Groups:
    """A prompt for every completion."""
    pairs = [(prompt, [one]) for prompt, of_prompt in zip(*some, strict=True) for one in of_prompt]
    return [prompt for prompt, _ in pairs], [one for _, one in pairs]


def updates(model: Policy, some: Groups) -> dict[str, Callable[[], None]]:
    """Ways to take the gradient of the same update, each of a model's weights of its own."""
    torch.manual_seed(2)
    advantages = torch.randn(sum(map(len, some[1])))

    def packed(own: Policy, laid: Groups) -> None:
        own.zero_grad()
        branches = lay_out(*laid, own.recipe, own.config, own.backbone, MARKERS)
        losses, _ = update(own, branches, READING, old, STEP)
        for loss in losses:
            loss.backward()

    def plain(own: Policy) -> None:
        own.zero_grad()
        prompts, ones = separate(some)
        separate_policy_loss(own, prompts, [one for (one,) in ones], MARKERS, old, STEP).backward()

    seen = measure(model, lay_out(*some, model.recipe, model.config, model.backbone, MARKERS), READING)
    old = Old(advantages, seen.logps + 0.05 * torch.randn_like(seen.logps), None, seen.z, seen.mean, seen.log_sigma)
    copies = [plain_copy(model) for _ in range(2)]
    copies[0].backbone.model.set_attn_implementation({"text_config": "packed"})
    return {
        "ours": partial(packed, model, some),
        "separate sequences": partial(packed, copies[0], separate(some)),
        "transformers": partial(plain, copies[1]),
    }


def check(ways: dict[str, Callable[[], None]]) -> float:
    """Take each once. The worst relative difference of any gradient; RuntimeError above 1e-5."""
    for way in ways.values():
        way()
    models = {name: way.args[0] for name, way in ways.items()}  # type: ignore[attr-defined]
    ours, worst = dict(models["ours"].named_parameters()), 0.0
    for peer in ("separate sequences", "transformers"):
        for name, weight in models[peer].named_parameters():
            mine = ours[name].grad
            if weight.grad is not None and mine is not None and weight.grad.norm() > 0:
                worst = max(worst, ((mine - weight.grad).norm() / weight.grad.norm()).item())
    if not worst <= 1e-5:
        raise RuntimeError(f"not the same update, nothing was timed: gradients differ by {worst:.1e}")
    return worst


def rollouts(model: Policy, some: Groups, answer: int) -> dict[str, tuple[Callable[[], None], int]]:
    """Ways to draw completions, and how many each draws."""
    prompts, made = some
    count = len(made[0])
    decoding = Decoding(frozenset(), answer, temperature=1.0)
    plain = plain_copy(model)

    def ours() -> None:
        generate(model, prompts, MARKERS, decoding, Thinking("vote", 1.0, count))

    def one_by_one() -> None:
        for _ in range(2):
            generate(model, prompts[:1], MARKERS, decoding, Thinking("sample"))

    def transformers() -> None:
        for _ in range(2):
            completion_by_transformers(plain, prompts[0], answer)

    return {"ours": (ours, count * len(prompts)), "one by one": (one_by_one, 2), "transformers": (transformers, 2)}


@torch.no_grad()
def completion_by_transformers(plain: Policy, item: Encoded, tokens: int) -> None:
    """A pass for the prior, then `generate` behind marks and latents."""
    prompt, positions = prompt_inputs(plain, item)
    following = positions.max() + 1 + torch.arange(plain.config.slots + 2)

    def inputs(behind: torch.Tensor) -> dict[str, Any]:
        where = torch.cat([positions, following[: len(behind)].expand(3, -1)], 1)[:, None]
        return {"inputs_embeds": torch.cat([prompt, behind])[None], "position_ids": where}

    hf = plain.backbone.model
    states = hf.model.language_model(**inputs(plain.slots(plain.scale)), use_cache=False).last_hidden_state
    prior = plain.prior(states[:, -plain.config.slots :])
    z = prior.sample(torch.randn_like(prior.mean))
    start, end = plain.backbone.embedding(torch.tensor([MARKERS.start, MARKERS.end])).split(1)
    whole = inputs(torch.cat([start, plain.injection(z, plain.scale)[0], end]))
    text = torch.arange(whole["position_ids"].shape[2])[None, None]
    whole["position_ids"] = torch.cat([text, whole["position_ids"]])
    hf.generate(**whole, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0)


def medians(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in taken.items()}


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/rl.jsonl")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt, P")
    parser.add_argument("--answer", type=int, default=64, help="tokens of a completion, A")
    parser.add_argument("--completions", type=int, default=8, help="of a prompt, G")
    parser.add_argument("--prompts", type=int, default=2, help="of an update or a rollout")
    parser.add_argument("--slots", type=int, default=8, help="latent slots, k")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(given)
    model = shapes.model("amvl", arguments.slots, kind=Policy)
    torch.nn.init.normal_(model.prior.outer.weight, std=0.2)
    some = groups(arguments.prompts, arguments.prompt, arguments.completions, arguments.answer)
    name = f"{arguments.prompts} prompts, G={arguments.completions} P={arguments.prompt} A={arguments.answer}"
    ways = updates(model, some)
    worst = check(ways)
    seconds = medians(ways, arguments.repeats)
    ours = seconds.pop("ours")
    rows: list[Row] = [row(f"update, {name}", ours, s, peer, "s", gradients=worst) for peer, s in seconds.items()]
    drawn = rollouts(model.eval(), some, arguments.answer)
    seconds = medians({way: run for way, (run, _) in drawn.items()}, arguments.repeats)
    rates = {way: drawn[way][1] / s for way, s in seconds.items()}
    ours = rates.pop("ours")
    rows += [row(f"rollout, {name}", ours, rate, peer, "completions/s") for peer, rate in rates.items()]
    emit("rl", rows, RESULTS if arguments.save else None)


if __name__ == "__main__":
    main()
