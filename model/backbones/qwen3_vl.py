"""Qwen3-VL, dense (arXiv 2511.21631). Features of several vision layers go to the first layers of the language model
(DeepStack, arXiv 2406.04334): the prefix carries them, branches see them through its keys and values."""

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from model.attention import Round
from model.backbones.backbone import Backbone, Features


class Qwen3VL(Backbone):
    """Full attention in the vision tower, images at the input and behind the first layers."""

    family = "qwen3_vl"
    config_class = Qwen3VLConfig
    model_class = Qwen3VLForConditionalGeneration

    def look(self, pixels: Tensor, grids: Tensor) -> Features:
        seen = self.vision(pixels, grid_thw=grids)
        return Features(seen.pooler_output, tuple(seen.deepstack_features))

    def states(self, embeddings: Tensor, round_: Round, image_rows: Tensor | None = None, deep: tuple = ()) -> Tensor:
        images = {}
        if deep and image_rows is not None:
            is_image = torch.zeros(1, len(embeddings), dtype=torch.bool, device=embeddings.device)
            images = {
                "visual_pos_masks": is_image.index_fill(1, image_rows, True),
                "deepstack_visual_embeds": list(deep),
            }
        return self.language(
            inputs_embeds=embeddings[None],
            position_ids=round_.layout.positions,
            attention_mask=None,  # masks live in the plan; transformers makes none for the attention it does not know
            use_cache=False,
            round_=round_,
            **images,
        ).last_hidden_state[0]
