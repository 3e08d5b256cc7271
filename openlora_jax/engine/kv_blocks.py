"""Who holds which KV block: a free list with reference counts, and the names of blocks by what they contain."""

from collections import Counter, OrderedDict
from collections.abc import Iterable

SCRATCH_BLOCK = 0
"""Written by rows that stand for nobody; never given away."""


def blocks_for(positions: int, block_size: int) -> int:
    """Blocks that hold so many positions."""
    return -(-positions // block_size)


class BlockPool:
    """The KV blocks of one engine, `block_size` positions each.

    The following conditions hold: a block is free or has one or more holders, never both; `SCRATCH_BLOCK` is neither. A
    free block may have a name: it can be had by it until it is given away, the one released first before the others.
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
        self._idle: OrderedDict[int, None] = OrderedDict()  # free and named, the least recently released first
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._idle)

    def num_freed(self, tables: Iterable[Iterable[int]]) -> int:
        """Blocks that would be free if these holders, one table each, gave theirs up."""
        leaving = Counter(block for table in tables for block in table)
        return sum(self._holders[block] == count for block, count in leaving.items())

    def allocate(self, count: int) -> list[int] | None:
        """Gives away `count` blocks with one holder each, or None if fewer are free."""
        if count > self.num_free:
            return None
        blocks = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        self._holders.update(dict.fromkeys(blocks, 1))
        self.peak = max(self.peak, len(self._holders))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to blocks that somebody holds, or that are named."""
        for block in blocks:
            if block in self._idle:
                del self._idle[block]
                self._holders[block] = 0
            self._holders[block] += 1
        self.peak = max(self.peak, len(self._holders))

    def name(self, block: int, name: bytes) -> None:
        """Makes a block that somebody holds known by what it contains, unless another one is."""
        if name not in self._named and block not in self._names:
            self._named[name] = block
            self._names[block] = name

    def named(self, name: bytes) -> int | None:
        """The block that contains this, held or free."""
        return self._named.get(name)

    def forget(self) -> None:
        """Takes all names away: what the blocks contained is lost."""
        self._free += self._idle
        self._idle.clear()
        self._named.clear()
        self._names.clear()

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._named[self._names.pop(block)]
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Takes one holder away; a block without holders is free again."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                if block in self._names:
                    self._idle[block] = None
                else:
                    self._free.append(block)
