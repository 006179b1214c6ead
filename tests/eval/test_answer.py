"""Answers of an export: the same in every batch, those of transformers' own model, and never lost by a kill."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from data import shards
from data.processor import Encoded, Processor
from data.sample import Sample
from eval.answer import Answerer, predict
from model.batch import cost
from model.build import ModelError
from model.latent_vlm import LatentVLM
from tests.refusal import refusal

RECIPES = ("amvl", "deterministic", "pause", "sft")
NEW = 6  # tokens of a reply at most


@pytest.fixture(scope="module")
def samples(tiny_shards: Path) -> list[Sample]:
    """Thirty samples with 0, 1, 2 and 3 pictures."""
    chosen = list(shards.read_set(tiny_shards))[:30]
    assert {len(s.images) for s in chosen} == {0, 1, 2, 3}
    return chosen


def replies(answerer: Answerer, samples: list[Sample]) -> dict[str, str]:
    """Replies by key."""
    batches = ((batch, answerer.reply(batch)) for batch in answerer.batches(samples))
    return {e.sample.key: reply for batch, found in batches for e, reply in zip(batch, found, strict=True)}


@pytest.mark.parametrize("objective", RECIPES)
def test_replies_do_not_depend_on_the_batch(
    export_of: Callable[[str], Path], samples: list[Sample], objective: str
) -> None:
    answerer = Answerer(export_of(objective), budget=1, max_new_tokens=NEW)
    alone = replies(answerer, samples)
    assert len(list(answerer.batches(samples))) == len(samples)
    answerer.budget = 100_000
    assert len(list(answerer.batches(samples))) == 1
    together = replies(answerer, samples)
    answerer.budget = 700
    assert replies(answerer, samples[::-1]) == together == alone
    # The check means something: replies differ, and some end by themselves.
    assert len(set(alone.values())) > len(samples) / 2
    assert len({len(answerer.processor.tokenizer(reply)["input_ids"]) for reply in alone.values()}) > 1


def test_objectives_reply_differently(export_of: Callable[[str], Path], samples: list[Sample]) -> None:
    """Over the same backbone, and z takes part."""
    found = {name: replies(Answerer(export_of(name), 100_000, NEW), samples) for name in RECIPES}
    for one, other in itertools.combinations(("amvl", "pause", "sft"), 2):
        assert found[one] != found[other]
    answerer = Answerer(export_of("amvl"), 100_000, NEW)
    torch.nn.init.zeros_(answerer.model.prior.outer.weight)
    assert replies(answerer, samples) != found["amvl"]


def plain_model(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' own model with the export's backbone."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()


def image_places(plain: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    return (ids == plain.config.image_token_id).int()


@torch.no_grad()
def plain_reply(plain: Qwen2_5_VLForConditionalGeneration, item: Encoded, end: int) -> list[int]:
    """Greedy decoding by one whole forward pass per token."""
    ids = item.prompt.clone()
    pictures = {"pixel_values": item.pixels, "image_grid_thw": item.grids} if len(item.grids) else {}
    while len(ids) < len(item.prompt) + NEW:
        places = image_places(plain, ids)[None]
        logits = plain(input_ids=ids[None], mm_token_type_ids=places, use_cache=False, **pictures).logits
        token = logits[0, -1].argmax()
        if token == end:
            break
        ids = torch.cat([ids, token[None]])
    return ids[len(item.prompt) :].tolist()


@torch.no_grad()
def plain_latent_reply(
    plain: Qwen2_5_VLForConditionalGeneration, latent: LatentVLM, item: Encoded, processor: Processor
) -> list[int]:
    """The same with latents: a pass for the prior, then whole passes over prompt, marks, latents and reply."""
    embed = plain.get_input_embeddings()
    prompt = embed(item.prompt)
    places = image_places(plain, item.prompt)
    positions = torch.arange(len(prompt)).expand(3, 1, -1)
    if len(item.grids):
        prompt[places.bool()] = torch.cat(plain.get_image_features(item.pixels, item.grids).pooler_output)
        positions, _ = plain.model.get_rope_index(item.prompt[None], places[None], item.grids)

    def states(behind: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the vectors that stand behind the prompt."""
        following = (positions.max() + 1 + torch.arange(len(behind))).expand(3, 1, -1)
        inputs = torch.cat([prompt, behind])[None]
        where = torch.cat([positions, following], dim=2)
        found = plain.model.language_model(inputs_embeds=inputs, position_ids=where, use_cache=False)
        return found.last_hidden_state[0, len(prompt) :]

    thought = latent.slots(latent.scale)
    if latent.recipe.latents != "pause":
        z = latent.prior(states(thought)[None]).mean
        thought = latent.injection(z, latent.scale)[0]
    start, end = embed(torch.tensor([processor.latent_start, processor.latent_end])).split(1)
    behind, reply = torch.cat([start, thought, end]), []
    while len(reply) < NEW:
        token = plain.lm_head(states(behind)[-1]).argmax()
        if token == processor.end:
            break
        reply.append(int(token))
        behind = torch.cat([behind, embed(token)[None]])
    return reply


