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
        forks = len(party) - len({sequence.member for sequence in party})
        shared = self.full_blocks(party[0]) * forks
        needed = sum(map(self._starting_blocks, party)) - shared
        growth = 0 if self._deterministic else running - len(leaving)
        free = self.blocks.num_free + self.blocks.num_freed(sequence.blocks for sequence in leaving)
        return len(party) <= len(self.slots) + len(leaving) and needed + growth <= free

    def has_items(self, party: Party, without: Iterable[Sequence] = ()) -> bool:
        """Whether a decode step's work list has room for the rows of a party beside all who run."""
        taken, wanted = Counter(self.items), Counter[str]()
        for sequence in party:
            wanted.update(sequence.items)
        for sequence in without:
            taken.subtract(sequence.items)
        return all(taken[pool] + pages <= self._work_items for pool, pages in wanted.items())

    def misfit(self, live: LiveRequest) -> InvalidRequest | None:
        """Why it can never run: adapters that cannot be mixed, or more than a work list holds for all its samples."""
        leases = iter(live.leases)
        for mix in live.request.mixes:
            for item in mix:
                alone = next(leases).traits.alone
                if alone and (len(mix) > 1 or item.weight != 1):
                    return InvalidRequest("mix", f"{item.adapter!r} {alone}")
        limit, samples = self._work_items, len(live.sequences) // len(live.items)
        for pool, pages in sum(live.items, Counter[str]()).items():
            if pages * samples > limit:
                problem = f"its adapters have {pages} pages of {pool}, {pages * samples} for n = {samples}"
                return InvalidRequest("mix", f"{problem}; a step takes at most {limit} (configuration work_items)")
        return None

    def take(self, party: Party) -> None:
        """Gives each of a party its slot, its blocks and its items. Samples of a mix share the prompt's full blocks."""
        leaders: dict[int, Sequence] = {}
        for sequence in party:
            leader = leaders.setdefault(sequence.member, sequence)
            shared = self._known_blocks(leader) if sequence is leader else leader.blocks[: self.full_blocks(leader)]
            self.blocks.share(shared)
            own = self.blocks.allocate(self._starting_blocks(sequence) - len(shared))
            if own is None:
                raise RuntimeError("a sequence was started without room for its blocks")
            sequence.blocks = shared + own
            sequence.slot = heapq.heappop(self.slots)
            sequence.leader = None if sequence is leader else leader
            sequence.computed_to(len(shared) * self.blocks.block_size if sequence is leader else 0)
            self.items.update(sequence.items)

    def give_back(self, sequence: Sequence) -> None:
        """Takes slot, blocks and items from a sequence."""
        self.blocks.release(reversed(sequence.blocks))  # of a prefix, the end is forgotten first
        heapq.heappush(self.slots, sequence.row)
        self.items.subtract(sequence.items)
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
        at_first = max(sequence.known, sequence.prompt_len)
        return blocks_for(sequence.reach if self._deterministic else at_first, self.blocks.block_size)
