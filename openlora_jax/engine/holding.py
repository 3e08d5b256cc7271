"""Whether an idle engine starts what is ready, or waits for an adapter that is about to come.

What starts makes a chunk, and whoever becomes ready meanwhile waits for its end; yet a chunk of one short prompt takes
about as long as one of several. So a wait pays if those who are ready lose less by it, all of them together, than who
comes would lose. Nobody waits for a lower class. In an engine that is not idle there is nothing to decide: loads that
end during a step start together after it.
"""

from collections.abc import Callable, Collection

from openlora_jax.engine.rates import Rates
from openlora_jax.engine.sequence import LiveRequest

LEAST = 0.001
"""Seconds that the end of a load is away at least: nobody knows it better."""


def hold(waiting: Collection[LiveRequest], level: Callable[[LiveRequest], int], rates: Rates, now: float) -> float:
    """Seconds for which nothing should start yet, as an adapter will come until then; 0 to start now.

    Args:
        waiting: all requests of an engine in which none runs.
        level: the class of one, the higher the more urgent.
        rates: what a chunk and a load take.
        now: on the clock of the requests' times.
    """
    ready = [level(live) for live in waiting if live.ready is not None]
    loading = [live.submitted for live in waiting if live.ready is None and level(live) >= max(ready, default=0)]
    if not loading or not ready:
        return 0.0
    soonest = min(_left(now - submitted, rates.idle_load) for submitted in loading)
    return soonest if (len(ready) + 1) * soonest < rates.chunk else 0.0


def _left(passed: float, usual: float) -> float:
    """Seconds that a load will still take; one that takes longer than usual will take as much longer again."""
    return max(LEAST, abs(usual - passed))
