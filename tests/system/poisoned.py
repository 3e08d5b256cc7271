"""An engine with NaN in all of its memory that belongs to nobody, before every step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax import LLM
from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.engine.plan import StepPlan, StepResult
from openlora_jax.engine.runner import DeviceRunner
from tests.openlora_jax.adapters.poison import poison_free


class Poisoned:
    """Poisons an engine's free memory before every step that it dispatches; everything here is on its own thread.

    Attributes:
        steps: that ran on poisoned memory.
    """

    def __init__(self, llm: LLM) -> None:
        self.steps = 0
        self._poisoned: AdapterPages | None = None
        self._runner = llm.runner
        self._blocks = llm.engine._scheduler.blocks
        self._residency = llm.adapters._residency

    def run(self, plan: StepPlan) -> StepResult:
        free = np.zeros(self._blocks.usable + 1, np.bool_)
        free[self._blocks._free] = True
        self._runner._kv = jax.tree.map(partial(_poison_blocks, free), self._runner._kv)
        self._poisoned = poison_free(self._runner.pool, self._owned(), self._poisoned)
        self.steps += 1
        return DeviceRunner.run(self._runner, plan)

    def _owned(self) -> list[AdapterPages]:
        return [residence.pages for residence in list(self._residency.all()) if residence.pages]


def _poison_blocks(free: np.ndarray, kv: jax.Array) -> jax.Array:
    """NaN in the free blocks of an array whose second axis they are."""
    return jnp.where(free.reshape(1, -1, *[1] * (kv.ndim - 2)), jnp.float32(math.nan), kv)


@contextmanager
def poisoned(llm: LLM, patch: pytest.MonkeyPatch) -> Iterator[Poisoned]:
    poison = Poisoned(llm)
    with patch.context() as context:
        context.setattr(llm.runner, "run", poison.run)
        yield poison
