"""Adapters of several sizes and a pool that holds few of them together, for tests of the residency."""

from collections.abc import Mapping

from openlora_jax.adapters.quarantine import Failure
from openlora_jax.errors import AdapterUnavailable

CAPACITIES = {"q_proj": 6, "v_proj": 4}
COUNTS: Mapping[str, Mapping[str, int]] = {
    "a": {"q_proj": 1, "v_proj": 1},
    "b": {"q_proj": 2},
    "c": {"v_proj": 3},
    "d": {"q_proj": 4, "v_proj": 2},
    "e": {"q_proj": 5},
}
BROKEN = Failure(AdapterUnavailable, "broken")
