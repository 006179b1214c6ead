"""The loaders that benchmarks/stream.py compares, each opened on the same shards to give the same decoded samples.

Samples leave a worker in groups (`group`), large
pictures as tensors in shared memory and small ones through the pipe. All shuffle over shards and over 256 samples,
before they are decoded, and all call `rgb`.
"""

import importlib.metadata
import io
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data.loader import Loader
from data.reader import Raw
from data.shards.index import SHARDS
from data.shards.read import parse
from data.stream import DataConfig, Stream

SHUFFLE = 256  # samples
LARGE = 2**16  # bytes of a picture that goes through shared memory; each costs a handshake
AHEAD = 2  # groups of a worker; torch's own choice, and that of Energon


class Done(NamedTuple):
    """A sample that is ready."""

    key: str
    pictures: Sequence[np.ndarray | Tensor]  # [height, width, RGB], uint8
    text: dict[str, Any]


class Way(NamedTuple):
    """How one loader is opened: (folder, workers, samples that leave a worker together, epochs or None)."""

    package: str  # which it needs
    open: Callable[[Path, int, int, int | None], Iterator[Done]]
    groups: bool = True  # whether it is told how many leave a worker together


def rgb(content: bytes) -> np.ndarray:
    """The one way in which pictures are decoded here."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def tars(folder: Path) -> list[str]:
    """Paths of the shards."""
    return [str(folder / shard.shard) for shard in SHARDS.validate_json((folder / "index.json").read_bytes())]


class Decode:
    """Our work on a sample: its schema checked, its pictures decoded."""

    def __call__(self, raw: Raw) -> Done:
        sample = parse(raw.content, raw.shard)
        return Done(sample.key, [rgb(picture) for picture in sample.images], sample.text.model_dump())

    def lost(self, raw: Raw, why: str) -> Done:
        raise RuntimeError(f"{raw.place}: {why}")


def ours(folder: Path, workers: int, group: int, epochs: int | None) -> Iterator[Done]:
    """Loader and Stream, as a run has them."""
    stream = Stream(DataConfig(train=str(folder), shuffle=SHUFFLE, workers=workers), 0, 1, 0)
    loader = Loader(stream, Decode(), workers)
    left = (epochs or 0) * stream.sets[0].samples
    try:
        for ref, done in loader:
            if epochs is None:
                yield done
            elif ref.epoch < epochs:  # lanes end their epochs at different times
                yield done
                left -= 1
                if not left:
                    return
    finally:
        loader.close()


def webdataset(folder: Path, workers: int, group: int, epochs: int | None) -> Iterator[Done]:
    """Its pipeline under torch's DataLoader; `map` for `decode`, which looks for a decoder file by file."""
    import webdataset as wds

    urls = tars(folder)
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=wds.split_by_node).shuffle(SHUFFLE)
    return _through_workers(dataset.map(_of_files).repeat(epochs or 2**40), workers, group)


def datasets(folder: Path, workers: int, group: int, epochs: int | None) -> Iterator[Done]:
    """Streaming under torch's DataLoader. Its own decoding is off: it would make PIL's pictures first."""
    from datasets import Image as Picture
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    dataset = load_dataset("webdataset", data_files=tars(folder), split="train", streaming=True)
    for name in dataset.column_names:
        if name[0].isdigit():
            dataset = dataset.cast_column(name, Picture(decode=False))
    dataset = dataset.shuffle(seed=0, buffer_size=SHUFFLE)
    return _through_workers(dataset if epochs else dataset.repeat(None), workers, group, _of_row)


def energon(folder: Path, workers: int, group: int, epochs: int | None) -> Iterator[Done]:
    """Its own index, cooker and loader, without saving its state as it goes."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @edataclass
    class Cooked(Sample):
        done: Done

    @stateless
    def cook(files: dict[str, Any]) -> Cooked:
        return Cooked(**basic_sample_keys(files), done=_of_files(files))

    class Encoder(DefaultTaskEncoder):
        decoder = None  # pictures stay bytes until they are shuffled and cooked
        cookers = (Cooker(cook),)

        @stateless
        def batch(self, samples: list[Cooked]) -> dict[str, Any]:
            return {"done": [sample.done for sample in samples]}

    dataset = get_train_dataset(
        _prepared(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=group,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=epochs is None,
    )
    return itertools.chain.from_iterable(batch["done"] for batch in get_loader(dataset, prefetch_factor=AHEAD))


WAYS = {
    "ours": Way("amvl", ours, False),
    "webdataset": Way("webdataset", webdataset),
    "megatron-energon": Way("megatron-energon", energon),
    "datasets": Way("datasets", datasets),
}


def missing(name: str) -> str:
    """Why a loader cannot be compared with; empty where it can."""
    try:
        importlib.metadata.version(WAYS[name].package)
    except importlib.metadata.PackageNotFoundError:
        return f"{WAYS[name].package} is not installed: pip install amvl[peers]"
    return ""


def _of_files(files: dict[str, Any]) -> Done:
    """From the files of a sample by their endings."""
    pictures = [rgb(files[name]) for name in sorted(files) if name[0].isdigit()]
    return Done(files["__key__"], pictures, json.loads(files["json"]))


def _of_row(row: dict[str, Any]) -> Done:
    """From a row of datasets, which parses what ends in json itself."""
    pictures = [rgb(row[name]["bytes"]) for name in sorted(row) if name[0].isdigit() and row[name] is not None]
    return Done(row["__key__"], pictures, row["json"])


def _through_workers(
    dataset: Any, workers: int, group: int, finish: Callable[[Any], Done] | None = None
) -> Iterator[Done]:
    """Samples of an iterable dataset. `finish` is called in the worker."""

    def collate(items: list[Any]) -> list[Done]:
        done = [finish(item) for item in items] if finish else items
        return [one._replace(pictures=list(map(_portable, one.pictures))) for one in done] if workers else done

    loader = DataLoader(
        dataset,
        batch_size=group if workers else 1,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return itertools.chain.from_iterable(loader)


def _portable(picture: np.ndarray) -> np.ndarray | Tensor:
    if picture.nbytes < LARGE:
        return picture
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not to be written to
        return torch.from_numpy(picture)


def _prepared(folder: Path) -> Path:
    """The shards as Energon wants them: its own index beside them, under the name that ours has."""
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    own = folder / "energon"
    if not own.exists():
        own.mkdir()
        names = [Path(path).name for path in tars(folder)]
        for name in names:
            (own / name).hardlink_to(folder / name)
        WebdatasetPreparator.prepare_dataset(own, names, split_parts_ratio=[("train", 1.0)], workers=1)
        described = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (own / ".nv-meta" / "dataset.yaml").write_text(described)
    return own
