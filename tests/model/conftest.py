"""Samples, and models that answer them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data import shards
from data.processor import Encoded, Processor
from data.sample import Sample
from model.build import load_export
from model.latent_vlm import LatentVLM


@pytest.fixture(scope="module")
def samples(tiny_shards: Path) -> list[Sample]:
    """Thirty samples with 0, 1, 2 and 3 pictures."""
    chosen = list(shards.read_set(tiny_shards))[:30]
    assert {len(s.images) for s in chosen} == {0, 1, 2, 3}
    return chosen


@pytest.fixture(scope="module")
def items(samples: list[Sample], processor: Processor) -> list[Encoded]:
    return [processor.encode(sample) for sample in samples]


@pytest.fixture(scope="module")
def model_of(export_of: Callable[[str], Path]) -> Callable[[str], LatentVLM]:
    models: dict[str, LatentVLM] = {}

    def model(objective: str) -> LatentVLM:
        if objective not in models:
            models[objective] = load_export(export_of(objective)).eval()
        return models[objective]

    return model
