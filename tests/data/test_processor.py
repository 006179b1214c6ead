"""The processor: one place per image token, in the right order, pixels as transformers makes them."""

import io
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import shards
from data.pictures import Limits
from data.processor import IMAGE_PAD, Processor
from data.sample import Sample, Text
from tests.refusal import refusal

VISION = ("<|vision_start|>", "<|vision_end|>")
PATCH, MERGE = 8, 2


def picture(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 90)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def sample(question: str, *images: bytes, choices: tuple[str, ...] | None = None, answer: str = "A") -> Sample:
    text = Text(question=question, answer=answer, choices=choices, task="t", source="s")
    return Sample(key="k", text=text, images=images, origin="/some/where/000004.tar")


def shown(processor: Processor, one: Sample) -> str:
    """The prompt as text, special tokens included."""
    return processor.tokenizer.decode(processor.encode(one).prompt)


def block(tokens: int) -> str:
    """An image in a prompt."""
    return IMAGE_PAD.join([VISION[0], *[""] * (tokens - 1), VISION[1]])


def test_every_image_token_has_a_place(processor: Processor, tiny_shards: Path) -> None:
    """For all samples: as many places as merged patches, as many pixel rows as patches, each image by itself."""
    pictures = set()
    for one in shards.read_set(tiny_shards):
        encoded = processor.encode(one)
        patches = encoded.grids.prod(1)
        places = (encoded.prompt == processor.image_token).int()
        assert places.sum() == patches.sum() // MERGE**2
        # Runs of places, which the marks around every image keep apart.
        edges = torch.diff(places, prepend=torch.zeros(1), append=torch.zeros(1))
        lengths = (edges == -1).nonzero() - (edges == 1).nonzero()
        assert lengths.flatten().tolist() == (patches // MERGE**2).tolist()
        assert encoded.pixels.shape == (patches.sum(), 3 * 2 * PATCH**2)
        sizes = [Image.open(io.BytesIO(content)).size for content in one.images]
        assert encoded.grids.tolist() == [[1, height // PATCH, width // PATCH] for width, height in sizes]
        pictures.add(len(one.images))
    assert pictures == {0, 1, 2, 3}


def test_pixels_are_those_of_transformers(processor: Processor, tiny_shards: Path) -> None:
    for one in list(shards.read_set(tiny_shards))[:20]:
        if one.images:
            pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in one.images]
            wanted = processor.image_processor(images=pictures, return_tensors="pt")
            encoded = processor.encode(one)
            assert torch.equal(encoded.pixels, wanted["pixel_values"])
            assert torch.equal(encoded.grids, wanted["image_grid_thw"])


def test_pixels_are_the_pictures(processor: Processor) -> None:
    """Worked out by hand: a picture of one colour, normalised, twice in time."""
    encoded = processor.encode(sample("?", picture(64, 96, (255, 0, 51))))
    mean, std = torch.tensor(processor.image_processor.image_mean), torch.tensor(processor.image_processor.image_std)
    colours = (torch.tensor([1.0, 0.0, 0.2]) - mean) / std
    rows = encoded.pixels.view(8 * 12, 3, 2 * PATCH**2)
    assert torch.allclose(rows, colours[None, :, None].expand_as(rows), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 120), (10, 20), (1000, 600), (256, 257), (640, 32)])
def test_pictures_are_sized_to_the_limits(processor: Processor, width: int, height: int) -> None:
    encoded = processor.encode(sample("?", picture(width, height)))
    ((time, rows, columns),) = encoded.grids.tolist()
    pixels = rows * columns * PATCH**2
    assert time == 1 and rows % MERGE == columns % MERGE == 0
    assert 64 * 64 <= pixels <= 256 * 256
    assert abs(math.log((columns / rows) / (width / height))) < 0.35
    if 64 * 64 <= width * height <= 256 * 256:
        step = PATCH * MERGE
        assert abs(columns * PATCH - width) <= step / 2 and abs(rows * PATCH - height) <= step / 2


