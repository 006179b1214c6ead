"""Whatever the size of a source, it passes through little memory. Each form is read in a process of its own."""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.convert.support import picture

LARGE, GROWTH = 300 * 2**20, 150 * 2**20
READ = """
import sys
from pathlib import Path
from data.convert import {module}
from data.convert.row import load
count = 0
for row in {module}.rows({arguments}):
    count += 1
    load(row)
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the process that started this
print(count, 1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


def noise(size: int) -> bytes:
    """A picture that ends in bytes that cannot be made smaller; PIL reads its header alone."""
    return picture() + random.Random(size).randbytes(size)


def write_array(path: Path, size: int) -> None:
    record = {"conversations": [{"from": "human", "value": "What? " * 200}, {"from": "gpt", "value": "This."}]}
    one = json.dumps(record)
    with path.open("w") as file:
        file.write("[" + ",\n".join([one] * 1000))
        for _ in range(size // len(one) // 1000):
            file.write(",\n" + ",\n".join([one] * 1000))
        file.write("]")


def write_tsv(path: Path, size: int) -> None:
    """Every third row shares the picture of a row at the end."""
    cell = base64.b64encode(noise(200_000)).decode()
    with path.open("w") as file:
        file.write("index\tquestion\tanswer\timage\n")
        for number in range(size // len(cell) + 1):
            file.write(f"{number}\tWhat?\tThis\t{'last' if number % 3 == 0 else cell}\n")
        file.write(f"last\tWhat?\tThis\t{cell}\n")


def write_parquet(path: Path, size: int) -> None:
    """One group of rows, which many readers take all of at once, in pages of 64 rows."""
    schema = pyarrow.schema([("question", pyarrow.string()), ("answer", pyarrow.string()), ("image", pyarrow.binary())])
    cells = [noise(200_000 + n) for n in range(size // 200_000 + 1)]
    columns = {"question": ["What?"] * len(cells), "answer": ["This"] * len(cells), "image": cells}
    parquet.write_table(pyarrow.table(columns, schema), path, use_dictionary=False, write_batch_size=64)


FORMS: dict[str, tuple[str, Callable[[Path, int], None], str]] = {
    "llava": ("x.json", write_array, "Path(sys.argv[1])"),
    "vlmevalkit": ("x.tsv", write_tsv, "Path(sys.argv[1])"),
    "parquet": (
        "x.parquet",
        write_parquet,
        "Path(sys.argv[1]), parquet.Columns(question='question', answer='answer', images='image')",
    ),
}


@pytest.mark.parametrize("module", FORMS)
def test_memory_does_not_grow_with_the_source(tmp_path: Path, module: str) -> None:
    name, write, arguments = FORMS[module]
    script = READ.format(module=module, arguments=arguments)
    counts, peaks = [], []
    for folder, size in (("small", 2**20), ("large", LARGE)):
        path = tmp_path / folder / name
        path.parent.mkdir()
        write(path, size)
        assert size <= path.stat().st_size or module == "vlmevalkit"
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        counts.append(count)
        peaks.append(peak)
        path.unlink()
    assert counts[1] > counts[0] * 100 and peaks[1] - peaks[0] < GROWTH and peaks[1] < 2**30
