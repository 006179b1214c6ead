"""Rows of parquet files, one at a time, and the pictures in their cells.

No less than a page of a column can be read: memory goes with the largest, about twice its size. Hugging Face writes 100
rows of pictures to a group, so to a page; plain pyarrow up to 1,024, which it takes to be rewritten in smaller groups
(`row_group_size=100`) when the pictures are large.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.sample import DataError

BATCH_BYTES = 8 * 2**20  # of rows decoded at a time, on average
Found = tuple[str, dict[str, Any] | DataError]


def records(path: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Found]:
    """(place, record) of every row of a file or of all parquet files below a folder, in order of their names.

    Only the columns that `choose` picks from those of a file are read.
    """
    import pyarrow
    from pyarrow import parquet

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no *.parquet in this folder; check the path")
    for file in files:
        try:
            # With a buffer, pages are read as they are needed; without one, whole columns of a row group.
            with parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
                columns, number = list(choose(table.schema_arrow.names)), 0
                average = sum(table.metadata.row_group(g).total_byte_size for g in range(table.num_row_groups))
                size = BATCH_BYTES * max(1, table.metadata.num_rows) // max(1, average)
                for batch in table.iter_batches(max(1, min(1024, size)), columns=columns, use_threads=False):
                    for record in batch.to_pylist():
                        number += 1
                        yield f"{file}: row {number}", record
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{file}: not a whole parquet file ({reason}); check the path or fetch it again") from error


def pictures(cell: object) -> list[Path | bytes]:
    """Pictures of a cell: encoded bytes, a struct of bytes and path, a path, or a list of these; none when empty."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, bytes):
        return [cell]
    if isinstance(cell, str):
        return [Path(cell)]
    if isinstance(cell, dict):
        if cell.get("bytes"):
            return [cell["bytes"]]
        if cell.get("path"):
            return [Path(cell["path"])]
        raise DataError("a picture with neither bytes nor path; fetch the file again or leave the row out")
    if isinstance(cell, list):
        return [picture for part in cell for picture in pictures(part)]
    raise DataError(f"a picture given as {type(cell).__name__}; name another column for the pictures")
