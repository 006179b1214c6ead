"""Reinforcement learning on two ranks: as one process does it, in every setting, and on after every interruption."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.processor import Processor
from model.build import load_export
from model.export import write
from tests.distributed.rl_ranks import CASES
from tests.distributed.zygote import free_port

ROOT = Path(__file__).parents[2]
OTHERS = ("sft", "pause", "deterministic")
ALONE = ("gathered", "sharded", "optional", "constant_replay", "density_ratio", "reference", *OTHERS)


@pytest.fixture(scope="module")
def launch(
    tiny_shards: Path,
    export_of: Callable[[str], Path],
    processor: Processor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., list[Any]]:
    """A function that has so many ranks run cases. Returns what each rank found."""

    folder = tmp_path_factory.mktemp("rl")
    eager = load_export(export_of("amvl"))
    eager.backbone.model.lm_head.weight.data[processor.latent_start].mul_(4)  # it asks for latents now and then
    write(eager, eager.state_dict(), processor, {"name": "amvl"}, folder / "exports/amvl")
    for objective in OTHERS:
        shutil.copytree(export_of(objective), folder / "exports" / objective)

    def run(ranks: int, *cases: str) -> list[Any]:
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
        launcher += ["--master_port", str(free_port()), "--module", "tests.distributed.rl_ranks"]
        command = [*launcher, folder / "out.json", tiny_shards, folder / "exports", folder / "runs", *cases]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        found: list[Any] = json.loads((folder / "out.json").read_text())
        return found

    return run


@pytest.fixture(scope="module")
def two(launch: Callable[..., list[Any]]) -> list[Any]:
    """What each of two ranks found."""
    return launch(2, *CASES)


@pytest.fixture(scope="module")
def one(two: list[Any], launch: Callable[..., list[Any]]) -> Any:
    """What a process on its own found, which goes on with one run that two ranks began."""
    return launch(1, *ALONE, "elastic")[0]


def groups(ranks: list[Any], case: str, number: int = 0) -> dict[str, Any]:
    """A rollout's groups of all ranks, by prompt."""
    merged: dict[str, Any] = {}
    for rank in ranks:
        merged |= rank[case]["rollouts"][number]
    return merged


@pytest.mark.parametrize("case", ALONE)
def test_two_ranks_are_one_process(two: list[Any], one: Any, case: str) -> None:
    """The same completions of the same prompts, rewards, losses and weights."""
    ours, theirs = groups(two, case), groups([one], case)
    assert ours.keys() == theirs.keys() and len(ours) == 8
    for key, group in ours.items():
        assert group["ids"] == theirs[key]["ids"] and group["at"] == theirs[key]["at"]
        assert group["advantages"] == pytest.approx(theirs[key]["advantages"], abs=1e-3)
    assert sum(len(set(map(tuple, group["ids"]))) > 1 for group in ours.values()) >= 6, "they differ"
    a, b = (found[case]["steps"][0] for found in (two[0], one))
    for name, value in a["sums"].items():
        assert value == pytest.approx(b["sums"][name], rel=1e-4, abs=1e-3), name
    # Not weights: Adam's first step has the size of the learning rate in every weight, also where rounding decides.
    norms = [found[case]["norms"][0] for found in (*two, one)]
    assert norms == pytest.approx([norms[-1]] * 3, rel=1e-4) and norms[0] > 0.1


@pytest.mark.parametrize("case", ALONE)
@pytest.mark.parametrize("ranks", [1, 2])
def test_rollout_and_update_agree(two: list[Any], one: Any, case: str, ranks: int) -> None:
    """Tokens are as likely while they are drawn as when they are measured, and the first ratios are 1."""
    found = two if ranks == 2 else [one]
    for rank in found:
        for group in rank[case]["rollouts"][0].values():
            for drawn, measured in zip(group["drawn"], group["measured"], strict=True):
                assert drawn == pytest.approx(measured, abs=2e-5)
        assert rank[case]["steps"][0]["furthest"] <= 1e-5
        assert rank[case]["steps"][0]["sums"]["tokens"] > 50


def test_both_ways_to_hold_the_weights_draw_the_same(two: list[Any]) -> None:
    ours, theirs = groups(two, "gathered"), groups(two, "sharded")
    assert {key: group["ids"] for key, group in ours.items()} == {key: group["ids"] for key, group in theirs.items()}
    for rank in two:
        for a, b in zip(rank["gathered"]["steps"], rank["sharded"]["steps"], strict=False):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_some_completions_ask_for_latents(two: list[Any]) -> None:
    places = [at for group in groups(two, "optional").values() for at in group["at"]]
    assert {None, 1, 2} <= set(places)
    for case, wanted in (("gathered", 0), ("pause", 0), ("deterministic", 0), ("sft", None)):
        assert {at for group in groups(two, case).values() for at in group["at"]} == {wanted}


def test_texts_that_end_a_completion(two: list[Any]) -> None:
    """It ends with the token that completes one, which is no part of its text."""
    found = groups(two, "stop").values()
    texts = [text for group in found for text in group["texts"]]
    assert not any("e" in text or "1" in text for text in texts)
    lengths = [len(ids) for group in found for ids in group["ids"]]
    cut = [n for group in found for n, ended in zip(map(len, group["ids"]), group["ended"], strict=True) if not ended]
    assert any(n < 12 for n in cut) and max(lengths) <= 12


