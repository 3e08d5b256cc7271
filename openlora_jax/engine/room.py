"""What running sequences hold beside their adapters: slots, KV blocks and places in the step's work list."""

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile

from openlora_jax.config import EngineConfig
from openlora_jax.engine.kv_blocks import BlockPool, blocks_for
from openlora_jax.engine.prefixes import block_names
from openlora_jax.engine.sequence import LiveRequest, Party, Sequence
from openlora_jax.errors import InvalidRequest


class Room:
    """Given out and taken back here. Engine thread only.

    Attributes:
        blocks: the KV blocks.
        slots: the free ones, a heap.
        items: pool -> places of the decode step's work list that are taken.
        found: prompt tokens whose KV was in memory when their request started.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._deterministic = config.deterministic
        self._work_items = config.work_items
        self._prefix_cache = config.prefix_cache and not config.deterministic
        self.found = 0
        self.blocks = BlockPool(config.kv_blocks, config.kv_block)
        self.slots = list(range(config.max_rows))
        self.items: Counter[str] = Counter()

    def fits(self, party: Party, running: int, without: Iterable[Sequence] = ()) -> bool:
        """Whether slots and blocks suffice, with a block left for each of the `running` to grow into.

        Args:
            party: would start.
            running: sequences that run now.
            without: of these, who would give way.
        """
        leaving = list(without)
        shared = self.full_blocks(party[0]) * (len(party) - 1)
        needed = sum(map(self._starting_blocks, party)) - shared
        growth = 0 if self._deterministic else running - len(leaving)
        free = self.blocks.num_free + self.blocks.num_freed(sequence.blocks for sequence in leaving)
        return len(party) <= len(self.slots) + len(leaving) and needed + growth <= free

    def has_items(self, live: LiveRequest, rows: int, without: Iterable[Sequence] = ()) -> bool:
        """Whether a decode step's work list has room for so many rows of the mix beside all who run."""
        taken = Counter(self.items)
        for sequence in without:
            taken.subtract(sequence.request.items)
        return all(taken[pool] + pages * rows <= self._work_items for pool, pages in live.items.items())

    def misfit(self, live: LiveRequest) -> InvalidRequest | None:
        """Why a mix can never run: its adapters cannot be mixed, or no work list could hold all its samples."""
        for lease, item in zip(live.leases, live.request.mix, strict=True):
            if lease.traits.gains and (len(live.leases) > 1 or item.weight != 1):
                problem = f"{item.adapter!r} is a DoRA adapter, whose gain on what the base computes is not linear"
                return InvalidRequest("mix", f"{problem}: it answers alone and with the weight 1")
        limit, samples = self._work_items, len(live.sequences)
        for pool, pages in live.items.items():
            if pages * samples > limit:
                problem = f"its adapters have {pages} pages of {pool}, {pages * samples} for n = {samples}"
                return InvalidRequest("mix", f"{problem}; a step takes at most {limit} (configuration work_items)")
        return None

    def take(self, party: Party) -> None:
        """Gives each of a party its slot, its blocks and its items. The samples share the prompt's full blocks."""
        leader = party[0]
        for sequence in party:
            shared = self._known_blocks(leader) if sequence is leader else leader.blocks[: self.full_blocks(leader)]
            self.blocks.share(shared)
            own = self.blocks.allocate(self._starting_blocks(sequence) - len(shared))
            if own is None:
                raise RuntimeError("a sequence was started without room for its blocks")
            sequence.blocks = shared + own
            sequence.slot = heapq.heappop(self.slots)
            sequence.leader = None if sequence is leader else leader
            sequence.computed = len(shared) * self.blocks.block_size if sequence is leader else 0
            self.items.update(sequence.request.items)

    def give_back(self, sequence: Sequence) -> None:
        """Takes slot, blocks and items from a sequence."""
        self.blocks.release(reversed(sequence.blocks))  # of a prefix, the end is forgotten first
        heapq.heappush(self.slots, sequence.row)
        self.items.subtract(sequence.request.items)
        sequence.slot, sequence.blocks = None, []

    def name_blocks(self, sequence: Sequence) -> None:
        """Makes the blocks of a prompt that are computed by now known to those who start with the same tokens."""
        if self._prefix_cache:
            computed = sequence.computed // self.blocks.block_size
            for block, name in zip(sequence.blocks[:computed], sequence.block_names, strict=False):
                self.blocks.name(block, name)

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        """The blocks that the prompt begins with, as far as they are in memory."""
        if not self._prefix_cache:
            return []
        sequence.block_names = sequence.block_names or tuple(block_names(sequence, self.blocks.block_size))
        known = (self.blocks.named(name) for name in sequence.block_names)
        found = [block for block in takewhile(lambda block: block is not None, known) if block is not None]
        self.found += len(found) * self.blocks.block_size
        return found

    def full_blocks(self, sequence: Sequence) -> int:
        """Blocks before the one of the prompt's last token: what the samples of a request share."""
        return (sequence.prompt_len - 1) // self.blocks.block_size

    def _starting_blocks(self, sequence: Sequence) -> int:
        return blocks_for(sequence.reach if self._deterministic else sequence.known, self.blocks.block_size)
