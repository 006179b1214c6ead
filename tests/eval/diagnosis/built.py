"""A real LatentVLM with weights set by hand, so that what a diagnosis has to find is known beforehand.

One layer, one head, queries of zero: a row gets the mean of what it sees. Three groups of directions, one direction for
each letter: ANSWER is where the letter of an answer stands, HINT where a token of the prompt that names a letter
stands, LATENT where z enters. The values of the layer copy the groups that somebody reads; everything else is zero.
"""

import torch
from torch import Tensor

from data.processor import Encoded
from data.sample import Sample, Text
from eval.diagnosis.cases import Case
from eval.diagnosis.collect import Collected, Collector
from model.batch import Markers
from model.build import FAMILIES
from model.latent import GaussianHead, LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import RECIPES

LETTERS = "ABCD"
HIDDEN, WORDS = 32, 24  # width of the language model, tokens that it knows
ANSWER, HINT, LATENT = (torch.arange(first, first + 4) for first in (0, 4, 8))  # directions
A, HINT_A, END, IMAGE, OTHER = (
    0,
    4,
    8,
    11,
    15,
)  # token ids: four letters, four hints, ...; all from OTHER on mean nothing
MARKS = Markers(9, 10)
SLOTS, SHARP = 4, 2.0  # k; weight of the output layer
SIGMA = 0.05


def built(
    posterior: str | None = "answer",
    prior: str | None = None,
    decoder: str = "latents",
    sigma_p: float = SIGMA,
    sigma_q: float = SIGMA,
    slots: int = SLOTS,
    objective: str = "amvl",
) -> LatentVLM:
    """posterior: z tells the answer that it is shown, the hint in the prompt, or nothing; prior: the hint, or nothing.

    decoder: what the answer goes by, the latents or the hint in the prompt.
    """
    backbone = FAMILIES["qwen2_5_vl"].from_config(_config())
    model = LatentVLM(backbone, LatentConfig(slots=slots, width=4, head_width=8), RECIPES[objective]).eval()
    read = {"latents": LATENT, "prompt": HINT, "answer": ANSWER}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".visual." not in name:
                weight.fill_(1.0 if "norm" in name else 0.0)
        attention, words = backbone.language.layers[0].self_attn, backbone.embedding.weight
        for group in {posterior, prior, decoder} - {None}:
            attention.v_proj.weight[read[group], read[group]] = 1.0
        attention.o_proj.weight.copy_(100 * torch.eye(HIDDEN))  # beside which the norm's epsilon is nothing
        words[A + torch.arange(4), ANSWER] = 1e6  # so large that what a letter's own row has seen is lost beside it
        words[HINT_A + torch.arange(4), HINT] = 100.0
        head = backbone.model.lm_head.weight
        head[A + torch.arange(4), read[decoder]] = SHARP
        head[END, ANSWER] = SHARP  # a letter is followed by the end mark
        model.injection.project.weight[LATENT, torch.arange(4)] = 1.0
        _reads(model.prior, read[prior] if prior else None, sigma_p)
        if hasattr(model, "posterior"):
            _reads(model.posterior, read[posterior] if posterior else None, sigma_q)
    return model


def _reads(head: GaussianHead, directions: Tensor | None, sigma: float) -> None:
    """The mean is what stands in these directions less their mean; silu(x) - silu(-x) = x."""
    if directions is not None:
        for n, direction in enumerate(directions):
            head.inner.weight[2 * n, direction], head.inner.weight[2 * n + 1, direction] = 1.0, -1.0
        contrast = torch.eye(4) - 0.25
        head.outer.weight[:4] = torch.stack([contrast, -contrast], 2).flatten(1)
    third = torch.tensor(1 / 3, dtype=torch.float64)  # log sigma = -1 + 3 tanh(raw + atanh(1 / 3))
    head.outer.bias[4:] = ((torch.tensor(sigma, dtype=torch.float64).log() + 1) / 3).atanh() - third.atanh()


def _config():
    text = {
        "hidden_size": HIDDEN,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": WORDS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "bos_token_id": END,
        "eos_token_id": END,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": HIDDEN,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [0],
    }
    ids = {"image_token_id": IMAGE, "video_token_id": 12, "vision_start_token_id": 13, "vision_end_token_id": 14}
    return FAMILIES["qwen2_5_vl"].config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def items(right: str, hints: str | None = None, picture: tuple[int, int] | None = None) -> list[Case]:
    """A case for each letter in `right`, with a hint of that of `hints`, and a picture of so many patches."""
    return [_item(n, letter, (hints or right)[n], picture) for n, letter in enumerate(right)]


def _item(number: int, letter: str, hint: str, picture: tuple[int, int] | None) -> Case:
    """Prompts differ in length and in words that mean nothing. The question has one word, so no other order."""
    generator = torch.Generator().manual_seed(number)
    words = torch.randint(OTHER, WORDS, (3 + number % 4,), generator=generator)
    height, width = picture or (0, 0)
    count = height * width // 4
    places = [torch.tensor([13, *[IMAGE] * count, 14])] if count else []
    prompt = torch.cat([words[:2], *places, torch.tensor([HINT_A + LETTERS.index(hint)]), words[2:]])
    right = LETTERS.index(letter)
    text = Text(question="?", answer=letter, choices=tuple("wxyz"), task="letters", source="tests")
    answers = tuple(torch.tensor([A + n, END]) for n in range(4))
    item = Encoded(
        sample=Sample(key=f"item-{number:02d}", text=text),
        prompt=prompt,
        answer=answers[right],
        pixels=torch.randn(height * width, 3 * 2 * 8 * 8, generator=generator),
        grids=torch.tensor([[1, height, width]] if count else [], dtype=torch.long).reshape(-1, 3),
        image_tokens=count,
    )
    return Case(item, tuple(LETTERS), answers, right, tuple(n for n in range(4) if n != right))


def collector(model: LatentVLM, tokens: int = 4096, seed: int = 0) -> Collector:
    """With no processor: questions of one word have no other order that would have to be encoded."""
    return Collector(model, None, MARKS, tokens, seed)  # type: ignore[arg-type]


def collect(model: LatentVLM, cases: list[Case], **how: int) -> Collected:
    return collector(model, **how).collect(cases)
