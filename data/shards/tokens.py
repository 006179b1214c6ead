"""How many tokens a sample has under a model's processor, by the sizes of its pictures alone: none is decoded."""

from functools import lru_cache
from pathlib import Path

from data.pictures import header
from data.processor import Processor
from data.sample import DataError, Sample

MIN_PIXELS, MAX_PIXELS = 56 * 56, 1280 * 28 * 28  # as training has them by default


def tokens(sample: Sample, folder: str, max_pixels: int | None = None) -> tuple[int, int]:
    """(text tokens of prompt and answer, image tokens). DataError when a picture cannot be used."""
    one = processor(folder, max_pixels)
    images = 0
    for number, content in enumerate(sample.images):
        picture, process = header(content, f"{sample.place}.{number}"), one.image_processor
        try:
            if min(picture.size) < process.patch_size:
                raise ValueError(f"a side below one patch of {process.patch_size}")
            images += process.get_number_of_image_patches(picture.height, picture.width) // process.merge_size**2
        except ValueError as error:  # too small, or too long for its width
            size = f"{picture.width} x {picture.height} pixels"
            raise DataError(f"{sample.place}.{number}: {size}: {error}; crop or enlarge it, or leave it out") from error
    prompt = one.tokenizer(one.prompt(sample.text, len(sample.images)), add_special_tokens=False)["input_ids"]
    answer = one.tokenizer(sample.text.answer, add_special_tokens=False)["input_ids"]
    return len(prompt) - len(sample.images) + len(answer) + 1, images  # with the end mark


@lru_cache
def processor(folder: str, max_pixels: int | None = None) -> Processor:
    """The processor of a model's folder."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder of a model; check --model")
    most = max_pixels or MAX_PIXELS
    try:
        return Processor(folder, min(MIN_PIXELS, most), most)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no model whose processor can be used ({error}); check --model") from error
