"""Time to read a picture by the rules of data/pictures.py, and to encode it, against the plain way.

    OMP_NUM_THREADS=1 python -m benchmarks.decode [--save]

`read` is `decode`; its peer is `Image.open(...).convert("RGB")`, which checks nothing, turns nothing and drops alpha.
`encode` is `Processor.encode` of a sample with this picture; its peer does the plain way what that needs, transformers'
image processor and the tokenizer. The pictures are smooth with some noise, as photographs are. Both sides take turns in
one process; the figures are medians of milliseconds. One JSON object a line, `ratio` = ours / peer.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.record import RESULTS, Row, emit, row
from data.pictures import decode
from data.processor import IMAGE_PAD, Processor
from data.sample import Sample, Text
from model.backbones import tiny

TEXT = Text(question="Which colour is the upper half?", answer="green", task="t", source="s")
TURNED = Image.Exif()
TURNED[0x0112] = 6
FORMS: dict[str, tuple[str, str, dict[str, object]]] = {  # format, mode, how it is written
    "JPEG": ("JPEG", "RGB", {"quality": 90}),
    "PNG": ("PNG", "RGB", {}),
    "WEBP": ("WEBP", "RGB", {"quality": 90}),
    "JPEG, turned": ("JPEG", "RGB", {"quality": 90, "exif": TURNED}),
    "PNG, alpha": ("PNG", "RGBA", {}),
}
CALLS = 2048**2  # pixels of a turn at most: small pictures are read several times in one


def encoded(form: str, side: int) -> bytes:
    """A smooth picture with noise; alpha rises from top to bottom."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
    noise = rng.normal(0, 4, (side, side, 3))
    picture = Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
    file_format, mode, options = FORMS[form]
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize((side, side)))
    out = io.BytesIO()
    picture.save(out, file_format, **options)
    return out.getvalue()


def plain(content: bytes) -> Image.Image:
    """As it is mostly done."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def milliseconds(ways: list[Callable[[], object]], calls: int, repeats: int) -> list[float]:
    """Median time of a call of each way. They take turns, back and forth: a slow moment hits all of them."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        order = list(zip(ways, taken, strict=True))
        for way, times in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            for _ in range(calls):
                way()
            times.extend([(time.perf_counter() - start) / calls * 1000] * (turn > 0))  # the first warms up
    return [statistics.median(times) for times in taken]


def measure(processor: Processor, form: str, side: int, repeats: int) -> list[Row]:
    """Both rows of one picture."""
    content, calls = encoded(form, side), max(1, min(16, CALLS // side**2 // 4))
    sample = Sample(key="k", text=TEXT, images=(content,))
    places = int((processor.encode(sample).prompt == processor.image_token).sum())
    prompt = processor.prompt(TEXT, 1).replace(IMAGE_PAD, IMAGE_PAD * places)

    def plainly() -> None:
        processor.image_processor([plain(content)], return_tensors="pt")
        processor.tokenizer([prompt, TEXT.answer])

    ours, peer = milliseconds([lambda: decode(content, ""), lambda: plain(content)], calls, repeats)
    whole, whole_peer = milliseconds([lambda: processor.encode(sample), plainly], calls, repeats)
    name = f"{form}, {side} x {side}, {len(content):,} bytes"
    return [
        row(f"read {name}", ours, peer, "PIL", "ms"),
        row(f"encode {name}", whole, whole_peer, "PIL and transformers", "ms"),
    ]


def main(given: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/decode.jsonl")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024, 2048], help="pixels of a side")
    parser.add_argument("--repeats", type=int, default=21, help="turns")
    parser.add_argument("--max-pixels", type=int, default=1280 * 28 * 28, help="of an encoded image")
    arguments = parser.parse_args(given)
    samples = [Sample(key="k", text=TEXT, images=(encoded("PNG", 64),))]
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(samples, Path(folder) / "backbone", vocabulary=300)
        processor = Processor(f"{folder}/backbone", 56 * 56, arguments.max_pixels)
    rows: list[Row] = []
    for form in FORMS:
        for side in arguments.sides:
            rows += measure(processor, form, side, arguments.repeats)
            emit("decode", rows, RESULTS if arguments.save else None, len(rows) - 2)


if __name__ == "__main__":
    main()
