"""Text and pixels to tokens, against transformers' own processors of both families."""

import io
import random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen3VLProcessor

from data.processor import Processor
from data.sample import IMAGE_MARK, Sample, Text


class Without:
    """A processor without the video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> None:
        """Any is taken, None too."""


class Qwen25(Without, Qwen2_5_VLProcessor):
    pass


class Qwen3(Without, Qwen3VLProcessor):
    pass


def encoded(seed: int, width: int, height: int, form: str = "PNG") -> bytes:
    """A picture of noise."""
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height)).save(out, form)
    return out.getvalue()


SMALL, LARGE = encoded(0, 20, 20), encoded(1, 500, 700, "JPEG")  # below and beyond the processor's pixels
WIDE, ODD, EVEN = encoded(2, 300, 60), encoded(3, 101, 77), encoded(4, 96, 64)
CASES: dict[str, tuple[str, tuple[bytes, ...], tuple[str, ...] | None]] = {
    "no image": ("How much is 2 and 3?", (), None),
    "no image, choices": ("How much is 2 and 3?", (), ("5", "six", "<7>")),
    "image before the text": ("Which colour?", (EVEN,), None),
    "several before the text": ("Which differ?", (EVEN, ODD, WIDE, EVEN), None),
    "in mid text": ("From <image> to here?", (ODD,), None),
    "several in mid text": ("From <image> to <image>, or <image>?", (WIDE, EVEN, ODD), None),
    "at both ends, side by side": ("<image><image>which?<image>", (EVEN, ODD, WIDE), None),
    "choices": ("Which is <image>?", (ODD,), ("a cat", "dogs", "5 < 6")),
    "enlarged": ("What is it?", (SMALL,), None),
    "shrunk": ("What is it?", (LARGE,), None),
    "all sizes": ("Which of <image> <image> <image> <image>?", (LARGE, SMALL, WIDE, ODD), ("one", "two")),
    "other letters": ("Größe 大 🦊\n<image>\n\n  two  spaces?", (ODD,), ("ü", "ß")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [Qwen25, Qwen3])
def test_ids_pixels_and_grids_are_those_of_transformers(processor: Processor, kind: type, case: str) -> None:
    question, images, choices = CASES[case]
    text = Text(question=question, answer="A", choices=choices, task="t", source="s")
    found = processor.encode(Sample(key="k", text=text, images=images))

    # A conversation as a user of transformers writes it.
    asked = question if IMAGE_MARK in question else IMAGE_MARK * len(images) + question
    if choices:
        asked += "".join(f" ({letter}) {choice}" for letter, choice in zip("ABC", choices, strict=False))
    opened, parts = iter([Image.open(io.BytesIO(image)).convert("RGB") for image in images]), []
    for number, piece in enumerate(asked.split(IMAGE_MARK)):
        parts += [{"type": "image", "image": next(opened)}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    tokenizer = processor.tokenizer
    theirs = kind(processor.image_processor, tokenizer, None, chat_template=tokenizer.chat_template)
    wanted = theirs.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(found.prompt, wanted["input_ids"][0])
    assert torch.equal(found.prompt == processor.image_token, wanted["mm_token_type_ids"][0] == 1)
    assert wanted["attention_mask"].all()
    if images:
        assert torch.equal(found.pixels, wanted["pixel_values"])
        assert torch.equal(found.grids, wanted["image_grid_thw"])
    else:
        assert "pixel_values" not in wanted and not len(found.pixels) and not len(found.grids)


def test_sizes_bind(processor: Processor) -> None:
    """The pictures above are really enlarged and shrunk, and the others are not."""
    sample = Sample(key="k", text=Text(question="?", answer="A", task="t", source="s"), images=(SMALL, LARGE, EVEN))
    assert processor.encode(sample).grids.tolist() == [[1, 8, 8], [1, 36, 26], [1, 8, 12]]
