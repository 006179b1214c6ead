"""From prompts to groups of completions that are measured, rated and compared."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from data.processor import Encoded, Processor
from data.sample import Sample, Text
from model.branches import Branches, lay_out
from model.build import markers_of
from model.completion import Completion
from model.generate import Decoding, Reply, generate
from model.latent import LatentConfig
from model.policy import Measured, Policy, Reading, measure
from model.thinking import Thinking, draw_name
from trainer.config import Config
from trainer.rl.advantages import advantages
from trainer.rl.group import Costs, Group, Piece, Seen, kept, pieces
from trainer.rl.pace import Pace
from trainer.rl.reference import Reference
from trainer.rl.rewards import rate
from trainer.rl.weights import over_ranks, weights_of

NOTHING = Sample(key="", text=Text(question="?", answer="?", task="", source=""))  # for a rank that is only in step


class Rollouts:
    """Everything that is done with completions before an update. Every rank calls the same methods."""

    def __init__(self, config: Config, engine: DeepSpeedEngine, processor: Processor) -> None:
        assert config.rl
        self.config, self.engine, self.processor = config.rl, engine, processor
        self.seed, self.recipe = config.run.seed, config.objective.recipe
        self.markers = markers_of(processor)
        rollout, layers = self.config.rollout, engine.module.backbone.config.text_config.num_hidden_layers
        spread = rollout.latent_temperature if self.recipe.latents == "posterior" else 0.0
        self.reading = Reading(
            rollout.temperature,
            spread,
            self.config.rewards.attention.layers_of(layers),
            self.config.rewards.attention.causal,
        )
        self.thinking = _thinking(self.recipe.latents, rollout.slots, spread, rollout.completions)
        slots = 0 if self.recipe.latents == "none" else config.latent.slots
        self.costs = Costs(config.train.tokens, slots, self.recipe.rounds == 2)
        self.reference = Reference(config) if self.config.update.kl else None
        self.weights = weights_of(engine, rollout.weights)  # beside the reference
        latents = self.recipe.latents != "none" and rollout.slots == "always"
        self.nothing = _nothing(processor, config.latent, latents)
        self.seconds: dict[str, float] = {}  # that the phases of the last rollout took

    def draw(self, prompts: list[Encoded], number: int, share: float, pace: Pace) -> list[Group] | None:
        """The groups of this rank's prompts, when `share` of the steps is done. None: a rank was told to stop.

        All random numbers are named by the run's seed, the rollout's number and the samples.
        """
        self.seconds = {}
        with self.weights.ready() as policy:
            with self._timed("rollout"):
                groups = self._completions(policy, prompts, number, pace)
                stopped = over_ranks(self.engine.device, self.weights.stopped)  # waits for the slowest rank, too
            if stopped:
                return None
            with self._timed("measure"):
                found = self._measured(policy, groups, pace)
        seen = iter(found)
        for group in groups:
            group.seen = [next(seen) for _ in group.completions]
            rate(group, [one.to_latents for one in group.seen], self.config.rewards, share)
            advantages(group, self.config.groups)
        if self.reference:
            with self._timed("reference"):
                self._compare(self.reference, groups, pace)
        return groups

    def learnable(self, kept: list[Group]) -> list[Piece]:
        """What an update of groups that are not dropped goes through: their valid completions."""
        return pieces(kept, [group.valid for group in kept], self.costs)

    def lay_out(self, model: Policy, piece: Piece) -> Branches:
        """On the model's device."""
        prompts = [group.prompt for group in piece.groups]
        found = lay_out(prompts, piece.completions, self.recipe, model.config, model.backbone, self.markers)
        return found.to(model.scale.device)

    def padded(self, some: list[Piece]) -> list[Piece]:
        """As many as the rank with the most has: under ZeRO-3 all run the model as often. Collective."""
        most = int(over_ranks(self.engine.device, len(some)))
        return some + [self.nothing] * (most - len(some))

    def _completions(
        self, policy: Callable[[Any], Any], prompts: list[Encoded], number: int, pace: Pace
    ) -> list[Group]:
        """Groups of new completions, in the order of their prompts; some of them, where a rank was told to stop."""
        rollout, seed = self.config.rollout, f"{self.seed}/rollout {number}"
        stopped = partial(self.processor.holds, stops=rollout.stop) if rollout.stop else None
        ends = frozenset([self.processor.end])
        decoding = Decoding(ends, rollout.max_new_tokens, rollout.temperature, rollout.top_p, seed, stopped)
        batches = self._batches(prompts)
        count = int(over_ranks(self.engine.device, len(batches))) if self.weights.in_step else len(batches)
        found: dict[int, Group] = {}
        for batch in batches + [[]] * (count - len(batches)):
            if self.weights.stopped:
                break
            items = [prompts[n] for n in batch] or [self.nothing.groups[0].prompt]
            work = partial(
                generate,
                samples=items,
                markers=self.markers,
                decoding=decoding if batch else replace(decoding, most=1),
                thinking=self.thinking,
                together=lambda own: self.weights.together(own, pace.token()),
            )
            for n, replies in zip(batch, policy(work), strict=False):
                made = [_completion(reply, draw_name(seed, draw)) for draw, reply in enumerate(replies)]
                found[n] = Group(
                    prompts[n], made, [self.processor.before(reply.ids, rollout.stop) for reply in replies]
                )
        return [found[n] for n in sorted(found)]

    def _batches(self, prompts: list[Encoded]) -> list[list[int]]:
        """Numbers of prompts, the longest first, in batches of at most `tokens` tokens."""
        rollout, slots = self.config.rollout, self.costs.slots
        behind = slots + rollout.completions * (slots + 2 + rollout.max_new_tokens)
        batches: list[list[int]] = []
        room = 0
        for n in sorted(range(len(prompts)), key=lambda n: -len(prompts[n].prompt)):
            cost = len(prompts[n].prompt) + behind
            if not batches or cost > room:
                batches.append([])
                room = rollout.tokens
            batches[-1].append(n)
            room -= cost
        return batches

    def _measured(self, policy: Callable[[Any], Any], groups: list[Group], pace: Pace) -> list[Seen]:
        """What the policy that drew them says of all completions."""
        some = pieces(groups, [list(range(len(group.completions))) for group in groups], self.costs)
        found: list[Seen] = []
        for number, piece in enumerate(self.padded(some) if self.weights.in_step else some):
            pace.at("measure", number)
            branches, measured = policy(partial(self._measure, piece=piece))
            if piece is not self.nothing:
                found += _seen(branches, measured)
        return found

    def _measure(self, model: Policy, piece: Piece) -> tuple[Branches, Measured]:
        branches = self.lay_out(model, piece)
        return branches, measure(model, branches, self.reading)

    def _compare(self, reference: Reference, groups: list[Group], pace: Pace) -> None:
        """Note the reference's log-probabilities of what will be learned from.

        With the recorded noise, or the recorded latents where these are what an update takes.
        """
        again = self.config.update.latents == "eps_replay"
        reading = replace(self.reading, layers=frozenset())

        def logps(model: Policy, piece: Piece) -> Tensor:
            branches = self.lay_out(model, piece)
            z = None if again else piece.old.z.to(model.scale.device)
            return measure(model, branches, reading, z).logps.cpu()

        for number, piece in enumerate(self.padded(self.learnable(kept(groups)))):
            pace.at("reference", number)
            found = reference(partial(logps, piece=piece))
            if piece is self.nothing:
                continue
            places = [(group, i) for group, chosen in zip(piece.groups, piece.chosen, strict=True) for i in chosen]
            for (group, i), part in zip(places, found.split([len(one.logps) for one in piece.seen]), strict=True):
                group.seen[i] = group.seen[i]._replace(reference=part)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - started


