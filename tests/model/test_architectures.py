"""The files of configs/architectures are the configurations of the published models.

Each loads with transformers as it is written, and the model built from it has exactly as many parameters as the
published weights. The same number also follows from the file's sizes by counting every weight by hand.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

FOLDER = Path(__file__).parents[2] / "configs" / "architectures"
PUBLISHED = {  # parameters in the weight files on the Hugging Face hub; tied weights are there once
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen3-VL-32B-Instruct": 33_357_390_064,
}
CLASSES = {"qwen2_5_vl": Qwen2_5_VLConfig, "qwen3_vl": Qwen3VLConfig}
TOKENS = {  # of the Qwen vocabulary, the same in every model
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
OTHERWISE = {  # written in a file, but kept by transformers in another form or place, or of no use to it
    "architectures",
    "dtype",
    "in_chans",
    "model_type",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "vision_config",
}


def written(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def load(name: str, folder: Path) -> PreTrainedConfig:
    shutil.copy(FOLDER / f"{name}.json", folder / "config.json")
    return AutoConfig.from_pretrained(folder)


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def text_count(text: dict[str, Any], qwen3: bool, tied: bool) -> int:
    """A Qwen2.5 or Qwen3 decoder: Qwen2.5 has biases on q, k and v; Qwen3 normalizes every head of q and k instead."""
    hidden, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    size = text["head_dim"] if qwen3 else hidden // heads
    queries, keys, bias = heads * size, text["num_key_value_heads"] * size, not qwen3
    attention = linear(hidden, queries, bias) + 2 * linear(hidden, keys, bias) + linear(queries, hidden, False)
    layer = attention + 3 * linear(hidden, inner, False) + 2 * hidden + (2 * size if qwen3 else 0)
    return (1 if tied else 2) * text["vocab_size"] * hidden + text["num_hidden_layers"] * layer + hidden


def vision_count(vision: dict[str, Any], qwen3: bool) -> int:
    """The image encoder and its mergers.

    Qwen2.5-VL: RMS norms, a gated MLP, no bias on the patches, one merger. Qwen3-VL: layer norms, a plain MLP, learned
    positions, and one further merger for each deepstack layer, which normalizes after the merge and not before.
    """
    hidden, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    pixels = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    merged = hidden * vision["spatial_merge_size"] ** 2
    norm = 2 * hidden if qwen3 else hidden
    mlp = linear(hidden, inner) * (1 if qwen3 else 2) + linear(inner, hidden)
    block = 2 * norm + linear(hidden, 3 * hidden) + linear(hidden, hidden) + mlp
    project = linear(merged, merged) + linear(merged, out)
    total = linear(pixels, hidden, qwen3) + vision["depth"] * block + norm + project
    if qwen3:
        deepstack = len(vision["deepstack_visual_indexes"]) * (2 * merged + project)
        total += vision["num_position_embeddings"] * hidden + deepstack
    return total


def test_every_file_has_its_published_count():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_loads_as_written(name, tmp_path):
    raw, config = written(name), load(name, tmp_path)
    assert type(config) is CLASSES[raw["model_type"]]
    assert {key: getattr(config, key) for key in TOKENS} == TOKENS
    text = raw.get("text_config", raw)  # Qwen2.5-VL: the decoder's values stand at the top
    for part, values in ((config.text_config, text), (config.vision_config, raw["vision_config"])):
        for key in set(values) - OTHERWISE - set(TOKENS) - {"vision_token_id"}:
            assert getattr(part, key) == values[key], key
    assert config.vision_config.in_channels == 3
    assert config.tie_word_embeddings is raw["tie_word_embeddings"]
    assert config.text_config.eos_token_id == 151645
    rope = config.text_config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("default", text["rope_theta"])
    assert rope["mrope_section"] == text["rope_scaling"]["mrope_section"]
    assert rope.get("mrope_interleaved", False) is (raw["model_type"] == "qwen3_vl")
    assert 2 * sum(rope["mrope_section"]) == 128  # the size of a head of every one of these models
    assert set(getattr(config.text_config, "layer_types", None) or ["full_attention"]) == {"full_attention"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_parameters(name, tmp_path):
    raw, config = written(name), load(name, tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, raw["architectures"][0])._from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]

    qwen3 = raw["model_type"] == "qwen3_vl"
    text = text_count(raw.get("text_config", raw), qwen3, raw["tie_word_embeddings"])
    assert text + vision_count(raw["vision_config"], qwen3) == PUBLISHED[name]
