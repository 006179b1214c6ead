"""Batches of items to predictions: what they cost, that no item depends on those beside it, and what goes wrong."""

import io
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import shards
from data.processor import Encoded
from data.sample import Sample, Text
from eval.answer import REPLY, Answerer, Job, Planner
from eval.models import Model, find_model
from eval.predictions import Prediction
from eval.results import FREE
from eval.settings import Settings
from model.generate import Decoding, generate
from model.thinking import Thinking
from tests.eval.scarce import OPTIONS, packed

ROOT = Path(__file__).parents[2]
NEW = 5  # tokens of a reply at most
SIZES = ((64, 64), (40, 200), (256, 256), (300, 300), (700, 33), (17, 9), (8, 8))  # enlarged and shrunk ones as well


def picture(width: int, height: int, seed: int = 0, form: str = "PNG", turn: int | None = None) -> bytes:
    """Noise, turned by EXIF where asked."""
    image, out = (
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)),
        io.BytesIO(),
    )
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    image.save(out, form, exif=exif)
    return out.getvalue()


def sample(key: str, *images: bytes, question: str = "What is seen?") -> Sample:
    return Sample(key=key, text=Text(question=question, answer="A", task="t", source="s"), images=images)


@pytest.fixture(scope="module")
def samples(tiny_shards: Path) -> list[Sample]:
    """Thirty-six samples with 0, 1, 2 and 3 pictures of many sizes."""
    chosen = list(shards.read_set(tiny_shards))[:29]
    chosen += [sample(f"size{n}", picture(*size), picture(96, 64, n)) for n, size in enumerate(SIZES)]
    assert {len(s.images) for s in chosen} == {0, 1, 2, 3} and len(chosen) == 36
    return chosen


@pytest.fixture(scope="module")
def amvl(export_of: Callable[[str], Path]) -> Model:
    return find_model(export_of("amvl"))


def given(model: Model, **how: object) -> Settings:
    generates = how.get("mode", "generate") == "generate"
    return model.effective(Settings(**({"max_new_tokens": NEW, "tokens": 100_000} if generates else {}) | how))


def planned(model: Model, settings: Settings, samples: list[Sample]) -> list[list[Job]]:
    planner = Planner(model, settings)
    return planner.batches(planner.job(s, OPTIONS if settings.mode == "score" else ()) for s in samples)


def answered(model: Model, settings: Settings, samples: list[Sample]) -> dict[str, Prediction]:
    """By key."""
    answerer = Answerer(model, settings, "cpu")
    return {p.key: p for batch in answerer.stream(planned(model, settings, samples)) for p in batch}


# ---- What items cost, and batches ----


def latent(draws: int) -> int:
    """Tokens of the export's 3 slots: the prior's, and for every draw those of a decode branch with two marks."""
    return 3 + draws * (3 + 2)


def test_costs_are_the_tokens_that_are_run(amvl: Model, samples: list[Sample], tiny_shards: Path) -> None:
    """Of every prompt, from the headers of its pictures alone."""
    planner = Planner(amvl, given(amvl))
    odd = [
        sample("turned", picture(40, 200, form="JPEG", turn=6), picture(200, 72, form="TIFF", turn=8)),
        sample("upside down", picture(100, 300, form="WEBP", turn=3)),
        sample("large", picture(1500, 900)),
        sample("places", picture(90, 60), picture(64, 64), question="<image> or <image>?"),
    ]
    tokens = []
    for one in [*shards.read_set(tiny_shards), *samples, *odd]:
        encoded = planner.processor.encode(one)
        assert planner.processor.length(one) == len(encoded.prompt), one.key
        assert planner.job(one, ()).cost == len(encoded.prompt) + latent(1) + NEW
        tokens.append(len(encoded.prompt))
    assert len(set(tokens)) > 20


def test_costs_of_what_comes_behind(amvl: Model, samples: list[Sample]) -> None:
    """Replies up to what a batch has room for, options, and both once per draw."""
    length = Planner(amvl, given(amvl)).processor.length(samples[0])

    def behind(**how: object) -> int:
        options = OPTIONS if how.get("mode") == "score" else ()
        return Planner(amvl, given(amvl, **how)).job(samples[0], options).cost - length

    assert (behind(), behind(latents="vote:3")) == (latent(1) + NEW, latent(3) + 3 * NEW)
    assert (behind(latents="off"), behind(max_new_tokens=10**6)) == (NEW, latent(1) + REPLY)
    assert (behind(latents="markers"), behind(latents="optional:0.5")) == (2 + NEW, latent(1) + NEW)
    with_z = Planner(amvl, given(amvl).model_copy(update={"latents": "given"})).job(samples[0], (), "z")
    assert (with_z.cost - length, behind(mode="prior")) == (3 + 2 + NEW, 3), "no prior, and nothing but it"
    assert behind(mode="score", latents="vote:2") - latent(2) == 2 * (behind(mode="score") - latent(1))
    ids = Planner(amvl, given(amvl)).processor.tokenizer(list(OPTIONS), add_special_tokens=False)["input_ids"]
    assert behind(mode="score", latents="off") >= sum(map(len, ids)) > len(OPTIONS)


