"""Text and pixels to tokens, in one place for training and evaluation.

The image processor and the tokenizer of a Hugging Face folder are called directly; transformers' combined
processor needs a video processor, which needs torchvision.
"""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from data.pictures import LIMITS, Limits, header, pictures
from data.sample import IMAGE_MARK, LETTERS, DataError, Sample, Text

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
    image_tokens: int = 0  # of the prompt's


class Processor:
    """Tokenizer, image processor and prompt form of one Hugging Face folder."""

    def __init__(self, folder: str, min_pixels: int, max_pixels: int, *, limits: Limits = LIMITS) -> None:
        self.limits = limits
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

    def describe(self) -> str:
        """The pixels an image may come to: what `min_pixels` and `max_pixels` leave, as both sides are whole tokens."""
        side, size = self.image_processor.merge_size * self.image_processor.patch_size, self.image_processor.size
        least, most = -(-size["shortest_edge"] // side**2), max(1, size["longest_edge"] // side**2)
        small, large = side * math.ceil(math.sqrt(size["shortest_edge"]) / side), side * math.isqrt(most)
        pixels, tokens = f"{least * side**2:,} to {most * side**2:,}", f"{least:,} to {most:,}"
        squares = f"squares from {small} x {small} to {large} x {large}"
        return f"pixels per image: {pixels}, {tokens} tokens of {side} x {side}; {squares}"

    def encode(self, sample: Sample, fewer: int = 0) -> Encoded:
        """With at least `fewer` image tokens less than its images would have, so far as each can keep one.

        DataError names the sample and what is wrong with it.
        """
        pixels, grids = self._pixels(sample, fewer)
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
            image_tokens=int(merged.sum()),
        )

    def length(self, sample: Sample) -> int:
        """Prompt tokens that `encode` would make, from the headers of the pictures alone; DataError as it has."""
        image, tokens = self.image_processor, 0
        for number, content in enumerate(sample.images):
            size = header(content, f"{sample.place}.{number}", self.limits).size
            try:
                tokens += image.get_number_of_image_patches(size[1], size[0]) // image.merge_size**2 - 1
            except ValueError as error:
                raise DataError(f"{sample.place}: {error}; crop the picture or leave the sample out") from error
        prompt = self.prompt(sample.text, len(sample.images))
        return tokens + len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])

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
        """Text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def holds(self, ids: list[int], stops: tuple[str, ...]) -> bool:
        """Whether generated ids hold one of the texts near their end."""
        longest = max(len(text.encode()) for text in stops)
        # A token is at least one byte, so that the last `longest` tokens hold a text that just ended.
        tail = self.tokenizer.decode(ids[-longest - 3 :])
        return any(text in tail for text in stops)

    def before(self, ids: list[int], stops: tuple[str, ...]) -> str:
        """Text of generated ids without what they were stopped by."""
        text = self.decode(ids)
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        return text[: min(places, default=None)].strip()

    def _pixels(self, sample: Sample, fewer: int) -> tuple[Tensor, Tensor]:
        """([patches, patch width], [images, 3]) of all images."""
        process, patch = self.image_processor, self.image_processor.patch_size
        if not sample.images:
            return torch.zeros(0, 3 * process.temporal_patch_size * patch**2), torch.zeros(0, 3, dtype=torch.long)
        opened = pictures(sample, self.limits)
        for number, picture in enumerate(opened):
            if min(picture.size) < patch:
                size = f"{picture.width} x {picture.height} pixels"
                raise DataError(
                    f"{sample.place}.{number}: {size}, a side below one patch of {patch}; enlarge it or leave it out"
                )
        try:
            if fewer:
                # None is enlarged to a least size: that could take it past its limit.
                sizes = [{"shortest_edge": 1, "longest_edge": most} for most in self._limits(opened, fewer)]
                done = [process([p], size=s, return_tensors="pt") for p, s in zip(opened, sizes, strict=True)]
            else:
                done = [process(opened, return_tensors="pt")]
        except ValueError as error:  # a picture too long for its width
            raise DataError(f"{sample.place}: {error}; crop the picture or leave the sample out") from error
        if len(done) == 1:  # large, so not copied
            return done[0]["pixel_values"], done[0]["image_grid_thw"]
        return torch.cat([d["pixel_values"] for d in done]), torch.cat([d["image_grid_thw"] for d in done])

    def _limits(self, opened: list[Image.Image], fewer: int) -> list[int]:
        """Most pixels of each picture: in proportion, so that all have `fewer` tokens less but one each is left."""
        merge = self.image_processor.merge_size
        patches = [self.image_processor.get_number_of_image_patches(p.height, p.width) for p in opened]
        beyond = [n // merge**2 - 1 for n in patches]  # tokens beyond one each
        left = max(0, sum(beyond) - fewer)
        limits = []
        for picture, tokens in zip(opened, beyond, strict=True):
            most = 1 + tokens * left // max(1, sum(beyond))
            # A long strip is one token thin at least; then its length alone counts, which goes with the root.
            strip = most * min(picture.size) / max(picture.size)
            limits.append(math.ceil(most * min(1, strip) * (merge * self.image_processor.patch_size) ** 2))
        return limits
