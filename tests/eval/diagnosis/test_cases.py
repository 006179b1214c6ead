"""Items with their candidates, and prompts altered in one way and no other."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from data import shards
from data.processor import Processor
from data.sample import IMAGE_MARK, LETTERS, Sample, Text
from eval.diagnosis.cases import ALTERATIONS, MOST, SHOWN, Case, altered, cases

SEED = 3


@pytest.fixture(scope="module")
def samples(tiny_shards) -> list[Sample]:
    """Puzzles with up to three pictures, and text alone; with choices and without."""
    return list(shards.read_set(tiny_shards))


@pytest.fixture(scope="module")
def found(samples, processor: Processor) -> list[Case]:
    chosen, left_out = cases(samples, processor, SEED)
    assert not left_out
    return chosen


def opened(key: str, answer: str, question: str = "How many?", task: str = "counts", **more) -> Sample:
    return Sample(key=key, text=Text(question=question, answer=answer, task=task, source="tests"), **more)


def lettered(key: str, answer: str, choices: int, question: str = "Which one?", task: str = "counts") -> Sample:
    texts = tuple(f"thing {n}" for n in range(choices))
    return Sample(key=key, text=Text(question=question, answer=answer, choices=texts, task=task, source="tests"))


# ---- Candidates ----


def test_every_case_fits_its_sample(samples, processor: Processor, found) -> None:
    assert [case.key for case in found] == [sample.key for sample in samples]
    for case, sample in zip(found, samples, strict=True):
        assert case.candidates[case.right] == sample.text.answer
        assert len(set(case.candidates)) == len(case.candidates) >= 2
        assert case.right not in case.wrong and len(case.wrong) == min(SHOWN, len(case.candidates) - 1)
        assert set(case.wrong) < set(range(len(case.candidates))) and list(case.wrong) == sorted(set(case.wrong))
        assert torch.equal(case.answers[case.right], case.item.answer), "as in training"
        for text, answer in zip(case.candidates, case.answers, strict=True):
            assert processor.decode(answer[:-1].tolist()) == text and int(answer[-1]) == processor.end
        assert case.options == [answer.tolist() for answer in case.answers]
    assert {len(s.images) for s in samples} == {0, 1, 2, 3}


def test_choices_are_letters(processor: Processor) -> None:
    chosen, _ = cases([lettered("a", "B", 2), lettered("b", "F", 6)], processor, SEED)
    assert chosen[0].candidates == ("A", "B") and chosen[0].right == 1 and chosen[0].wrong == (0,)
    assert chosen[1].candidates == tuple(LETTERS[:6]) and chosen[1].right == 5 and len(chosen[1].wrong) == SHOWN


def test_open_answers_come_from_the_same_question_first(processor: Processor) -> None:
    """Else from the task, the commonest first; never from another task, and never the letter of a choice."""
    samples = [
        *(opened(f"same-{n}", answer) for n, answer in enumerate(("two", "three", "two"))),
        *(opened(f"rest-{n}", answer, f"Number {n}?") for n, answer in enumerate(["five"] * 3 + ["six"] * 2 + ["ten"])),
        opened("alone", "nine", "And now?"),
        opened("other", "red", "Colour?", "colours"),
        opened("again", "blue", "Which colour?", "colours"),
        lettered("letter", "B", 3, question="How many?"),
        lettered("letters", "C", 3, question="And now?"),
    ]
    chosen, left_out = cases(samples, processor, SEED)
    by_key = {case.key: case for case in chosen}
    assert not left_out
    for n in range(3):
        assert set(by_key[f"same-{n}"].candidates) == {"two", "three"}
    assert set(by_key["alone"].candidates) == {"nine", "five", "two", "six"} and len(by_key["alone"].candidates) == MOST
    assert set(by_key["rest-5"].candidates) == {"ten", "five", "two", "six"}
    assert set(by_key["other"].candidates) == set(by_key["again"].candidates) == {"red", "blue"}


def test_the_right_answer_is_anywhere(processor: Processor) -> None:
    samples = [opened(f"s-{n}", str(n % 4)) for n in range(60)]
    chosen, _ = cases(samples, processor, SEED)
    assert set(Counter(case.right for case in chosen)) == {0, 1, 2, 3}
    assert max(Counter(case.right for case in chosen).values()) < 30
    open_six = cases([lettered(f"s-{n}", "A", 6) for n in range(40)], processor, SEED)[0]
    assert {wrong for case in open_six for wrong in case.wrong} == {1, 2, 3, 4, 5}


def test_what_cannot_be_diagnosed_is_left_out_with_a_reason(processor: Processor) -> None:
    samples = [
        opened("a", "one"),
        opened("b", "two"),
        opened("lonely", "red", "Colour?", "colours", origin="some.tar"),
        opened("broken", "two", images=(b"no picture",)),
    ]
    chosen, (lonely, broken) = cases(samples, processor, SEED)
    assert [case.key for case in chosen] == ["a", "b"]
    assert lonely == "some.tar: lonely: no other answer than 'red' is known in its task"
    assert broken.startswith("broken.0: ")


def test_cases_depend_on_seed_and_key_alone(samples, processor: Processor, found) -> None:
    def told(some: list[Case]) -> dict[str, tuple]:
        return {case.key: (case.candidates, case.right, case.wrong) for case in some}

    mixed = random.Random(0).sample(samples, len(samples))
    again, _ = cases(mixed, processor, SEED)
    assert told(again) == told(found) and [c.key for c in again] == [s.key for s in mixed]
    assert told(cases(samples, processor, SEED + 1)[0]) != told(found)


# ---- Alterations ----


@pytest.fixture(scope="module")
def changed(found, processor: Processor) -> dict[str, dict]:
    return {name: altered(name, found, processor, SEED) for name in ALTERATIONS}


def test_alterations_change_one_thing_each(found, changed) -> None:
    by_key = {case.key: case for case in found}
    pictured = {key for key, case in by_key.items() if len(case.item.grids)}
    assert 0 < len(pictured) < len(by_key)
    assert set(changed["blank_image"]) == set(changed["patches"]) == pictured >= set(changed["image_swap"])
    for name in ("image_swap", "blank_image", "patches"):
        for key, item in changed[name].items():
            own = by_key[key].item
            assert torch.equal(item.prompt, own.prompt) and torch.equal(item.grids, own.grids)
            assert item.sample.key == key and item.pixels.shape == own.pixels.shape
            assert not torch.equal(item.pixels, own.pixels)
    for key, item in changed["words"].items():
        own = by_key[key].item
        assert torch.equal(item.pixels, own.pixels) and torch.equal(item.answer, own.answer)
        assert not torch.equal(item.prompt, own.prompt)


def test_swapped_pictures_are_those_of_another_item_of_the_same_sizes(found, changed) -> None:
    """Each is given away once, and none stays where it was."""
    swapped, groups = changed["image_swap"], {}
    for case in found:
        if len(case.item.grids):
            groups.setdefault(str(case.item.grids.tolist()), []).append(case)
    assert max(map(len, groups.values())) > 3
    for group in groups.values():
        keys = [case.key for case in group]
        if len(group) == 1:
            assert keys[0] not in swapped
            continue
        givers = [next(c.key for c in group if c.item.pixels is swapped[key].pixels) for key in keys]
        assert sorted(givers) == sorted(keys) and all(a != b for a, b in zip(givers, keys, strict=True))


def test_blank_pictures_are_of_one_colour(changed) -> None:
    assert all(not item.pixels.any() for item in changed["blank_image"].values())


def test_patches_stay_in_their_picture(found, changed) -> None:
    several = 0
    for case in found:
        if not len(case.item.grids):
            continue
        sizes = case.item.grids.prod(1).tolist()
        several += len(sizes) > 1
        pairs = zip(case.item.pixels.split(sizes), changed["patches"][case.key].pixels.split(sizes), strict=True)
        for before, after in pairs:
            assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
    assert several


def test_words_are_the_same_ones_in_another_order(found, changed) -> None:
    """And the marks of pictures stay in their places among them."""
    marked = 0
    for case in found:
        if case.key not in changed["words"]:
            continue
        before, after = (item.sample.text for item in (case.item, changed["words"][case.key]))
        a, b = before.question.split(), after.question.split()
        assert Counter(a) == Counter(b) and a != b
        places = [n for n, word in enumerate(a) if IMAGE_MARK in word]
        assert [b[n] for n in places] == [a[n] for n in places]
        marked += bool(places)
        assert (before.choices, before.answer) == (after.choices, after.answer)
    assert marked and len(changed["words"]) > len(found) / 2


def test_nothing_to_alter(processor: Processor) -> None:
    samples = [opened("a", "one", "What?"), opened("b", "two", "what what what")]
    chosen, _ = cases(samples, processor, SEED)
    assert all(altered(name, chosen, processor, SEED) == {} for name in ALTERATIONS)


def test_a_picture_without_a_pair_is_not_swapped(found, processor: Processor) -> None:
    pictured = next(case for case in found if len(case.item.grids))
    text = next(case for case in found if not len(case.item.grids))
    assert altered("image_swap", [pictured, text], processor, SEED) == {}
    twin = replace(pictured, item=replace(pictured.item, sample=text.item.sample, pixels=pictured.item.pixels + 1))
    swapped = altered("image_swap", [pictured, twin], processor, SEED)
    assert swapped[pictured.key].pixels is twin.item.pixels and swapped[twin.key].pixels is pictured.item.pixels


def test_questions_on_one_picture_do_not_swap_it(found, processor: Processor) -> None:
    """Where others are as many, each gets one of those; where all are one picture there is nothing to swap."""
    one = next(case for case in found if len(case.item.grids))

    def asked(key: str, picture: bytes) -> Case:
        sample = one.item.sample.model_copy(update={"key": key, "images": (picture,) * len(one.item.grids)})
        return replace(one, item=replace(one.item, sample=sample, pixels=one.item.pixels + ord(picture)))

    cases_of_one = [asked(key, b"x") for key in "abc"]
    assert altered("image_swap", cases_of_one, processor, SEED) == {}
    both = [
        *cases_of_one,
        *(asked(key, picture) for key, picture in zip("defg", (b"y", b"y", b"z", b"w"), strict=True)),
    ]
    own = {case.key: case.item.pixels for case in both}
    for seed in range(5):
        swapped = altered("image_swap", both, processor, seed)
        assert set(swapped) == set(own)
        assert not any(torch.equal(item.pixels, own[key]) for key, item in swapped.items())


def test_alterations_depend_on_seed_and_key(found, changed, processor: Processor) -> None:
    """Not on the order, and but for swapped pictures not on the other items."""
    for name in ALTERATIONS:
        backwards = altered(name, found[::-1], processor, SEED)
        other = altered(name, found, processor, SEED + 1)
        assert set(backwards) == set(other) == set(changed[name])

        def same(some: dict, name: str = name) -> bool:
            pairs = [(item, changed[name][key]) for key, item in some.items()]
            return all(torch.equal(a.prompt, b.prompt) and torch.equal(a.pixels, b.pixels) for a, b in pairs)

        assert same(backwards), name
        assert same(other) == (name == "blank_image"), name
        assert name == "image_swap" or same(altered(name, found[:9], processor, SEED))