def test_a_picture_that_is_none_costs_nothing(amvl: Model) -> None:
    planner = Planner(amvl, given(amvl))
    assert planner.job(sample("none", b"no picture"), ()).cost == latent(1) + NEW
    cut = picture(96, 96)[:-40]  # only decoding it tells
    assert planner.job(sample("cut", cut), ()).cost == planner.job(sample("whole", picture(96, 96)), ()).cost


@pytest.mark.parametrize("budget", [1, 60, 150, 400, 100_000])
def test_batches_keep_the_budget_and_begin_with_the_longest(amvl: Model, samples: list[Sample], budget: int) -> None:
    settings = given(amvl, tokens=budget)
    batches = planned(amvl, settings, samples)
    costs = [[job.cost for job in batch] for batch in batches]
    flat = [cost for batch in costs for cost in batch]
    assert flat == sorted(flat, reverse=True)
    assert sorted(job.sample.key for batch in batches for job in batch) == sorted(s.key for s in samples)
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in costs)
    assert all(sum(batch) + following[0] > budget for batch, following in itertools.pairwise(costs))
    assert planned(amvl, settings, samples[::-1]) == planned(amvl, settings, samples) == batches
    assert len(batches) == {1: 36, 100_000: 1}.get(budget, len(batches))


# ---- What a prediction is known by ----


def job_id(model: Model, one: Sample, options: tuple[str, ...] = (), **how: object) -> str:
    return Planner(model, given(model, **how)).job(one, options).id


def test_ids_tell_apart_all_that_a_prediction_depends_on(amvl: Model, export_of, tiny_backbone: Path) -> None:
    one = sample("k", picture(64, 64), picture(64, 96))
    settings = [
        {"latents": "off"}, {"latents": "vote:2"}, {"latents": "vote:2:0.5"}, {"prompt": "p"}, {"blind": True},
        {"max_new_tokens": NEW + 1}, {"temperature": 0.5}, {"temperature": 0.5, "top_p": 0.5}, {"seed": 1},
        {"stop": ("x",)}, {"stop": ("x", "y")}, {"min_pixels": 5000}, {"max_pixels": 5000}, {"dtype": "bf16"},
        {"mode": "score"}, {"mode": "prior"}, {"latents": "markers"}, {"latents": "optional"},
    ]  # fmt: skip
    back_ends = {"attention", "vision_attention"}  # of which one alone runs here
    assert {name for how in settings for name in how} | back_ends == set(Settings.model_fields) - set(FREE)
    seen = [job_id(amvl, one), *(job_id(amvl, one, **how) for how in settings)]
    for name in back_ends:
        changed = given(amvl).model_copy(update={name: "varlen"})
        seen.append(Planner(amvl, changed).job(one, ()).id)
    first, second = one.images
    text = one.text.model_copy(update={"question": "What is seen, then?"})
    for other in (
        sample("l", first, second),
        sample("k", second, first),
        sample("k", first),
        sample("k", first, picture(64, 96, seed=1)),
        one.model_copy(update={"text": text}),
    ):
        seen.append(job_id(amvl, other))
    seen += [job_id(amvl, one, options, mode="score") for options in (("A", "B"), ("A, B",), ("B", "A"), ("A", "C"))]
    with_z = Planner(amvl, given(amvl).model_copy(update={"latents": "given"}))
    seen += [with_z.job(one, (), z).id for z in (None, "AAAA", "AAAB")]
    seen += [job_id(find_model(path), one, dtype="fp32") for path in (export_of("sft"), tiny_backbone)]
    assert len(set(seen)) == len(seen)


