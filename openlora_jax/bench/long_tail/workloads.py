"""What the long-tail benchmarks ask for: plain data, so that the command line has its defaults from here."""

from dataclasses import dataclass

from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.bench.long_tail.traffic import DECILES
from openlora_jax.config import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Coldstart:
    """Of `bench coldstart`.

    Attributes:
        pages: of each module on the device, those of the pinned adapters included, which take half of them.
        ranks: of the adapters, in turn.
        prompt, new: tokens of each request that is measured.
        alone: requests of each state in the idle engine, a round.
        bursts: of each state, a round, each of requests for `together` adapters at once, of `burst_prompt` tokens.
        beside: of each state beside the streams, a round.
        rate: of their arrivals, a second.
        streams: that run beside them, of `stream_prompt` tokens.
        stream_new: tokens that a stream makes at most; it is cut when the last answer is there.
        rounds: of all that.
        seed: of arrivals and prompts.
    """

    pages: int = 32
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    prompt: int = 256
    new: int = 8
    alone: int = 8
    bursts: int = 4
    together: int = 4
    burst_prompt: int = 16
    beside: int = 16
    rate: float = 0.7
    streams: int = 8
    stream_prompt: int = 16
    stream_new: int = 1000
    rounds: int = 6
    seed: int = 0

    @property
    def fleet(self) -> Fleet:
        """The pinned adapters, and a cold one for each request of a setting."""
        pinned = Fleet(count=self.pages, ranks=self.ranks).residents(self.pages // 2)
        return Fleet(count=pinned + max(self.alone, self.beside, self.together), ranks=self.ranks)

    @property
    def pinned(self) -> int:
        return self.fleet.residents(self.pages // 2)

    @property
    def settings(self) -> EngineConfig:
        """Every prompt is computed, adapters stay where they were put, and nobody waits for a row or a KV block.

        As many requests as there are streams run beside them.
        """
        block, rows = EngineConfig().kv_block, max(2 * self.streams, 4)
        lengths = (self.prompt + self.new, self.stream_prompt + self.stream_new)
        return EngineConfig(
            max_rows=rows,
            prefix_cache=False,
            prefetch=False,  # what was taken away would come back
            max_model_len=max(lengths),
            kv_blocks=1 + rows * sum(-(-length // block) + 1 for length in lengths),
            pool_pages=1 + self.pages,
            wide_pool_pages=1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Oversubscribe:
    """Of `bench oversubscribe`.

    Attributes:
        registered: adapters.
        pages: of each module on the device.
        host_bytes: of adapters in host memory, so that the rest has to come from disk.
        ranks: of the adapters, in turn.
        zipf: exponent of their popularity.
        load: share of the measured capacity that is offered.
        requests: of an arm, over all rounds, rounded up to be the same number in each.
        rounds: each runs both arms.
        prompt, new: tokens of each request.
        rows: sequences decoded together, at most; and clients of the closed loop.
        closed: requests of one measurement of capacity.
        closed_rounds: each measures it with all registered, and with the resident ones alone.
        seed: of arrivals and prompts.
    """

    registered: int = 2000
    pages: int = 32
    host_bytes: int = 256 * 1024**2
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    zipf: float = 1.0
    load: float = 0.7
    requests: int = 1000
    rounds: int = 4
    prompt: int = 64
    new: int = 16
    rows: int = 16
    closed: int = 64
    closed_rounds: int = 4
    seed: int = 0

    @property
    def round_requests(self) -> int:
        """Of an arm in a round; a whole number of deciles at least."""
        return max(-(-self.requests // self.rounds), DECILES)

    @property
    def fleet(self) -> Fleet:
        return Fleet(count=self.registered, ranks=self.ranks)

    @property
    def resident(self) -> Fleet:
        """The most popular adapters, those of the control, alone."""
        return Fleet(count=self.fleet.residents(self.pages), ranks=self.ranks)

    @property
    def settings(self) -> EngineConfig:
        """Every prompt is computed, every request may wait, and KV blocks are enough for every row."""
        length = self.prompt + self.new
        return EngineConfig(
            max_rows=self.rows,
            prefix_cache=False,
            max_model_len=length,
            kv_blocks=1 + self.rows * (-(-length // EngineConfig().kv_block) + 1),
            host_cache_bytes=self.host_bytes,
            pool_pages=1 + self.pages,
            wide_pool_pages=1,
            max_queue=max(EngineConfig().max_queue, self.requests),
        )
