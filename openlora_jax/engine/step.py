"""The device programs: one function of state and batch, jitted once per number of tiles."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Float32, Int, Int32

from openlora_jax.adapters.pool import PoolArrays
from openlora_jax.engine.sampling import EnsembleBatch, Sampled, SamplerState, SamplingBatch, sample
from openlora_jax.engine.sampling_params import MAX_LOGPROBS
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.forward import AdapterBatch, TileBatch, hidden_states, logits
from openlora_jax.model.parameters import Parameters
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.lora.api import WorkList
from pallas_kernels.registry import Ops


@dataclass(frozen=True, slots=True)
class Program:
    """What is static about the steps of one engine; its methods are jitted by the runner."""

    config: ModelConfig
    ops: Ops

    def decode(
        self,
        parameters: Parameters,
        state: SamplerState,
        kv: KvCache,
        tiles: TileBatch,
        sampling: SamplingBatch,
        ensembles: EnsembleBatch | None,
        pools: PoolArrays,
        work: WorkList,
    ) -> tuple[SamplerState, KvCache, Sampled]:
        """One token of every row: the one last sampled in its slot goes in, the next comes out.

        Without `ensembles`, a program of its own, no row is in one.
        """
        adapters = AdapterBatch(pools, work)
        tokens = state.last_token[sampling.slot][:, None]
        x, kv = hidden_states(self.config, self.ops, parameters, tokens, tiles, adapters, kv)
        scores = logits(self.config, self.ops, parameters, adapters, x[:, 0])
        state, sampled = sample(self.ops, state, scores, sampling, ensembles)
        return state, kv, sampled

    def prefill(
        self,
        parameters: Parameters,
        state: SamplerState,
        kv: KvCache,
        tokens: Int32[Array, "T L"],
        tiles: TileBatch,
        samples: Bool[Array, ""],
        sampling: SamplingBatch,
        pools: PoolArrays,
        work: WorkList,
    ) -> tuple[SamplerState, KvCache, Sampled]:
        """A chunk of prompts; where `samples`, also the token after each tile that is its prompt's last."""
        adapters = AdapterBatch(pools, work)
        x, kv = hidden_states(self.config, self.ops, parameters, tokens, tiles, adapters, kv)
        last = jnp.maximum(tiles.length - 1, 0)

        def choose() -> tuple[SamplerState, Sampled]:
            rows = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
            return sample(self.ops, state, logits(self.config, self.ops, parameters, adapters, rows), sampling)

        nothing = _nothing(tokens.shape[0], self.config.vocab_size)
        state, sampled = self.ops.shortcut(~samples, lambda: (state, nothing), choose)
        return state, kv, sampled

    def score(
        self,
        parameters: Parameters,
        kv: KvCache,
        tokens: Int32[Array, "T L"],
        targets: Int32[Array, "T L"],
        tiles: TileBatch,
        pools: PoolArrays,
        work: WorkList,
    ) -> tuple[KvCache, "Scores"]:
        """A chunk of sequences to score: the head runs on one token of each tile at a time, never on all."""
        adapters = AdapterBatch(pools, work)
        x, kv = hidden_states(self.config, self.ops, parameters, tokens, tiles, adapters, kv)

        def score_column(column: tuple[Float[Array, "T D"], Int[Array, "T"]]) -> Scores:
            rows, target = column
            scores = logits(self.config, self.ops, parameters, adapters, rows)
            chosen = jnp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
            return Scores(
                logprob=chosen - jax.nn.logsumexp(scores, axis=1), greedy=jnp.argmax(scores, axis=1) == target
            )

        by_column = lax.map(score_column, (x.swapaxes(0, 1), targets.T))
        return kv, Scores(logprob=by_column.logprob.T, greedy=by_column.greedy.T)


class Scores(NamedTuple):
    """The log-probability of each position's target, and whether it was the most likely token."""

    logprob: Float32[Array, "*X"]
    greedy: Bool[Array, "*X"]


def _nothing(tiles: int, vocab: int) -> Sampled:
    best = min(MAX_LOGPROBS, vocab)
    return Sampled(
        token=jnp.zeros(tiles, jnp.int32),
        logprob=jnp.zeros(tiles, jnp.float32),
        top_ids=jnp.zeros((tiles, best), jnp.int32),
        top_logprobs=jnp.zeros((tiles, best), jnp.float32),
    )