def test_ids_stay_where_nothing_that_counts_changes(amvl: Model, export_of) -> None:
    """Neither what is free, nor what was default and is now said, nor the right answer, nor the place."""
    one = sample("k", picture(64, 64))
    known = job_id(amvl, one)
    assert job_id(amvl, one, tokens=1, processes=5) == job_id(amvl, one, zero3=True) == known
    assert job_id(amvl, one, dtype="fp32", attention="sdpa", max_pixels=65536, latents="mean") == known
    text = one.text.model_copy(update={"answer": "B", "source": "elsewhere"})
    assert job_id(amvl, one.model_copy(update={"text": text, "origin": "a.tar"})) == known


# ---- What is said ----


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize("latents", ["mean", "off", "vote:3", "sample:0.7", "markers"])
def test_predictions_do_not_depend_on_the_batch(amvl: Model, samples: list[Sample], mode: str, latents: str) -> None:
    settings = given(amvl, mode=mode, latents=latents, **({"tokens": 100_000} if mode == "score" else {}))
    alone = answered(amvl, settings.model_copy(update={"tokens": 1}), samples)
    assert len(alone) == len(samples) and not any(p.failed for p in alone.values())
    for tokens in (100_000, 900):
        together = answered(amvl, settings.model_copy(update={"tokens": tokens}), samples)
        if mode == "generate":
            assert together == alone
            continue
        assert {k: p.id for k, p in together.items()} == {k: p.id for k, p in alone.items()}
        for key, one in alone.items():
            # Of up to 100 nats an option, in fp32.
            assert together[key].scores == pytest.approx(one.scores, abs=1e-5, rel=1e-6), key
    # The check means something.
    if mode == "score":
        assert all(p.scores and len(p.scores) == len(OPTIONS) and p.replies == () for p in alone.values())
        assert torch.tensor([p.scores for p in alone.values()]).std(0).min() > 0.1
        return
    draws = 3 if latents == "vote:3" else 1
    assert all(len(p.replies) == len(p.finish) == draws and p.scores is None for p in alone.values())
    assert len({p.replies for p in alone.values()}) > len(samples) / 2
    assert any(len(set(p.replies)) > 1 for p in alone.values()) == (draws > 1)
    assert {f for p in alone.values() for f in p.finish} == {"end", "length"}


def test_sampled_replies_do_not_depend_on_the_batch(amvl: Model, samples: list[Sample]) -> None:
    settings = given(amvl, temperature=0.9, top_p=0.95, seed=4)
    alone = answered(amvl, settings.model_copy(update={"tokens": 1}), samples[:12])
    assert answered(amvl, settings, samples[:12]) == alone
    other = answered(amvl, settings.model_copy(update={"seed": 5}), samples[:12])
    assert {k: p.replies for k, p in other.items()} != {k: p.replies for k, p in alone.items()}


def test_pictures_and_questions_count(amvl: Model, samples: list[Sample]) -> None:
    """An item's reply is to its own pictures."""
    shown = answered(amvl, given(amvl), samples)
    blind = answered(
        amvl, given(amvl), [s.model_copy(update={"images": ()}) for s in samples if "<image>" not in s.text.question]
    )
    changed = [key for key, p in blind.items() if p.replies != shown[key].replies]
    assert len(changed) > len([key for key in blind if samples_by(samples)[key].images]) / 2


def samples_by(samples: list[Sample]) -> dict[str, Sample]:
    return {s.key: s for s in samples}


def test_a_cut_reply_says_so(amvl: Model, samples: list[Sample]) -> None:
    """With more room it goes on from the same beginning; one that ended by itself stays as it is."""
    short, long = (answered(amvl, given(amvl, max_new_tokens=n), samples) for n in (2, 8))
    assert {p.finish for p in short.values()} == {("length",), ("end",)}
    for key, one in short.items():
        (before,), (after,) = one.replies, long[key].replies
        assert after.startswith(before) or "\ufffd" in before
        if one.finish == ("end",):
            assert (before, one.finish) == (after, long[key].finish)
    assert any(len(long[key].replies[0]) > len(one.replies[0]) for key, one in short.items())


def test_a_reply_ends_at_a_stop_text(amvl: Model, samples: list[Sample]) -> None:
    """Before it, wherever it stands; replies without it are those of a model that was not stopped."""
    whole = answered(amvl, given(amvl, max_new_tokens=8), samples)
    letters = [c for p in whole.values() for c in set(p.replies[0][1:-1]) if c.isalnum()]
    stops = tuple(sorted(set(letters), key=letters.count)[-2:])
    settings = given(amvl, max_new_tokens=8, stop=stops)
    stopped = answered(amvl, settings, samples)
    assert answered(amvl, settings.model_copy(update={"tokens": 1}), samples) == stopped
    found = 0
    for key, one in stopped.items():
        (reply,) = whole[key].replies
        places = [reply.index(stop) for stop in stops if stop in reply]
        if places:
            assert (one.replies, one.finish) == ((reply[: min(places)].strip(),), ("stop",))
            found += 1
        else:
            assert (one.replies, one.finish) == (whole[key].replies, whole[key].finish)
    assert 3 < found < len(samples)


