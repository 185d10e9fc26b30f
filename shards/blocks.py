"""All rows against all columns, in blocks of rows that fit in memory, on several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from shards.workers import map_in_order

Result = TypeVar("Result")

_BLOCK_CELLS: Final = 2**24  # 64 MiB of float32 a thread


@dataclass(frozen=True)
class Blocks:
    """How such work is done.

    Attributes:
        workers: threads. NumPy leaves the interpreter lock while it multiplies and compares.
        step: is told of the share of all rows that each block was.
    """

    workers: int
    step: Callable[[float], None]

    def run(self, function: Callable[[slice], Result], rows: int, columns: int) -> Iterator[Result]:
        """What the function gives for each block, a slice of the rows, in their order."""
        length = max(1, _BLOCK_CELLS // max(1, columns))
        blocks = [slice(start, min(start + length, rows)) for start in range(0, rows, length)]
        with ThreadPoolExecutor(self.workers) as pool:
            for block, result in zip(blocks, map_in_order(pool, function, blocks, self.workers + 1), strict=True):
                yield result
                self.step((block.stop - block.start) / rows)