@pytest.mark.parametrize("objective", RECIPES)
def test_replies_are_those_of_the_plain_model(
    export_of: Callable[[str], Path], samples: list[Sample], objective: str
) -> None:
    """Against transformers' own attention, one sample at a time and nothing remembered."""
    answerer = Answerer(export_of(objective), 100_000, NEW)
    plain, processor = plain_model(export_of(objective)), answerer.processor
    wanted = {}
    for sample in samples[:16]:
        item = processor.encode(sample)
        if objective == "sft":
            wanted[sample.key] = plain_reply(plain, item, processor.end)
        else:
            wanted[sample.key] = plain_latent_reply(plain, answerer.model, item, processor)
    found = replies(answerer, samples[:16])
    assert found == {key: processor.decode(ids) for key, ids in wanted.items()}
    assert len({tuple(ids) for ids in wanted.values()}) > 8
    assert {len(ids) for ids in wanted.values()} > {NEW}  # some end by themselves


@pytest.mark.parametrize("budget", [1, 60, 150, 400])
def test_batches_keep_the_budget_and_begin_with_the_longest(
    export_of: Callable[[str], Path], samples: list[Sample], budget: int
) -> None:
    answerer = Answerer(export_of("amvl"), budget, NEW)
    model = answerer.model
    batches = [[cost(e, model.recipe, model.config.slots) + NEW for e in batch] for batch in answerer.batches(samples)]
    flat = [tokens for batch in batches for tokens in batch]
    assert flat == sorted(flat, reverse=True) and len(flat) == len(samples)
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in batches)
    assert all(sum(batch) + following[0] > budget for batch, following in itertools.pairwise(batches))
    keys = {e.sample.key for batch in answerer.batches(samples) for e in batch}
    assert keys == {s.key for s in samples}


@pytest.fixture(scope="module")
def answerer(export_of: Callable[[str], Path]) -> Answerer:
    return Answerer(export_of("amvl"), 500, NEW)


@pytest.fixture(scope="module")
def whole(answerer: Answerer, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "not" / "there" / "predictions.jsonl"
    predict(answerer, samples, path)
    return path


def test_predictions_are_items_and_replies(answerer: Answerer, samples: list[Sample], whole: Path) -> None:
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    found = replies(answerer, samples)
    assert {line["key"]: line["reply"] for line in lines} == found and len(lines) == len(samples)
    for sample in samples:
        (line,) = [line for line in lines if line["key"] == sample.key]
        assert (line["task"], line["answer"]) == (sample.text.task, sample.text.answer)
        assert line["correct"] is (found[sample.key] == sample.text.answer)


def test_right_replies_are_correct(answerer: Answerer, samples: list[Sample], tmp_path: Path) -> None:
    """A sample whose answer is what the model says."""
    said = next(reply for reply in replies(answerer, samples[:1]).values())
    text = samples[0].text.model_copy(update={"answer": said})
    (line,) = predict(answerer, [samples[0].model_copy(update={"text": text})], tmp_path / "p.jsonl")
    assert said and line["correct"] is True and line["reply"] == line["answer"] == said


def test_predictions_come_back_in_the_order_of_the_samples(
    answerer: Answerer, samples: list[Sample], whole: Path
) -> None:
    """Read from the file, and nothing is added to it."""
    before = whole.read_bytes()
    shuffled = samples[7:] + samples[:7]
    lines = predict(answerer, shuffled, whole)
    assert [line["key"] for line in lines] == [s.key for s in shuffled]
    assert whole.read_bytes() == before


@pytest.mark.parametrize(("kept", "torn"), [(0, 1), (0, 30), (1, 0), (9, 5), (9, -1), (29, 40)])
def test_a_killed_run_goes_on(
    answerer: Answerer, samples: list[Sample], whole: Path, tmp_path: Path, kept: int, torn: int
) -> None:
    """After `kept` whole lines and `torn` bytes of the next one (-1: all but its end of line)."""
    lines = whole.read_bytes().splitlines(keepends=True)
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
    found = predict(answerer, samples, path)
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:kept] == lines[:kept] and sorted(after) == sorted(lines)
    by_key = {line["key"]: line for line in map(json.loads, lines)}
    assert found == [by_key[s.key] for s in samples]


def test_known_items_are_not_answered_again(
    answerer: Answerer, samples: list[Sample], whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jsonl"
    line = json.loads(whole.read_text().splitlines()[4]) | {"reply": "kept as it is"}
    path.write_text(json.dumps(line) + "\n")
    found = predict(answerer, samples, path)
    assert [p["key"] for p in found if p["reply"] == "kept as it is"] == [line["key"]]
    assert len(path.read_text().splitlines()) == len(samples)


def test_a_folder_that_is_no_export(tiny_backbone: Path) -> None:
    text = refusal(lambda: Answerer(tiny_backbone, 500, NEW), ModelError)
    assert text.startswith(f"{tiny_backbone}/latent.json: no such file") and "name an export" in text


def test_predictions_of_another_export_do_not_count(
    answerer: Answerer, samples: list[Sample], whole: Path, tmp_path: Path
) -> None:
    """A model trained again stands at the same place as the one before it."""
    path = tmp_path / "predictions.jsonl"
    lines = [
        json.loads(line) | {"id": "of an earlier one", "reply": "stale"} for line in whole.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = predict(answerer, samples, path)
    assert {p["key"]: p["reply"] for p in found} == replies(answerer, samples)
    assert len(path.read_text().splitlines()) == 2 * len(samples)