def test_latents_that_the_model_asks_for(amvl: Model, samples: list[Sample]) -> None:
    """Where it writes the start mark; no mark is part of a reply, and batches change nothing."""
    optional, off = (given(amvl, latents=latents, tokens=tokens) for latents, tokens in (("optional", 900), ("off", 1)))
    answerer = Answerer(amvl, optional, "cpu")
    with torch.no_grad():
        answerer.model.backbone.model.lm_head.weight[answerer.markers.start].mul_(6)  # it asks now and then

    def said(settings: Settings) -> dict[str, Prediction]:
        return {p.key: p for batch in answerer.stream(planned(amvl, settings, samples)) for p in batch}

    found = said(optional)
    assert said(optional.model_copy(update={"tokens": 1})) == found
    encoded = [answerer.processor.encode(one) for one in samples]
    decoding = Decoding(answerer.ends, NEW)
    replies = generate(answerer.model, encoded, answerer.markers, decoding, Thinking("optional", 0.0))
    asked = [one.key for one, (reply,) in zip(samples, replies, strict=True) if reply.latent_at is not None]
    assert 0 < len(asked) < len(samples)
    assert not any("latent_" in p.replies[0] for p in found.values())
    without = {key: p.replies for key, p in said(off).items()}
    assert {key for key, p in found.items() if p.replies != without[key]} <= set(asked)
    assert any(found[key].replies != without[key] for key in asked)


# ---- What goes wrong ----


def test_a_damaged_picture_takes_nothing_from_the_others(amvl: Model, samples: list[Sample]) -> None:
    """Of three kinds: no picture, one that is cut, and one too long for its width; each is named."""
    whole = answered(amvl, given(amvl), samples[:12])
    broken = [
        sample("none", picture(64, 64), b"no picture"),
        sample("cut", picture(96, 96)[:-40]),
        sample("strip", picture(2000, 8)),
        sample("mark", question="What is <|image_pad|>?"),
    ]
    for tokens in (100_000, 1):
        found = answered(amvl, given(amvl, tokens=tokens), [*samples[:6], *broken, *samples[6:12]])
        assert {key: p for key, p in found.items() if key in whole} == whole
        failed = {key: p.failed or "" for key, p in found.items() if key not in whole}
        assert set(failed) == {one.key for one in broken}
        assert failed["none"].startswith("none.1: not a whole picture in JPEG")
        assert failed["cut"].startswith("cut.0: not a whole picture (")
        assert failed["strip"].startswith("strip: ") and "crop the picture" in failed["strip"]
        assert failed["mark"] == "mark: 1 image places for 0 images; take <|image_pad|> out of the question"
        assert all(p.replies == () == p.finish and p.scores is None for p in found.values() if p.failed)
    assert answered(amvl, given(amvl), broken[:1])["none"].failed, "a batch of nothing else"


def scarce(model: Model, megabytes: int, samples: list[Sample], **how: object) -> dict:
    """In a process that may take so many megabytes more than it has when all is set up."""
    settings = (
        {"tokens": 10**6, "max_pixels": 10**7} | ({} if how.get("mode") == "score" else {"max_new_tokens": NEW}) | how
    )
    command = [sys.executable, "-m", "tests.eval.scarce", model.folder, megabytes, json.dumps(settings)]
    # One arena: each further one reserves 64 MB of addresses, which would count as room.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        list(map(str, command)), input=packed(samples), capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def large() -> list[Sample]:
    """1,024 tokens each and more, one after another beyond the memory of most tests."""
    return [sample(f"k{n}", picture(256, 256, n), question=f"What is seen in {n}?") for n in range(24)]


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_a_batch_that_does_not_fit_into_memory_is_halved(amvl: Model, large: list[Sample], mode: str) -> None:
    """The memory is really short: the answers are the same, and later batches are smaller."""
    settings = given(amvl, mode=mode, max_pixels=10**7, tokens=10**6)
    wanted = answered(amvl, settings, large)
    (batch,) = planned(amvl, settings, large)
    short = scarce(amvl, 60, large, mode=mode)
    assert 0 < short["most"] <= sum(job.cost for job in batch) / 2
    found = {p.key: p for p in map(Prediction.model_validate, short["found"])}
    assert len(found) == len(large) and not any(p.failed for p in found.values())
    for key, one in wanted.items():
        assert (found[key].id, found[key].replies) == (one.id, one.replies)
        # Of up to 100 nats an option, in fp32.
        assert found[key].scores == (one.scores and pytest.approx(one.scores, abs=1e-5, rel=1e-6))


