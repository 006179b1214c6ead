"""Qwen2.5-VL behind the small interface that LatentVLM uses: embed, images, positions, states, logits.

Letters in shapes: T tokens of a packed row, C hidden size, V vocabulary, I image tokens.
"""

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.attention import NAME, Round


class Qwen2_5VL(nn.Module):
    """transformers' own classes, with attention over packed rows in the language model."""

    family = "qwen2_5_vl"

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @staticmethod
    def read_config(folder: str) -> Qwen2_5_VLConfig:
        """The configuration of a Hugging Face folder."""
        return Qwen2_5_VLConfig.from_pretrained(folder)

    @classmethod
    def from_config(cls, config: Qwen2_5_VLConfig) -> "Qwen2_5VL":
        """Random weights."""
        return cls(Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=_attention(config)))

    @classmethod
    def from_folder(cls, folder: str, dtype: torch.dtype = torch.float32) -> "Qwen2_5VL":
        """The weights of a Hugging Face folder; ValueError names any that are missing or left over."""
        config = cls.read_config(folder)
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation=_attention(config), output_loading_info=True
        )
        wrong = {name: sorted(keys) for name, keys in report.items() if keys}
        if wrong:
            raise ValueError(f"{folder}: weights and config.json disagree: {wrong}; fetch the folder again")
        return cls(model)

    @property
    def config(self) -> Qwen2_5_VLConfig:
        return self.model.config

    @property
    def hidden_size(self) -> int:
        return self.config.text_config.hidden_size

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.model.language_model.embed_tokens

    @property
    def vision(self) -> nn.Module:
        return self.model.model.visual

    @property
    def patch_width(self) -> int:
        """Numbers per patch of the image processor's output."""
        v = self.config.vision_config
        return v.in_channels * v.temporal_patch_size * v.patch_size**2

    def checkpoint_layers(self) -> None:
        """Recompute each layer of the language model in the backward pass instead of keeping its activations."""
        self.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    def images(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """pixels [patches, patch_width], grids [images, 3] in patches -> [I, C]."""
        return self.vision(pixels.to(self.model.dtype), grid_thw=grids).pooler_output

    def states(self, embeddings: Tensor, round_: Round) -> Tensor:
        """[T, C] -> last hidden states [T, C]."""
        # Masks live in the layout; a ready-made (empty) mapping keeps transformers from building its own.
        return self.model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=round_.layout.positions,
            attention_mask={"full_attention": None},
            use_cache=False,
            round_=round_,
        ).last_hidden_state[0]

    def logits(self, states: Tensor) -> Tensor:
        """[..., C] -> [..., V]."""
        return self.model.lm_head(states)

    def positions(self, ids: Tensor, grids: Tensor) -> Tensor:
        """M-RoPE positions [3, P] of one prompt (Qwen2-VL, arXiv 2409.12191, section 2.1).

        Text counts on by one in all three rows; an image of h x w tokens takes its rows and columns, and
        the text behind it goes on at the start plus max(h, w).
        """
        merge = self.config.vision_config.spatial_merge_size
        is_image = ids == self.config.image_token_id
        sizes = (grids // torch.tensor([1, merge, merge])).tolist()
        out, position, at = [], 0, 0
        for t, h, w in sizes:
            start = at + int(is_image[at:].float().argmax())
            out.append(torch.arange(position, position + start - at).expand(3, -1))
            position += start - at
            axes = torch.meshgrid(*(torch.arange(n) for n in (t, h, w)), indexing="ij")
            out.append(torch.stack(axes).flatten(1) + position)
            position += max(h, w)
            at = start + t * h * w
        out.append(torch.arange(position, position + len(ids) - at).expand(3, -1))
        return torch.cat(out, dim=1)


def _attention(config: Qwen2_5_VLConfig) -> dict[str, str]:
    if config.text_config.use_sliding_window:
        raise ValueError("sliding-window attention (use_sliding_window) cannot be packed; set it to false")
    return {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}
