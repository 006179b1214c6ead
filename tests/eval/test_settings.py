"""Settings: what cannot be is refused in one line, and what changes no reply is known."""

from typing import Any

import pytest
from pydantic import ValidationError

from eval.benchmarks.item import Benchmark, Labels, Prompt
from eval.judge import JudgeConfig
from eval.request import Request, label, reading
from eval.results import FREE
from eval.settings import Settings
from model.thinking import Thinking


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"mode": "guess"}, "mode", "Input should be 'generate', 'score' or 'prior'"),
        ({"latents": "median"}, "latents", "latents 'median': not mean, sample:T, vote:N, vote:N:T, optional, "),
        ({"latents": "given"}, "latents", "latents 'given': z has to come from somewhere"),
        ({"latents": "optional:101"}, "latents", "latents 'optional:101': not mean"),
        ({"latents": "vote:0"}, "latents", "latents 'vote:0': not mean"),
        ({"max_new_tokens": 0}, "max_new_tokens", "greater than or equal to 1"),
        ({"max_new_tokens": 1_000_001}, "max_new_tokens", "less than or equal to 1000000"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 100.1}, "temperature", "less than or equal to 100"),
        ({"temperature": float("nan")}, "temperature", "less than or equal to 100"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p", "greater than 0"),
        ({"top_p": 1.1, "temperature": 1.0}, "top_p", "less than or equal to 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "seed", "less than or equal to 9223372036854775807"),
        ({"stop": ("x", "")}, "stop", "an empty text would end every reply; leave it out"),
        ({"min_pixels": 0}, "min_pixels", "greater than or equal to 1"),
        ({"max_pixels": 0}, "max_pixels", "greater than or equal to 1"),
        ({"dtype": "fp16"}, "dtype", "'auto', 'fp32' or 'bf16'"),
        ({"attention": "eager"}, "attention", "'auto', 'flash', 'varlen' or 'sdpa'"),
        ({"vision_attention": "eager"}, "vision_attention", "'auto', 'flash', 'varlen' or 'sdpa'"),
        ({"tokens": 0}, "tokens", "greater than or equal to 1"),
        ({"processes": 0}, "processes", "greater than or equal to 1"),
        ({"processes": 1025}, "processes", "less than or equal to 1024"),
        ({"tempreature": 1.0}, "tempreature", "Extra inputs are not permitted"),
        ({"min_pixels": 9, "max_pixels": 8}, None, "min_pixels 9 is above max_pixels 8; lower it"),
        ({"mode": "score", "temperature": 1.0}, None, "mode score writes no reply: leave out temperature"),
        ({"mode": "score", "temperature": 1.0, "top_p": 0.5}, None, "mode score writes no reply: leave out"),
        ({"mode": "score", "stop": ("x",)}, None, "mode score writes no reply: leave out"),
        ({"mode": "score", "max_new_tokens": 5}, None, "mode score writes no reply: leave out"),
        ({"mode": "score", "latents": "optional"}, None, "latents optional: mode score writes nothing"),
        ({"top_p": 0.5}, None, "top_p 0.5 without a temperature draws nothing; set temperature"),
        ({"zero3": True, "processes": 2}, None, "zero3 runs in the ranks that deepspeed started; leave out processes"),
    ],
    ids=str,
)
def test_what_cannot_be(given: dict, place: str | None, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**given)
    (error,) = caught.value.errors()
    assert error["loc"] == ((place,) if place else ()), "the field at fault is named"
    assert words in error["msg"] and "\n" not in error["msg"]


def test_limits_themselves_are_taken() -> None:
    Settings(max_new_tokens=1, temperature=0, seed=0, tokens=1, processes=1, min_pixels=1, max_pixels=1)
    Settings(max_new_tokens=1_000_000, temperature=100, top_p=1, seed=2**63 - 1, processes=1024)
    Settings(mode="score", latents="vote:3", seed=3, min_pixels=5, max_pixels=5)
    Settings(temperature=0.5, top_p=0.5, stop=("\n",), zero3=True)
    Settings(mode="score", latents="markers", tokens=1)


def test_settings_stay_as_they_are() -> None:
    settings = Settings(latents="vote:3:0.5")
    assert settings.thinking == Thinking("vote", 0.5, 3)
    with pytest.raises(ValidationError):
        settings.seed = 3  # type: ignore[misc]


def test_what_changes_no_reply() -> None:
    """Batches, processes and how weights are spread; a new field changes replies until it is said not to."""
    assert set(FREE) == {"tokens", "processes", "zero3"} < set(Settings.model_fields)


BENCHMARK = Benchmark(
    "b", "val", (), {"own": Prompt("b/own-1", str), "other": Prompt("b/other-1", str)}, "micro", Labels("", "")
)


def labelled(
    rules: str = "plain", judge: JudgeConfig | None = None, selection: tuple[str, ...] = (), **how: Any
) -> str:
    return label(BENCHMARK, Request(Settings(**how), rules=rules, judge=judge, selection=selection))


def test_label() -> None:
    """The benchmark's name alone by default, and whatever was asked for by hand."""
    assert labelled() == labelled(tokens=1, processes=7) == labelled(zero3=True) == labelled(prompt="own") == "b"
    assert labelled(seed=3, latents="vote:3:0.5", mode="score") == "b,mode=score,latents=vote:3:0.5,seed=3"
    assert labelled(temperature=0.5, stop=("a/b", "\n")) == r"b,temperature=0.5,stop=('a_b', '\n')"
    judge = JudgeConfig(url="http://localhost/v1", model="org/m")
    assert labelled("official", judge, ("limit=40",), prompt="other") == "b,limit=40,prompt=other", "the same replies"
    assert reading(Request(Settings(), rules="official", judge=judge)) == ["rules=official", "judge=org_m"]
    assert reading(Request(Settings())) == []


def test_labels_are_names_of_folders() -> None:
    """Each set field makes another one, and none has a slash, a line end or more than a file system takes."""
    given: dict[str, Any] = {
        "mode": "score", "latents": "off", "prompt": "other", "blind": True, "max_new_tokens": 5, "temperature": 0.5,
        "seed": 1, "stop": ("/",), "min_pixels": 64, "max_pixels": 64, "dtype": "bf16", "attention": "sdpa",
        "vision_attention": "sdpa",
    }  # fmt: skip
    assert set(given) == set(Settings.model_fields) - set(FREE) - {"top_p"}
    labels = [labelled(**{name: value}) for name, value in given.items()]
    labels += [labelled(temperature=0.5, top_p=0.5), labelled(stop=("x\n" * 500,))]
    assert len({"b", *labels}) == len(labels) + 1
    assert all("/" not in one and "\n" not in one and len(one) <= 200 for one in labels)