sides = st.tuples(st.integers(8, 300), st.integers(8, 300))


@given(sizes=st.lists(sides, min_size=1, max_size=4), part=st.floats(0, 1.2))
@example(sizes=[(1590, 8), (8, 1590)], part=0.5)
@example(sizes=[(1590, 8), (100, 100)], part=1.0)
@example(sizes=[(256, 256), (64, 64), (10, 10), (8, 200)], part=0.3)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pictures_are_made_smaller_in_proportion(
    processor: Processor, sizes: list[tuple[int, int]], part: float
) -> None:
    one = sample("From <image> to here?".replace("<image>", "<image>" * len(sizes)), *[picture(*s) for s in sizes])
    full = processor.encode(one)
    before = full.grids.prod(1) // MERGE**2
    fewer = round(int(before.sum()) * part)
    encoded = processor.encode(one, fewer)
    after = encoded.grids.prod(1) // MERGE**2
    spare = int(before.sum()) - len(sizes)  # tokens beyond one for each
    assert after.sum() <= before.sum() - min(fewer, spare)
    assert (encoded.grids[:, 0] == 1).all() and (encoded.grids[:, 1:] % MERGE == 0).all() and (after >= 1).all()
    assert len(encoded.pixels) == encoded.grids.prod(1).sum()
    # The prompt is the same but for the image places.
    places, text = encoded.prompt == processor.image_token, full.prompt[full.prompt != processor.image_token]
    assert places.sum() == after.sum() and torch.equal(encoded.prompt[~places], text)
    for (width, height), tokens, left, grid in zip(sizes, before, after, encoded.grids.tolist(), strict=True):
        share = 1 + (int(tokens) - 1) * max(0, spare - fewer) / max(1, spare)
        assert left <= max(1, share) and left <= tokens
        if 1 / 3 < width / height < 3 and share >= 16 and width * height >= 64 * 64:
            assert left > 0.5 * share  # rounding of both sides down, and no more
            assert abs(math.log(grid[2] / grid[1] / (width / height))) < 0.7


