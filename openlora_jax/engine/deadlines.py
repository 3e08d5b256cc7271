"""Deadlines for the first token and for each token: who cannot keep one is refused at once, not after the wait.

The estimates are those of `Rates`. On an idle engine nobody is refused, so that there is always something to measure.
"""

from dataclasses import dataclass

from openlora_jax.engine.rates import Rates
from openlora_jax.engine.sequence import LiveRequest
from openlora_jax.errors import CannotMeetDeadline, DeadlineExceeded, OpenLoraError


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What the deadlines of requests come to, by measured rates.

    Attributes:
        rates: the measurements.
        prefill_chunk: tokens of one chunk.
    """

    rates: Rates
    prefill_chunk: int

    def refusal(self, live: LiveRequest, rows: int, ahead: int) -> CannotMeetDeadline | None:
        """Why a request that has just arrived is not worth beginning.

        Args:
            live: the request.
            rows: sequences that run now.
            ahead: requests that must end before this one can start.
        """
        params = live.request.scheduling
        if not rows:
            return None
        gap = self.rates.step(rows + len(live.sequences))
        if params.tpot_deadline is not None and gap > params.tpot_deadline:
            return CannotMeetDeadline("tpot_deadline", params.tpot_deadline, gap)
        load = 0.0 if all(lease.ready for lease in live.leases) else self.rates.load
        first = load + ahead * self.rates.turn + self._prefill(live, rows)
        if params.ttft_deadline is not None and first > params.ttft_deadline:
            return CannotMeetDeadline("ttft_deadline", params.ttft_deadline, first)
        return None

    def missed(self, live: LiveRequest, now: float, rows: int) -> OpenLoraError | None:
        """Why a request is ended now: its first token was due, or cannot be there by then."""
        limit = live.request.scheduling.ttft_deadline
        if limit is None or live.answered is not None:
            return None
        if now >= live.submitted + limit:
            return DeadlineExceeded(live.phase)
        least = now - live.submitted + self._prefill(live, rows)
        if live.started is None and rows and least > limit:
            return CannotMeetDeadline("ttft_deadline", limit, least)
        return None

    def _prefill(self, live: LiveRequest, rows: int) -> float:
        chunks = -(-live.sequences[0].known * len(live.request.mixes) // self.prefill_chunk)
        return chunks * (self.rates.chunk + self.rates.step(rows))
