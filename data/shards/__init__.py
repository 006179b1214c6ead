"""Shard sets: folders of tar files of samples with an index. `python -m data.shards --help` for the commands."""

from data.shards.index import INDEX, Shard, load_index
from data.shards.read import parse, read_set
from data.shards.write import WriteOptions, write

__all__ = ["INDEX", "Shard", "WriteOptions", "load_index", "parse", "read_set", "write"]