def test_smaller_pictures_are_those_of_transformers(processor: Processor) -> None:
    """The limits of 144 and 36 tokens with half of what is beyond one each left: 72 and 18."""
    pictures = [picture(192, 192), picture(96, 96)]
    encoded = processor.encode(sample("?", *pictures), fewer=89)
    for number, most in enumerate((1 + 143 * 89 // 178, 1 + 35 * 89 // 178)):
        limits = {"shortest_edge": 1, "longest_edge": most * (PATCH * MERGE) ** 2}
        image = Image.open(io.BytesIO(pictures[number]))
        wanted = processor.image_processor(images=[image], size=limits, return_tensors="pt")
        rows = slice(None, len(wanted["pixel_values"])) if number == 0 else slice(-len(wanted["pixel_values"]), None)
        assert torch.equal(encoded.grids[number], wanted["image_grid_thw"][0])
        assert torch.equal(encoded.pixels[rows], wanted["pixel_values"])
    assert encoded.grids.tolist() == [[1, 16, 16], [1, 8, 8]]


def test_making_smaller_changes_no_later_sample(processor: Processor) -> None:
    one = sample("?", picture(192, 96))
    before = processor.encode(one)
    processor.encode(one, fewer=40)
    assert torch.equal(processor.encode(one).pixels, before.pixels)


@pytest.mark.parametrize("fewer", [0, 1, 500])
def test_text_is_never_cut(processor: Processor, fewer: int) -> None:
    one = sample("How much is 2 and 3?")
    assert torch.equal(processor.encode(one, fewer).prompt, processor.encode(one).prompt)


def test_any_colour_mode_is_read(processor: Processor) -> None:
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "I;16"):
        out = io.BytesIO()
        Image.new(mode, (64, 64)).save(out, "TIFF" if mode == "CMYK" else "PNG")
        assert processor.encode(sample("?", out.getvalue())).grids.tolist() == [[1, 8, 8]]


def test_images_stand_before_a_text_without_marks(processor: Processor) -> None:
    one = sample("Which?", picture(64, 64), picture(64, 96))
    assert shown(processor, one) == f"<|im_start|>{block(16)}{block(24)}Which?<|im_end|><|im_start|>"


def test_images_stand_at_their_marks(processor: Processor) -> None:
    one = sample("From <image> to <image>, which?", picture(64, 64), picture(64, 96))
    assert shown(processor, one) == (f"<|im_start|>From {block(16)} to {block(24)}, which?<|im_end|><|im_start|>")


def test_marks_side_by_side(processor: Processor) -> None:
    one = sample("<image><image>", picture(64, 64), picture(64, 96))
    assert shown(processor, one) == f"<|im_start|>{block(16)}{block(24)}<|im_end|><|im_start|>"


def test_choices_are_in_the_prompt(processor: Processor) -> None:
    one = sample("Which?", choices=("a cat", "dogs", "5 < 6"), answer="B")
    assert shown(processor, one) == "<|im_start|>Which? (A) a cat (B) dogs (C) 5 < 6<|im_end|><|im_start|>"


def test_prompt_tells_nothing_of_the_answer(processor: Processor) -> None:
    """Answer, rationale, task, source and key are not in the prompt."""
    text = Text(question="Which?", answer="ANSWER", rationale="RATIONALE", task="TASK", source="SOURCE")
    assert shown(processor, Sample(key="KEY", text=text)) == "<|im_start|>Which?<|im_end|><|im_start|>"


def test_text_only(processor: Processor) -> None:
    encoded = processor.encode(sample("How much is 2 and 3?"))
    assert encoded.pixels.shape == (0, 3 * 2 * PATCH**2) and encoded.grids.shape == (0, 3)
    assert (encoded.prompt != processor.image_token).all()


def test_answer_ends_with_the_end_mark(processor: Processor) -> None:
    encoded = processor.encode(sample("?", answer="dark green"))
    assert encoded.answer[-1] == processor.end == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert processor.tokenizer.decode(encoded.answer[:-1]) == "dark green"


@pytest.mark.parametrize("answer", ["A", "größer 大", "two\nlines", "🦊"])
def test_decode_gives_the_answer_back(processor: Processor, answer: str) -> None:
    encoded = processor.encode(sample("?", answer=answer))
    assert processor.decode(encoded.answer.tolist()) == answer
    marks = [processor.latent_start, processor.latent_end, processor.image_token]
    assert processor.decode([*marks, *encoded.answer.tolist()]) == answer
    assert processor.decode([]) == ""


def test_special_tokens_are_one_id_each(processor: Processor) -> None:
    names = ("<|latent_start|>", "<|latent_end|>", IMAGE_PAD, "<|im_end|>", *VISION)
    ids = [processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    assert all(len(found) == 1 for found in ids) and len({found[0] for found in ids}) == len(names)
    assert [found[0] for found in ids[:4]] == [
        processor.latent_start,
        processor.latent_end,
        processor.image_token,
        processor.end,
    ]
    assert len(processor.tokenizer) == 400  # none was added to the vocabulary the model was built with


@pytest.mark.parametrize("images", [0, 1])
def test_an_image_place_in_the_text_is_refused(processor: Processor, images: int) -> None:
    one = sample(f"What does {IMAGE_PAD} mean?", *[picture(64, 64)] * images)
    text = refusal(lambda: processor.encode(one))
    assert "000004.tar: k: " in text
    assert text.split(": k: ")[1].startswith(f"{images + 1} image places for {images} images")
    assert f"take {IMAGE_PAD} out" in text


def refused(processor: Processor, *images: bytes) -> str:
    """The one line that says what is wrong, without the sample's place."""
    place, text = "/some/where/000004.tar: ", refusal(lambda: processor.encode(sample("?", *images)))
    assert text.startswith(place)
    return text.removeprefix(place)


def test_a_picture_too_long_for_its_width_is_refused(processor: Processor) -> None:
    text = refused(processor, picture(1700, 8))
    assert text.startswith("k: ") and "aspect ratio" in text and "crop" in text


@pytest.mark.parametrize(("width", "height"), [(7, 64), (64, 7), (1, 1)])
def test_a_picture_below_one_patch_is_refused(processor: Processor, width: int, height: int) -> None:
    text = refused(processor, picture(8, 8), picture(width, height))
    assert text == f"k.1: {width} x {height} pixels, a side below one patch of 8; enlarge it or leave it out"


def claims(width: int, height: int) -> bytes:
    """A file of a few bytes whose header says these sizes."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "BMP")
    sizes = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return out.getvalue()[:18] + sizes + out.getvalue()[26:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_not_decoded(processor: Processor) -> None:
    text = refused(processor, picture(8, 8), claims(10_001, 10_000))
    assert text == "k.1: 10001 x 10000 pixels, more than 100,000,000; shrink it or leave the sample out"


def test_the_limits_are_those_given(tiny_backbone: Path) -> None:
    strict = Processor(str(tiny_backbone), 64**2, 256**2, limits=Limits(pixels=64 * 96, images=2))
    one = picture(64, 96)
    assert len(strict.encode(sample("?", one, one)).grids) == 2
    assert refused(strict, picture(64, 97)).startswith("k.0: 64 x 97 pixels, more than 6,144; ")
    assert refused(strict, one, one, one).startswith("k: 3 images, more than 2; ")


@pytest.mark.parametrize(
    ("least", "most", "pixels", "rest"),
    [
        (64**2, 256**2, (4096, 65536), "16 to 256 tokens of 16 x 16; squares from 64 x 64 to 256 x 256"),
        (3000, 500_000, (3072, 499_968), "12 to 1,953 tokens of 16 x 16; squares from 64 x 64 to 704 x 704"),
        (1, 100, (256, 256), "1 to 1 tokens of 16 x 16; squares from 16 x 16 to 16 x 16"),
    ],
)
def test_the_pixels_it_describes_are_those_it_makes(
    tiny_backbone: Path, least: int, most: int, pixels: tuple[int, int], rest: str
) -> None:
    processor = Processor(str(tiny_backbone), least, most)
    assert processor.describe() == f"pixels per image: {pixels[0]:,} to {pixels[1]:,}, {rest}"
    sizes = [(8, 8), (1500, 1500), (9, 30), (1400, 900), (300, 500)]
    made = [processor.encode(sample("?", picture(*size))).grids[0, 1:] * PATCH for size in sizes]
    assert all(pixels[0] <= sides.prod() <= pixels[1] for sides in made)
    small, large = (f"{height} x {width}" for height, width in made[:2])
    assert rest.endswith(f"squares from {small} to {large}")


@pytest.mark.parametrize("stop", ["答案", "\U0001f9e9 now", "x ", "\n\n", "the end of it"])
@pytest.mark.parametrize("before", ["", "so it is the second picture ", "das hieße: "])
def test_a_stop_text_is_seen_as_soon_as_it_is_whole(processor: Processor, stop: str, before: str) -> None:
    """However many tokens it takes, and it is no part of the text, spaces included."""
    stops, ids = (stop, "never"), processor.tokenizer(before + stop, add_special_tokens=False)["input_ids"]
    seen = [processor.holds(ids[: n + 1], stops) for n in range(len(ids))]
    assert seen[-1] and not any(seen[:-1])
    assert processor.before(ids, stops) == before.strip()
    assert processor.before(ids[:-1], stops) == processor.decode(ids[:-1]).strip()
