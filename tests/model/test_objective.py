"""Schedules of the KL weights, and which terms an objective has."""

import pytest
from pydantic import ValidationError

from model.objective import RECIPES, ObjectiveConfig


def test_weights_rise_one_after_the_other():
    config = ObjectiveConfig(beta=1, gamma=0.5, late=(0.3, 0.4))
    got = [config.weights(share) for share in (0.0, 0.05, 0.1, 0.3, 0.35, 0.4, 1.0)]
    expected = [(0, 0), (0.5, 0), (1, 0), (1, 0), (1, 0.25), (1, 0.5), (1, 0.5)]
    assert got == [pytest.approx(pair) for pair in expected]


def test_reverse_first_swaps_the_rises_not_the_heights():
    config = ObjectiveConfig(beta=1, gamma=0.5, late=(0.3, 0.4), order="reverse_first")
    assert config.weights(0.1) == pytest.approx((0, 0.5))
    assert config.weights(0.35) == pytest.approx((0.5, 0.5))


def test_terms_that_an_objective_lacks_weigh_nothing():
    for name, recipe in RECIPES.items():
        beta, gamma = ObjectiveConfig(name=name).weights(1.0)
        assert (beta > 0) == (recipe.forward != "off")
        assert (gamma > 0) == (recipe.reverse != "off")


def test_all_objectives_are_there():
    names = {"sft", "pause", "deterministic", "ntp", "forward", "reverse", "elbo", "symmetric", "amvl"}
    assert set(RECIPES) == names
    with pytest.raises(ValidationError):
        ObjectiveConfig(name="kl")


@pytest.mark.parametrize("rise", [(0.5, 0.2), (3, 9), (-0.1, 0.1)])
def test_a_rise_must_lie_within_the_run(rise: tuple[float, float]):
    with pytest.raises(ValidationError, match="share of the steps"):
        ObjectiveConfig(late=rise)


def test_a_rise_of_no_length_is_a_switch():
    config = ObjectiveConfig(beta=1, gamma=1, early=(0.0, 0.0), late=(0.5, 0.5))
    assert config.weights(0.0) == (1.0, 0.0)
    assert config.weights(0.5) == (1.0, 1.0)
