"""Arms: which there are, that draws share their noise, and that an item's own do not depend on the others."""

import pytest
import torch
from torch import Tensor

from eval.diagnosis.arms import (
    KEPT,
    MARKERS,
    ORACLE,
    OWN,
    REMOVED,
    SOURCES,
    all_arms,
    first_slots,
    from_altered,
    gap_arms,
    given_latents,
    shown,
    slot_counts,
)
from eval.diagnosis.cases import Case
from eval.replacements import GIVEN
from model.latent import Gaussian
from model.replaced import Beliefs
from tests.eval.diagnosis.built import items

K, D = 5, 3
BY_ITEM = ("prior", "unit_noise", OWN, *map(shown, range(4)))  # all that is drawn
OF_ALL = ("data_mean", "matched_noise", "other_item")  # what depends on which items there are


def beliefs_of(cases: list[Case], k: int = K, posterior: bool = True) -> dict[str, Beliefs]:
    """Random Gaussians, each item's by its key."""
    found = {}
    for case in cases:
        generator = torch.Generator().manual_seed(int(case.key.removeprefix("item-")))

        def gaussian(*shape: int, generator: torch.Generator = generator) -> Gaussian:
            return Gaussian(*(torch.randn(*shape, D, generator=generator) for _ in range(2)))

        found[case.key] = Beliefs(gaussian(k), gaussian((1 + len(case.wrong)) * posterior, k))
    return found


def arms_of(cases: list[Case], seed: int = 0, moved: dict | None = None, **how) -> dict[str, dict[str, Tensor]]:
    beliefs = beliefs_of(cases, **how)
    found = all_arms(cases, beliefs, given_latents(beliefs, seed), moved or {}, seed)
    return found  # type: ignore[return-value]


def test_every_arm_is_there() -> None:
    cases = items("ABCD")
    moved = {"words": {cases[0].key: torch.ones(K, D)}, "patches": {}}
    found = arms_of(cases, moved=moved)
    common = {*SOURCES.values(), *GIVEN, KEPT, ORACLE, MARKERS, REMOVED, *map(first_slots, (1, 2, 4))}
    for case in cases:
        own = common | {shown(wrong) for wrong in case.wrong}
        assert set(found[case.key]) == own | ({from_altered("words")} if case is cases[0] else set())
    assert torch.equal(found[cases[0].key][from_altered("words")], torch.ones(K, D))
    assert all(shown(case.right) not in found[case.key] for case in cases)


def test_without_a_posterior_its_arms_are_not_there() -> None:
    with_, without = (arms_of(items("AB"), posterior=p)["item-00"] for p in (True, False))
    assert set(with_) - set(without) == {OWN, ORACLE, "prior", *map(shown, (1, 2, 3))} and set(without) < set(with_)


def test_what_the_arms_are() -> None:
    cases = items("ABCD")
    beliefs, found = beliefs_of(cases), arms_of(cases)
    for case in cases:
        prior, posteriors = beliefs[case.key]
        arms = found[case.key]
        assert arms[REMOVED] is None and arms[MARKERS].shape == (0, D)
        assert torch.equal(arms[KEPT], prior.mean) and torch.equal(arms[ORACLE], posteriors.mean[0])
        for count in (1, 2, 4):
            assert torch.equal(arms[first_slots(count)], prior.mean[:count])
        # One noise for all draws.
        noise = (arms["prior"] - prior.mean) / prior.log_sigma.exp()
        assert noise.std() > 0.4
        for name, mean, log_sigma in zip((OWN, *map(shown, case.wrong)), *posteriors, strict=True):
            torch.testing.assert_close(arms[name], mean + log_sigma.exp() * noise, atol=1e-5, rtol=1e-5)
    noises = [(found[c.key]["prior"] - beliefs[c.key].prior.mean) / beliefs[c.key].prior.log_sigma.exp() for c in cases]
    assert all((a - b).abs().max() > 0.1 for n, a in enumerate(noises) for b in noises[:n]), "but each item has its own"


def test_the_shown_arms_are_those_of_the_wrong_answers() -> None:
    """By the candidate's number, where the right one stands anywhere."""
    (case,) = items("C")
    beliefs = beliefs_of([case])
    assert case.wrong == (0, 1, 3)
    own = beliefs[case.key].posteriors
    steady = {case.key: Beliefs(beliefs[case.key].prior, Gaussian(own.mean, torch.full_like(own.mean, -30)))}
    found = gap_arms([case], steady, 0)[case.key]
    for name, mean in zip((OWN, shown(0), shown(1), shown(3)), own.mean, strict=True):
        torch.testing.assert_close(found[name], mean)


def test_an_items_arms_are_its_own() -> None:
    """Whatever the order and the number of items, but for those that are made of all items; and by seed."""
    cases = items("ABCDA")
    whole, other = arms_of(cases), arms_of(cases, seed=1)
    backwards, fewer = arms_of(cases[::-1]), arms_of(cases[1:3])
    for key, arms in fewer.items():
        assert set(arms) == set(whole[key]) == set(backwards[key])
        for name, z in arms.items():
            if name != REMOVED:
                assert torch.equal(whole[key][name], backwards[key][name]), name
                assert torch.equal(whole[key][name], z) or name in OF_ALL, name
                drawn = name in (*BY_ITEM, "matched_noise")
                assert drawn != torch.equal(whole[key][name], other[key][name]) or name in ("shuffled", "other_item")


@pytest.mark.parametrize(
    ("k", "counts"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 2, 4]), (8, [1, 2, 4]), (9, [1, 2, 4, 8])]
)
def test_slot_counts(k: int, counts: list[int]) -> None:
    assert slot_counts(k) == counts


def test_replacements_that_there_cannot_be() -> None:
    """One slot has no other order and is the first already, one item has no other item."""
    four, one = items("ABCD"), items("A")
    assert list(given_latents(beliefs_of(four), 0)) == list(GIVEN)
    assert set(GIVEN) - set(given_latents(beliefs_of(four, k=1), 0)) == {"shuffled", "first_slot"}
    assert set(GIVEN) - set(given_latents(beliefs_of(one), 0)) == {"other_item"}
    assert set(GIVEN) - set(given_latents(beliefs_of(one, k=1), 0)) == {"shuffled", "first_slot", "other_item"}
