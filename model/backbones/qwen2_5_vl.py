"""Qwen2.5-VL (arXiv 2502.13923)."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.attention import Round
from model.backbones.backbone import Backbone


class Qwen2_5VL(Backbone):
    """Window attention in the vision tower, images at the input alone."""

    family = "qwen2_5_vl"
    config_class = Qwen2_5_VLConfig
    model_class = Qwen2_5_VLForConditionalGeneration

    @classmethod
    def read_config(cls, path: Path) -> Any:
        """ValueError where the language model has sliding windows, which a packed row cannot have."""
        config = super().read_config(path)
        if config.text_config.use_sliding_window:
            raise ValueError(f"{path}: sliding-window attention cannot be packed; set use_sliding_window to false")
        return config

    def states(self, embeddings: Tensor, round_: Round, image_rows: Tensor | None = None, deep: tuple = ()) -> Tensor:
        return self.language(
            inputs_embeds=embeddings[None],
            position_ids=round_.layout.positions,
            # Masks live in the plan; a ready-made (empty) mapping keeps transformers from building its own.
            attention_mask={"full_attention": None},
            use_cache=False,
            round_=round_,
        ).last_hidden_state[0]
