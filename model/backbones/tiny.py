"""A small Qwen2.5-VL for the quickstart and the tests, as a normal Hugging Face folder.

    python -m model.backbones.tiny --shards runs/embedded/train --out runs/embedded/backbone

The tokenizer is trained on the shards' text, the pixel mean and deviation are measured on their pictures,
the weights are random.
"""

import argparse
import io
import itertools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from data.processor import IMAGE_PAD, LATENT_END, LATENT_START
from data.sample import IMAGE_MARK, LETTERS, Sample
from data.shards import read_set

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
SPECIAL = [PAD, START, END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, LATENT_START, LATENT_END]
CHAT = (
    "{% for message in messages %}" + START + "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + VISION_START + IMAGE_PAD + VISION_END + "{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}" + END + "{% endfor %}{% if add_generation_prompt %}" + START + "{% endif %}"
)
PATCH = 8


def train_tokenizer(samples: Iterable[Sample], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens and a short chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (
        t
        for s in samples
        for t in (*s.text.question.split(IMAGE_MARK), s.text.answer, *(f" {c}" for c in s.text.choices or ()))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(LETTERS, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, bos_token=PAD, chat_template=CHAT
    )


def pixel_statistics(samples: Iterable[Sample]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour, of pixels from 0 to 1."""
    pictures = [np.asarray(Image.open(io.BytesIO(c)).convert("RGB")) for s in samples for c in s.images]
    pixels = np.concatenate([p.reshape(-1, 3) for p in pictures]) / 255.0
    return pixels.mean(0).round(4).tolist(), pixels.std(0).round(4).tolist()


def config(vocabulary: int, width: int = 128, layers: int = 4, vision_layers: int = 2) -> Qwen2_5_VLConfig:
    """The shape: same class as the real ones, small numbers."""
    heads, half = width // 32, 16
    text = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "vocab_size": vocabulary,
        "bos_token_id": SPECIAL.index(PAD),
        "eos_token_id": SPECIAL.index(END),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
        },
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "out_hidden_size": width,
        "patch_size": PATCH,
        "window_size": 8 * PATCH,
        "fullatt_block_indexes": list(range(vision_layers)),
    }
    ids = {
        "image_token_id": SPECIAL.index(IMAGE_PAD),
        "video_token_id": SPECIAL.index(VIDEO_PAD),
        "vision_start_token_id": SPECIAL.index(VISION_START),
        "vision_end_token_id": SPECIAL.index(VISION_END),
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def build(
    samples: list[Sample], out: Path, vocabulary: int = 1024, seed: int = 0, shape: Mapping[str, int] | None = None
) -> int:
    """Write config.json, weights, tokenizer and image processor, all or nothing. Returns the number of parameters.

    `shape`: other arguments of `config` than its own.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = train_tokenizer(samples, vocabulary)
    mean, std = pixel_statistics(samples[:500])
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config(len(tokenizer), **shape or {}))
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    Qwen2VLImageProcessorPil(patch_size=PATCH, image_mean=mean, image_std=std).save_pretrained(part)
    part.rename(out)
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m model.backbones.tiny", description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="shard set whose text and pictures are looked at")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    arguments = parser.parse_args()
    if (arguments.out / "config.json").exists():
        print(f"{arguments.out}: there already")
        return
    samples = list(itertools.islice(read_set(arguments.shards), 5000))
    print(f"{arguments.out}: {build(samples, arguments.out):,} parameters")


if __name__ == "__main__":
    main()
