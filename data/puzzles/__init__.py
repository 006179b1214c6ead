"""Generated visual puzzles with several choices, whose right answer the generator knows.

`generate` makes one sample, `stream` many; `python -m data.puzzles --sheet OUT.png` draws an overview.
"""

from data.puzzles.registry import DIFFICULTIES, KINDS, SIZES, SPLITS, generate, seeds, stream

__all__ = ["DIFFICULTIES", "KINDS", "SIZES", "SPLITS", "generate", "seeds", "stream"]
