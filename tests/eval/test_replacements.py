"""Latents in the place of an item's own: each is what its name says, and belongs to an item whatever else there is."""

from collections import Counter
from math import sqrt

import pytest
import torch
from torch import Tensor

from eval.predictions import pack
from eval.replacements import GIVEN, InterventionError, replacement
from model.latent import Injection, LatentConfig

K, D = 3, 8
ALONE = ("zero", "unit_noise", "first_slot", "shuffled")  # made of an item's own mean, or of none
SEEDED = ("unit_noise", "matched_noise", "shuffled", "other_item")


def drawn(n: int, k: int = K) -> dict[str, Tensor]:
    """Means of as many items."""
    torch.manual_seed(n)
    return {f"item {number}": torch.randn(k, D) for number in range(n)}


def made(name: str, means: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    return replacement(name, list(means), means, seed)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all that is in `a` is the same in `b`, to the last bit."""
    return all(torch.equal(z, b[key]) for key, z in a.items())


# ---- What holds for all ----


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("k", [2, K, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_item_has_one(name: str, k: int, dtype: torch.dtype) -> None:
    """[k, d] in fp32, in the order of the keys, also for an item without a mean; and means stay what they are."""
    means = {key: mean.to(dtype) for key, mean in drawn(5, k).items()}
    before = {key: mean.clone() for key, mean in means.items()}
    z = replacement(name, ["lost", *means], means, 0)
    assert list(z) == ["lost", *means] and same(before, means)
    assert all(one.shape == (k, D) and one.dtype == torch.float32 and one.isfinite().all() for one in z.values())


@pytest.mark.parametrize("name", GIVEN)
def test_it_belongs_to_an_item_and_a_seed(name: str) -> None:
    """Whatever order the items come in, and for some whatever other items there are."""
    means = drawn(20)
    z = made(name, means)
    assert same(made(name, dict(reversed(means.items()))), z)
    assert same(z, replacement(name, [*means, "lost"], means, 0))
    some = dict(list(means.items())[4:15:2])
    assert same(made(name, some), z) == (name in ALONE)
    assert same(replacement(name, list(some), means, 0), z), "who is asked for does not matter, only who is known"
    assert same(made(name, means, 1), z) == (name not in SEEDED)
    assert len({pack(one) for one in z.values()}) == (1 if name in ("zero", "data_mean") else 20)


@pytest.mark.parametrize(
    ("name", "n", "k", "line"),
    [
        ("swapped", 4, K, "swapped: not one of zero, unit_noise, matched_noise, data_mean, first_slot, shuffled, "
         "other_item; name one of these"),
        ("zero", 0, K, "zero: no item has a prior's mean to make it from"),
        ("other_item", 1, K, "other_item: 1 item is too few to exchange latents; raise --limit"),
        ("shuffled", 4, 1, "shuffled: one slot alone has no other order; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be(name: str, n: int, k: int, line: str) -> None:
    with pytest.raises(InterventionError) as caught:
        replacement(name, ["item 0"], drawn(n, k), 0)
    assert str(caught.value) == line


# ---- Each is what its name says ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_leave_the_slots_own_vectors(dtype: torch.dtype) -> None:
    """And nothing becomes NaN where their length is divided by."""
    means = drawn(4)
    z = made("zero", means)
    assert not any(one.any() for one in z.values())
    injection = Injection(16, LatentConfig(slots=K, width=D))
    injection.reset()
    torch.nn.init.normal_(injection.project.bias, std=0.01)
    injection = injection.to(dtype)
    with torch.no_grad():
        found = injection(torch.stack(list(z.values())), torch.tensor(0.5)).float()
        own = (injection.table.weight + injection.project.bias).float()
        moved = injection(torch.stack(list(means.values())), torch.tensor(0.5)).float()
    wanted = own * 0.5 / own.pow(2).mean(-1, keepdim=True).sqrt()
    assert found.isfinite().all() and found.allclose(wanted.expand_as(found), rtol=0.02, atol=1e-4)
    assert not moved.allclose(found, rtol=0.02, atol=1e-4), "the check means something"


def test_noise_has_the_moments_of_the_means() -> None:
    """Those of each slot and dimension; and unit noise has those of N(0, I)."""
    torch.manual_seed(0)
    centre, width = torch.randn(K, D) * 5, torch.rand(K, D) + 0.1
    means = {f"k{number}": centre + width * torch.randn(K, D) for number in range(4000)}
    own = torch.stack(list(means.values()))
    z = torch.stack(list(made("matched_noise", means).values()))
    assert ((z.mean(0) - own.mean(0)).abs() < 5 * width / sqrt(4000)).all()
    assert (z.std(0) / own.std(0) - 1).abs().max() < 0.06
    assert (
        torch.corrcoef(torch.stack([z.flatten(), own.flatten()]) - centre.repeat(4000, 1).flatten())[0, 1].abs() < 0.02
    )
    unit = torch.stack(list(made("unit_noise", means).values()))
    assert unit.mean(0).abs().max() < 5 / sqrt(4000) and (unit.std(0) - 1).abs().max() < 0.06


def test_the_mean_of_all() -> None:
    """By slot and dimension, over the items that have one alone, and exact where means are large and alike."""
    torch.manual_seed(0)
    own = 4096 + torch.randint(0, 9, (5000, K, D)) / 2**11
    means = {f"item {number}": mean for number, mean in enumerate(own)}
    z = replacement("data_mean", [*means, "lost"], means, 0)
    wanted = own.double().mean(0).float()
    assert all(torch.equal(one, wanted) for one in z.values())
    assert not torch.equal(own.mean(0), wanted), "the check means something"


def test_the_first_slot_in_every_slot() -> None:
    means = drawn(6)
    for key, z in made("first_slot", means).items():
        assert all(torch.equal(slot, means[key][0]) for slot in z)
    one = drawn(6, 1)
    assert same(made("first_slot", one), one), "one slot alone is what it was"


@pytest.mark.parametrize("k", [2, 3, 8, 64, 256])
def test_no_slot_keeps_its_place(k: int) -> None:
    """Every slot has another place, and every place a slot; items have orders of their own."""
    means = {f"item {number}": torch.arange(k).float().view(k, 1).repeat(1, D) + 1000 * number for number in range(50)}
    orders = []
    for number, z in enumerate(made("shuffled", means).values()):
        assert torch.equal(z, z[:, :1].expand(k, D))
        order = (z[:, 0] - 1000 * number).long()
        assert sorted(order.tolist()) == list(range(k)) and not (order == torch.arange(k)).any()
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) >= {2: 1, 3: 2}.get(k, 45), "two slots can only change places"


def test_all_orders_are_equally_likely() -> None:
    """Of four slots there are nine without one in its place."""
    means = {f"item {number}": torch.arange(4.0).view(4, 1) for number in range(9000)}
    counts = Counter(tuple(z[:, 0].tolist()) for z in made("shuffled", means).values())
    assert len(counts) == 9
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 26.1, "chi squared, 8 degrees, p = 0.001"


@pytest.mark.parametrize("n", [2, 3, 12, 101])
@pytest.mark.parametrize("seed", [0, 1])
def test_another_items_latents(n: int, seed: int) -> None:
    """Every item's go to one other item."""
    means = drawn(n)
    z = made("other_item", means, seed)
    owner = {pack(mean): key for key, mean in means.items()}
    source = {key: owner[pack(one)] for key, one in z.items()}
    assert all(key != other for key, other in source.items()) and sorted(source.values()) == sorted(means)
    assert same(made("other_item", dict(reversed(means.items())), seed), z)
    assert n <= 3 or not same(made("other_item", means, seed + 1), z)