def test_weights_are_gathered_where_they_fit(two: list[Any]) -> None:
    assert [rank["auto"] for rank in two] == [["Gathered", "Sharded"]] * 2


def test_the_reference_is_the_model_at_the_start(two: list[Any]) -> None:
    """At first it says what the policy says, and later not."""
    for rank in two:
        for number, close in ((0, True), (1, False)):
            apart = [
                abs(a - b)
                for group in rank["reference"]["rollouts"][number].values()
                for ours, theirs in zip(group["measured"], group["reference"], strict=False)
                for a, b in zip(ours, theirs, strict=True)
            ]
            assert apart and (max(apart) < 1e-5) == close
        first, second = rank["reference"]["steps"]
        assert abs(first["sums"]["kl"]) < 1e-6 < second["sums"]["kl"]


def test_a_rank_without_anything_to_learn_from_keeps_step(two: list[Any]) -> None:
    dropped = [{group["dropped"] for group in rank["one_rank_learns"]["rollouts"][0].values()} for rank in two]
    assert None in dropped[0] and dropped[1] == {"equal"}
    assert all(rank["one_rank_learns"]["steps"][0]["sums"]["tokens"] > 0 for rank in two)
    assert not two[1]["one_rank_learns"]["steps"][0]["samples"]


def test_nothing_to_learn_from_changes_nothing(two: list[Any]) -> None:
    for rank in two:
        found = rank["nobody_learns"]
        assert all(step["empty"] and step["loss"] == 0 for step in found["steps"]) and len(found["steps"]) == 2
        assert found["weights"][0] == found["weights"][1]


def test_rewards_that_are_no_numbers_are_left_out(two: list[Any]) -> None:
    """The others are learned from; a group with nothing else is dropped; no weight becomes one."""
    for rank in two:
        found = rank["not_a_number"]
        for group in found["rollouts"][0].values():
            bad = [reward == "nan" for reward in group["rewards"]]
            assert any(bad) and (group["dropped"] == "invalid") == all(bad)
            assert all(advantage == 0 for advantage, nan in zip(group["advantages"], bad, strict=True) if nan)
        assert all(abs(weight) < 1e9 for weight in found["weights"])
    drawn = sum(len(ids) for group in groups(two, "not_a_number").values() for ids in group["ids"])
    assert 0 < two[0]["not_a_number"]["steps"][0]["sums"]["tokens"] < drawn


def test_several_steps_on_a_rollout(two: list[Any]) -> None:
    """Two parts, gone through twice: the first time around each ratio is 1 in the first step alone."""
    for rank in two:
        found = rank["whole"]
        assert len(found["rollouts"]) == 2 and len(found["steps"]) == 7
        furthest = [step["furthest"] for step in found["steps"]]
        assert furthest[0] <= 1e-5 and furthest[4] <= 1e-5
        assert min(furthest[1:4]) > 1e-4
        assert found["steps"][0]["samples"] == found["steps"][2]["samples"] != found["steps"][1]["samples"]


def test_a_resumed_run_is_an_unbroken_one(two: list[Any]) -> None:
    """Bit for bit, from a checkpoint in the midst of a rollout; what was drawn is not drawn again."""
    for rank in two:
        whole, (first, rest) = rank["whole"], rank["broken"]
        assert [step["loss"] for step in first["steps"]] == [step["loss"] for step in whole["steps"]][:5]
        assert [step["loss"] for step in rest["steps"]] == [step["loss"] for step in whole["steps"]][3:]
        assert rest["weights"] == whole["weights"][3:]
        assert rest["rollouts"] == whole["rollouts"][1:]


def test_one_rank_goes_on_where_two_were(two: list[Any], one: Any) -> None:
    """With the prompts that are next, and with the optimizer's state."""
    whole, rest = two[0]["gathered"], one["elastic"]
    assert len(rest["steps"]) == 1
    assert groups([one], "elastic").keys() == groups(two, "gathered", 2).keys()
    ours, theirs = groups([one], "elastic"), groups(two, "gathered", 2)
    same = [ours[key]["ids"] == theirs[key]["ids"] for key in ours]
    assert sum(same) >= len(same) - 1  # weights differ in their last digits, and so may a token
    assert rest["norms"][0] == pytest.approx(whole["norms"][2], rel=0.05)


def test_a_rollout_of_other_prompts_is_given_up(two: list[Any]) -> None:
    """By all ranks, where one finds that: a new one begins with the prompts that are next."""
    for rank in two:
        first, second = rank["other_prompts"]
        assert len(first["rollouts"]) == 1 and len(second["rollouts"]) == 1
        assert second["rollouts"][0].keys() == first["rollouts"][0].keys()
        assert [len(part["steps"]) for part in (first, second)] == [2, 2]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(two: list[Any]) -> None:
    """Stopped between steps, and while completions are drawn, which are drawn again."""
    for rank in two:
        whole, parts = rank["whole"], rank["stopped"]
        assert [len(part["steps"]) for part in parts] == [2, 2, 3]
        for name in ("weights", "rollouts"):
            assert [x for part in parts for x in part[name]] == whole[name]
