"""Who holds which KV block: a free list with reference counts."""

from collections import Counter
from collections.abc import Iterable

SCRATCH_BLOCK = 0
"""Written by rows that stand for nobody; never given away."""


def blocks_for(positions: int, block_size: int) -> int:
    """Blocks that hold so many positions."""
    return -(-positions // block_size)


class BlockPool:
    """The KV blocks of one engine, `block_size` positions each.

    The following conditions hold: a block is free or has one or more holders, never both; `SCRATCH_BLOCK` is neither.
    Engine thread only.

    Attributes:
        block_size: positions of a block.
        usable: blocks that can be given away at all.
        peak: of them, given away at once so far.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.usable = num_blocks - 1
        self.peak = 0
        self._free = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))
        self._holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_freed(self, tables: Iterable[Iterable[int]]) -> int:
        """Blocks that would be free if these holders, one table each, gave theirs up."""
        leaving = Counter(block for table in tables for block in table)
        return sum(self._holders[block] == count for block, count in leaving.items())

    def allocate(self, count: int) -> list[int] | None:
        """Gives away `count` blocks with one holder each, or None if fewer are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        self._holders.update(dict.fromkeys(blocks, 1))
        self.peak = max(self.peak, len(self._holders))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to blocks that somebody holds."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Takes one holder away; a block without holders is free again."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free.append(block)
