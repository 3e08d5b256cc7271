"""The adapters that are registered: synthetic, of several ranks in turn."""

from dataclasses import dataclass

from openlora_jax.adapters.modules import PAGE_RANK
from openlora_jax.config import Dtype
from openlora_jax.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Adapters numbered from 0, the most popular first.

    Attributes:
        count: of them.
        ranks: given to them in turn.
        modules: that each of them targets, on all layers.
        dtype: on disk and in host memory.
    """

    count: int
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: Dtype = "bfloat16"

    def rank(self, index: int) -> int:
        return self.ranks[index % len(self.ranks)]

    def name(self, index: int) -> str:
        return f"{index:05d}-r{self.rank(index)}"

    def residents(self, pages: int) -> int:
        """How many of the first fit so many rank pages of a module together, the same number of every rank.

        Raises:
            InvalidConfig: not even one of every rank.
        """
        turn = sum(-(-rank // PAGE_RANK) for rank in self.ranks)
        if pages < turn:
            raise InvalidConfig("pages", f"{pages} do not hold an adapter of each rank, which take {turn}")
        return min(pages // turn * len(self.ranks), self.count)
