"""What LatentVLM asks of a vision-language model: embed, images, positions, states, logits. One file per family.

Letters in shapes: T tokens of a packed row, C hidden size, V vocabulary, I image tokens.
"""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from model.attention import NAME, SDPA, BackEnd, Round, register_vision

IMPLEMENTATIONS = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}


class Features(NamedTuple):
    """What the vision tower gives: input vectors, and those added behind the first layers (DeepStack)."""

    tokens: Tensor  # [I, C]
    deep: tuple[Tensor, ...] = ()  # each [I, C]

    def nothing(self) -> Tensor:
        """Zero, with the tower in its graph."""
        return sum((0.0 * x.sum() for x in (self.tokens, *self.deep)), start=self.tokens.new_zeros(()))


class Backbone(nn.Module):
    """transformers' own classes, with attention over packed rows in the language model."""

    family: ClassVar[str]
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, model: PreTrainedModel, attention: BackEnd, vision_attention: BackEnd) -> None:
        super().__init__()
        self.model, self.attention, self.vision_attention = model, attention, vision_attention
        # Only now: while it builds a model, transformers looks for a kernel to fetch under names such as this one.
        model.model.visual.config._attn_implementation = register_vision(vision_attention)

    @classmethod
    def read_config(cls, path: Path) -> Any:
        """The configuration of a Hugging Face folder, or of its config.json alone."""
        return cls.config_class.from_pretrained(str(path))

    @classmethod
    def from_config(cls, config: Any, attention: BackEnd = SDPA, vision_attention: BackEnd = SDPA) -> "Backbone":
        """Random weights."""
        return cls(
            cls.model_class._from_config(config, attn_implementation=IMPLEMENTATIONS), attention, vision_attention
        )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        attention: BackEnd = SDPA,
        vision_attention: BackEnd = SDPA,
    ) -> "Backbone":
        """The weights of a Hugging Face folder; ValueError names any that are missing, left over or misshapen.

        Under zero.Init (DeepSpeed) each rank keeps its share of every weight as it is read.
        """
        config = cls.read_config(folder)
        model, report = cls.model_class.from_pretrained(
            str(folder), config=config, dtype=dtype, attn_implementation=IMPLEMENTATIONS, output_loading_info=True
        )
        wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
        if wrong:
            what, first = next((name, keys[0]) for name, keys in wrong.items())
            count = sum(map(len, wrong.values()))
            raise ValueError(f"{what.replace('_', ' ')}: {first}" + (f" and {count - 1} more" if count > 1 else ""))
        return cls(model, attention, vision_attention)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def hidden_size(self) -> int:
        return int(self.config.text_config.hidden_size)

    @property
    def language(self) -> Any:
        return self.model.model.language_model

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.model.language_model.embed_tokens

    @property
    def vision(self) -> Any:
        return self.model.model.visual

    @property
    def patch_width(self) -> int:
        """Numbers per patch of the image processor's output."""
        v = self.config.vision_config
        return int(v.in_channels * v.temporal_patch_size * v.patch_size**2)

    @classmethod
    def head_sizes(cls, config: Any) -> tuple[int, int]:
        """Head sizes of the language model and of the vision tower."""
        text, vision = config.text_config, config.vision_config
        own = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return own, vision.hidden_size // vision.num_heads

    def checkpoint_layers(self, layers: int) -> None:
        """Recompute the first layers of the language model, and all of a trained vision tower, in the backward pass."""
        models = [(self.language, layers)]
        if self.vision_is_trained:
            models.append((self.vision, len(self.vision.blocks)))
        for model, count in models:
            # The second name is the older one, of transformers before 5.20.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            for layer in list(getattr(model, "layers", None) or model.blocks)[count:]:
                layer.gradient_checkpointing = False

    @property
    def vision_is_trained(self) -> bool:
        return any(p.requires_grad for p in self.vision.parameters())

    def images(self, pixels: Tensor, grids: Tensor) -> Features:
        """pixels [patches, patch_width], grids [images, 3] in patches; a frozen tower leaves no graph."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision_is_trained):
            return self.look(pixels.to(self.model.dtype), grids)

    def look(self, pixels: Tensor, grids: Tensor) -> Features:
        """The vision tower itself."""
        return Features(self.vision(pixels, grid_thw=grids).pooler_output)

    def states(self, embeddings: Tensor, round_: Round, image_rows: Tensor | None = None, deep: tuple = ()) -> Tensor:
        """[T, C] -> last hidden states [T, C]. `deep` features [I, C] belong to the image rows [I]."""
        raise NotImplementedError

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
