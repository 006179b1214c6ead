"""The passes over the model that a diagnosis needs: each prefix once for what is believed of z, and once with all arms.

Letters in shapes: N items, k slots, d latent width, O candidates, L layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from data.processor import Encoded, Processor
from eval.diagnosis.arms import KEPT, all_arms, gap_arms, given_latents
from eval.diagnosis.cases import ALTERATIONS, Case, altered
from model.batch import Markers
from model.latent import Gaussian
from model.latent_vlm import LatentVLM
from model.replaced import Beliefs, Latents, believe, look, replaced

T = TypeVar("T")
ATTENDED = 128  # items whose attention is measured
Scores = dict[str, Tensor]  # by arm, log-likelihoods of the candidates [O], nats


@dataclass(frozen=True)
class Collected:
    """Of every case, by key, on the CPU."""

    cases: Sequence[Case]
    beliefs: dict[str, Beliefs]
    scores: dict[str, Scores]
    given: dict[str, dict[str, Tensor]]  # by arm: z [k, d] of replacements
    moved: dict[str, dict[str, Tensor]]  # by alteration: the prior's mean [k, d] of the altered prompt
    altered: dict[str, dict[str, Tensor]]  # by alteration: scores [O] behind the altered prompt with that mean
    # Of the first ATTENDED cases:
    answer_attention: Tensor  # [N, L, 2] mass on latents and on pictures, from the row that predicts the answer
    latent_attention: Tensor  # [N, L] mass of the slots on pictures


@dataclass
class Collector:
    """One model on one device."""

    model: LatentVLM
    processor: Processor
    markers: Markers
    tokens: int  # of a batch, about
    seed: int

    def collect(self, cases: Sequence[Case], alterations: Iterable[str] = ALTERATIONS) -> Collected:
        """Everything, of alterations these. The same for the same cases however they are batched, to rounding."""
        beliefs = self._believe(cases)
        prompts = {name: altered(name, cases, self.processor, self.seed) for name in alterations}
        moved = {name: self._means(name, items) for name, items in prompts.items()}
        given = given_latents(beliefs, self.seed)
        arms = all_arms(cases, beliefs, given, moved, self.seed)
        scores, attention = self._answer(cases, arms, ATTENDED)
        rescored = {name: self._rescore(name, cases, items, moved[name]) for name, items in prompts.items()}
        return Collected(cases, beliefs, scores, given, moved, rescored, attention, self._look(cases))

    def collect_gap(self, cases: Sequence[Case]) -> Collected:
        """What the train-inference gap needs, alone."""
        cases = [replace(case, wrong=()) for case in cases]
        beliefs = self._believe(cases)
        scores, attention = self._answer(cases, gap_arms(cases, beliefs, self.seed), 0)
        return Collected(cases, beliefs, scores, {}, {}, {}, attention, torch.empty(0))

    def _believe(self, cases: Sequence[Case]) -> dict[str, Beliefs]:
        """Prior, and where there is one the posterior of the right answer and of the wrong ones shown."""
        posterior, k = self.model.recipe.latents == "posterior", self.model.config.slots

        def about(case: Case) -> list[Tensor]:
            return [case.answers[n] for n in (case.right, *case.wrong)] if posterior else []

        def cost(case: Case) -> int:
            return len(case.item.prompt) + k + sum(len(y) + k for y in about(case))

        found: dict[str, Beliefs] = {}
        for batch in self._batches("latents", cases, cost):
            beliefs = believe(self.model, [c.item for c in batch], self.markers, [about(c) for c in batch])
            found |= {c.key: _on_cpu(b) for c, b in zip(batch, beliefs, strict=True)}
        return found

    def _means(self, name: str, items: Mapping[str, Encoded]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for batch in self._batches(name, list(items), lambda key: len(items[key].prompt) + self.model.config.slots):
            beliefs = believe(self.model, [items[key] for key in batch], self.markers, [[] for _ in batch])
            found |= {key: b.prior.mean.cpu() for key, b in zip(batch, beliefs, strict=True)}
        return found

    def _answer(
        self, cases: Sequence[Case], arms: Mapping[str, Mapping[str, Latents]], attended: int
    ) -> tuple[dict[str, Scores], Tensor]:
        """Scores of every arm, and the attention of KEPT [N, L, 2] of the first `attended` cases."""

        def cost(case: Case) -> int:
            of_case, answers = arms[case.key], sum(map(len, case.answers))
            return len(case.item.prompt) + sum(2 + answers + (0 if z is None else len(z)) for z in of_case.values())

        found: dict[str, Scores] = {}
        attention: list[Tensor] = []
        for batch in self._batches("answers", cases, cost):
            names = [list(arms[c.key]) for c in batch]
            latents = [list(arms[c.key].values()) for c in batch]
            probed = names[0].index(KEPT) if sum(map(len, attention)) < attended else None
            scores, masses = replaced(
                self.model, [c.item for c in batch], self.markers, [c.options for c in batch], latents, probed
            )
            found |= {c.key: dict(zip(n, x, strict=True)) for c, n, x in zip(batch, names, scores, strict=True)}
            if probed is not None:
                attention.append(masses.cpu())
        return found, torch.cat(attention)[:attended] if attention else torch.empty(0)

    def _rescore(
        self, name: str, cases: Sequence[Case], items: Mapping[str, Encoded], means: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scores behind altered prompts, with the latents that they give."""
        chosen = [case for case in cases if case.key in items]
        found: dict[str, Tensor] = {}
        for batch in self._batches(
            name, chosen, lambda c: len(items[c.key].prompt) + self.model.config.slots + 2 + sum(map(len, c.answers))
        ):
            own = [[means[c.key]] for c in batch]
            scores, _ = replaced(
                self.model, [items[c.key] for c in batch], self.markers, [c.options for c in batch], own
            )
            found |= {c.key: x[0] for c, x in zip(batch, scores, strict=True)}
        return found

    def _look(self, cases: Sequence[Case]) -> Tensor:
        """[N, L] attention of the slots to pictures, of the first ATTENDED cases."""
        batches = self._batches("attention", cases[:ATTENDED], lambda c: len(c.item.prompt) + self.model.config.slots)
        return torch.cat([look(self.model, [c.item for c in batch], self.markers).cpu() for batch in batches])

    def _batches(self, name: str, things: Sequence[T], cost: Callable[[T], int]) -> Iterator[list[T]]:
        """In order, at most `tokens` together but one at least."""
        batch: list[T] = []
        room = self.tokens
        with tqdm(total=len(things), desc=name, unit="item", leave=False) as bar:
            for thing in things:
                if batch and cost(thing) > room:
                    yield batch
                    bar.update(len(batch))
                    batch, room = [], self.tokens
                batch.append(thing)
                room -= cost(thing)
            if batch:
                yield batch


def _on_cpu(beliefs: Beliefs) -> Beliefs:
    return Beliefs(*(Gaussian(g.mean.cpu(), g.log_sigma.cpu()) for g in beliefs))
