"""Records of a benchmark's files: parquet as downloaded, and what `datasets` writes with save_to_disk.

save_to_disk leaves a folder with a `state.json` that names its `data-*-of-*.arrow` files, Arrow streams
(https://github.com/huggingface/datasets/blob/main/src/datasets/arrow_dataset.py); a DatasetDict is a folder of such
folders, named as its splits. They are read with pyarrow alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.convert import tables
from data.sample import DataError

AT_ONCE = 64  # rows of an Arrow file made Python objects together
Record = dict[str, Any]


def records(
    path: Path, needed: Sequence[str], wanted: Sequence[str] = (), but: Sequence[str] = ()
) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row at a path, with all columns `needed` and those `wanted` that are there.

    Files of the splits `but` are passed over where their names tell.
    """
    for file in _files(path, but):

        def choose(there: Sequence[str], file: Path = file) -> list[str]:
            if missing := [name for name in needed if name not in there]:
                columns = ", ".join(there)
                raise DataError(f"{file}: no column {missing[0]!r} among {columns}; give the benchmark as published")
            return [*needed, *(name for name in wanted if name in there)]

        found = _arrow(file, choose) if file.suffix == ".arrow" else tables.records(file, choose)
        for place, record in found:
            if isinstance(record, DataError):
                raise DataError(f"{place}: {record}")
            yield place, record


def md5(file: Path) -> str:
    """As VLMEvalKit names the versions of a TSV."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _files(path: Path, but: Sequence[str]) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: nothing is there; check the path")
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{path}: not a .parquet or .tsv file; give one, or the folder of the benchmark")
        return [path]
    parquet = [file for file in path.rglob("*.parquet") if not file.name.startswith(tuple(f"{s}-" for s in but))]
    saved = [file for state in path.rglob("state.json") if state.parent.name not in but for file in _saved(state)]
    if not parquet and not saved:
        others = f" but those of {' and '.join(but)}" if any(path.rglob("*.parquet")) and but else ""
        what = f"no *.parquet{others} and no state.json of save_to_disk"
        raise DataError(f"{path}: {what} in this folder or below it; check the path, or name the TSV file")
    return sorted(parquet) + sorted(saved)


def _saved(state: Path) -> list[Path]:
    """The Arrow files of a saved data set."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in content["_data_files"]]
        picked = content.get("_indices_data_files")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{state}: not of save_to_disk ({error!r}); save the data set again") from error
    if picked:
        what = "a selection of rows kept apart from them (_indices_data_files)"
        raise DataError(f"{state}: {what}; call flatten_indices() on the data set and save it again")
    return [state.parent / name for name in names]


def _arrow(file: Path, choose: Callable[[Sequence[str]], list[str]]) -> Iterator[tuple[str, Record]]:
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
            columns = choose(stream.schema.names)
            for batch in stream:
                for start in range(0, batch.num_rows, AT_ONCE):
                    for record in batch.select(columns).slice(start, AT_ONCE).to_pylist():
                        number += 1
                        yield f"{file}: row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file}: not a whole Arrow stream ({reason}); save the data set again") from error