def test_pictures_that_find_no_room_for_now(amvl: Model, samples: list[Sample], monkeypatch) -> None:
    """While another batch is run: they are decoded again after it, and nothing is blamed on their item."""
    wanted = answered(amvl, given(amvl), samples[:6])
    answerer, refused = Answerer(amvl, given(amvl), "cpu"), []
    encode = answerer.processor.encode

    def short_once(one: Sample) -> Encoded:
        if one.key == samples[2].key and not refused:
            refused.append(one.key)
            raise MemoryError
        return encode(one)

    monkeypatch.setattr(answerer.processor, "encode", short_once)
    found = {p.key: p for batch in answerer.stream(planned(amvl, given(amvl), samples[:6])) for p in batch}
    assert refused and found == wanted


def test_an_item_that_does_not_fit_alone(amvl: Model, large: list[Sample]) -> None:
    """It is told of, the others are answered."""
    found = scarce(amvl, 60, [*large[:4], sample("huge", picture(900, 900)), *large[4:8]], mode="score")["found"]
    assert len(found) == 9
    for p in found:
        if p["key"] == "huge":
            assert "not fit into memory alone" in p["failed"] and "\n" not in p["failed"]
            assert p["scores"] is None
        else:
            assert p["failed"] is None and len(p["scores"]) == 3


def test_later_batches_are_as_large_as_has_fitted(amvl: Model, samples: list[Sample], monkeypatch) -> None:
    settings = given(amvl)
    (batch,) = planned(amvl, settings, samples)
    answerer = Answerer(amvl, settings, "cpu")
    run, sizes = answerer._run, []

    def short(part, together):
        sizes.append(len(part))
        if sum(job.cost for job, _ in part) > 600:
            raise RuntimeError("CUDA out of memory. Tried to allocate\n2 GiB")
        return run(part, together)

    monkeypatch.setattr(answerer, "_run", short)
    first = list(answerer.stream([batch]))
    assert sizes[0] == len(samples) and answerer.most < sum(job.cost for job in batch)
    tried, sizes[:] = len(sizes), []
    assert [sorted(p.id for p in b) for b in answerer.stream([batch])] == [sorted(p.id for p in b) for b in first]
    assert len(sizes) < tried and sum(sizes) == len(samples), "none is tried in vain again"


def test_other_errors_are_not_taken_for_a_lack_of_memory(amvl: Model, samples: list[Sample], monkeypatch) -> None:
    answerer = Answerer(amvl, given(amvl), "cpu")

    def wrong(part, together):
        raise RuntimeError("shapes (3, 4) and (5,)")

    monkeypatch.setattr(answerer, "_run", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        list(answerer.stream(planned(amvl, given(amvl), samples)))


def test_pictures_are_prepared_while_the_model_runs(amvl: Model, samples: list[Sample], monkeypatch) -> None:
    """The next batch's, and no more than these: each batch is awaited while the one before it is answered."""
    settings = given(amvl, tokens=900)
    batches = planned(amvl, settings, samples)
    assert len(batches) > 3
    answerer = Answerer(amvl, settings, "cpu")
    encode, answer = answerer.encode, answerer.answer
    prepared = [threading.Event() for _ in batches]
    places = {job.id: number for number, batch in enumerate(batches) for job in batch}
    ahead: list[int] = []

    def encoding(batch):
        found = encode(batch)
        prepared[places[batch[0].id]].set()
        return found

    def answering(batch):
        number = places[batch[0][0].id]
        assert number + 1 == len(batches) or prepared[number + 1].wait(30), "nobody prepares the next one"
        ahead.append(sum(event.is_set() for event in prepared) - number)
        return answer(batch)

    monkeypatch.setattr(answerer, "encode", encoding)
    monkeypatch.setattr(answerer, "answer", answering)
    found = [[p.key for p in batch] for batch in answerer.stream(batches)]
    assert [sorted(keys) for keys in found] == [sorted(job.sample.key for job in batch) for batch in batches]
    assert ahead == [2] * (len(batches) - 1) + [1]


def test_nothing_to_do(amvl: Model) -> None:
    assert list(Answerer(amvl, given(amvl), "cpu").stream([])) == []
