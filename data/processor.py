"""Text and pixels to tokens, in one place for training and evaluation.

The image processor and the tokenizer of a Hugging Face folder are called directly; transformers' combined
processor needs a video processor, which needs torchvision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from data.sample import IMAGE_MARK, LETTERS, DataError, Sample, Text, pictures

IMAGE_PAD = "<|image_pad|>"
LATENT_START, LATENT_END = "<|latent_start|>", "<|latent_end|>"


@dataclass(frozen=True)
class Encoded:
    """One sample as tokens. P prompt tokens (image places included), A answer tokens."""

    sample: Sample
    prompt: Tensor  # [P] token ids
    answer: Tensor  # [A] token ids, the end mark last
    pixels: Tensor  # [patches, patch width], all images one after the other
    grids: Tensor  # [images, 3] time, height, width in patches


class Processor:
    """Tokenizer, image processor and prompt form of one Hugging Face folder."""

    def __init__(self, folder: str, min_pixels: int, max_pixels: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [LATENT_START, LATENT_END]}, False)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            folder,
            size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
            # A folder's own values of these two would win over `size`.
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        if (
            IMAGE_PAD not in self.tokenizer.get_vocab()
        ):  # transformers makes up an empty tokenizer where files are missing
            raise ValueError(f"the tokenizer has no {IMAGE_PAD}")
        self.image_token = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self.latent_start, self.latent_end = self.tokenizer.convert_tokens_to_ids([LATENT_START, LATENT_END])
        self.end = self.tokenizer.eos_token_id

    def encode(self, sample: Sample) -> Encoded:
        """DataError names the sample and what is wrong with it."""
        pixels, grids = self._pixels(sample)
        merged = grids.prod(1) // self.image_processor.merge_size**2
        prompt = self.prompt(sample.text, len(sample.images))
        pieces = prompt.split(IMAGE_PAD)
        if len(pieces) != len(sample.images) + 1:
            raise DataError(
                f"{sample.place}: {len(pieces) - 1} image places for {len(sample.images)} images; "
                f"take {IMAGE_PAD} out of the question"
            )
        expanded = "".join(piece + IMAGE_PAD * int(n) for piece, n in zip(pieces, [*merged.tolist(), 0], strict=True))
        answer = self.tokenizer(sample.text.answer, add_special_tokens=False)["input_ids"]
        return Encoded(
            sample=sample,
            prompt=torch.tensor(self.tokenizer(expanded, add_special_tokens=False)["input_ids"]),
            answer=torch.tensor([*answer, self.end]),
            pixels=pixels,
            grids=grids,
        )

    def prompt(self, text: Text, images: int) -> str:
        """The chat prompt with one image place per image."""
        question = text.question
        if IMAGE_MARK not in question:
            question = IMAGE_MARK * images + question
        if text.choices:
            options = " ".join(f"({letter}) {c}" for letter, c in zip(LETTERS, text.choices, strict=False))
            question = f"{question} {options}"
        content: list[dict[str, str]] = []
        for number, piece in enumerate(question.split(IMAGE_MARK)):
            content.extend([{"type": "image"}] * (number > 0))
            content.extend([{"type": "text", "text": piece}] * bool(piece))
        messages = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def decode(self, ids: list[int]) -> str:
        """Reply text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _pixels(self, sample: Sample) -> tuple[Tensor, Tensor]:
        if not sample.images:
            width = 3 * self.image_processor.temporal_patch_size * self.image_processor.patch_size**2
            return torch.zeros(0, width), torch.zeros(0, 3, dtype=torch.long)
        try:
            done = self.image_processor(images=pictures(sample), return_tensors="pt")
        except ValueError as error:  # a picture too long for its width
            raise DataError(f"{sample.place}: {error}; crop the picture or leave the sample out") from error
        return done["pixel_values"], done["image_grid_thw"]