def _thinking(latents: str, slots: str, spread: float, completions: int) -> Thinking:
    """One branch per completion."""
    if latents == "none":
        return Thinking("off", draws=completions)
    if slots == "optional":
        return Thinking("optional", spread, completions)
    return Thinking("vote" if spread else "mean", spread, completions)


def _completion(reply: Reply, noise: str) -> Completion:
    ids = reply.ids if reply.end is None else [*reply.ids, reply.end]
    return Completion(tuple(ids), reply.end is not None, reply.latent_at, noise, tuple(reply.logps))


def _nothing(processor: Processor, config: LatentConfig, latents: bool) -> Piece:
    """A prompt without pictures and an empty completion, of which nothing is learned."""
    at = 0 if latents else None
    blank = torch.zeros(int(latents), config.slots, config.width)
    seen = Seen(torch.zeros(1), blank, blank, blank, 0.0, 0.0, 0.0)
    one = Completion((processor.end,), True, at, "nothing", (0.0,))
    group = Group(processor.encode(NOTHING), [one], [""], [seen], rewards=[0.0], advantages=[0.0])
    return Piece([group], [[0]])


def _seen(branches: Branches, measured: Measured) -> list[Seen]:
    """By completion, on the CPU."""
    sizes = branches.target_completion.bincount(minlength=branches.completions).tolist()
    with_latents = branches.z_completion.bincount(minlength=branches.completions).tolist()
    by_token = (x.cpu().split(sizes) for x in (measured.logps, measured.entropy))
    by_latents = (x.cpu().split(with_latents) for x in (measured.z, measured.mean, measured.log_sigma))
    rows = zip(*by_token, *by_latents, measured.masses.tolist(), strict=True)
    return [
        Seen(logps, z, mean, log_sigma, float(entropy.mean()), *masses)
        for logps, entropy, z, mean, log_sigma, masses in rows
    ]
