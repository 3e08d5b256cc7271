"""The device side of the engine: turns plans into arrays, dispatches programs, keeps the device's state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Int

from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.config import EngineConfig
from openlora_jax.engine.kv_blocks import SCRATCH_BLOCK
from openlora_jax.engine.plan import RowOutput, StepPlan, StepResult, Tile, TileScores
from openlora_jax.engine.request import TokenLogprobs
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling import (
    EnsembleBatch,
    Sampled,
    SamplerState,
    SamplingBatch,
    prepare_slot,
    slot_rows,
)
from openlora_jax.engine.sampling_params import MAX_STOPS, SamplingParams
from openlora_jax.engine.step import Program, Scores
from openlora_jax.engine.work import check_ids, work_list
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.forward import TileBatch
from openlora_jax.model.parameters import Parameters
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.registry import Ops
from pallas_kernels.shortcut import declined


class DeviceRunner:
    """One model, its caches and its programs on one device. Used by one thread; calls take effect in call order.

    Attributes:
        parameters: the model's weights.
        pool: the adapters' pages.
    """

    def __init__(
        self, engine: EngineConfig, model: ModelConfig, ops: Ops, parameters: Parameters, pool: AdapterPool
    ) -> None:
        """Allocates the caches; nothing grows afterwards."""
        self.pool = pool
        self._pool_pages = {name: parts[0].shape[1] for name, parts in pool.arrays.items()}
        self._engine = engine
        self._model = model
        self.parameters = parameters
        self._max_forbidden = MAX_STOPS + len(model.eos_token_ids)
        self._table_width = -(-engine.max_model_len // engine.kv_block)
        self._state, self._kv = self._empty()
        # Without branches every step would pay for them. `deterministic` has one program, whoever is in the batch.
        self._ensembles_apart = ops.shortcut is declined and not engine.deterministic
        program = Program(model, ops)
        self._decode = jax.jit(program.decode, donate_argnames=("state", "kv"))
        self._prefill = jax.jit(program.prefill, donate_argnames=("state", "kv"))
        self._score = jax.jit(program.score, donate_argnames="kv")

    def _empty(self) -> tuple[SamplerState, KvCache]:
        engine, model = self._engine, self._model
        kv = KvCache.create(
            layers=model.num_layers,
            blocks=engine.kv_blocks,
            heads=model.num_kv_heads,
            block_tokens=engine.kv_block,
            width=model.head_dim,
            dtype=engine.kv_dtype or engine.dtype,
        )
        # Committed to the device, as what the programs return is: a program is compiled again for arrays that are not.
        state = SamplerState.create(engine.max_rows + 1, model.vocab_size)
        state, kv = jax.device_put((state, kv), jax.devices()[0])
        return state, kv

    def reset(self) -> None:
        """Allocates caches and pool anew; a step or page write that failed has consumed them, or left them unusable."""
        del self._state, self._kv  # first, for there may be no room for both
        self.pool.reset()
        self._state, self._kv = self._empty()

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Rows that a decode program exists for; one, where results may not depend on the number of rows."""
        return self._engine.row_buckets[-1:] if self._engine.deterministic else self._engine.row_buckets

    @property
    def tile_buckets(self) -> tuple[int, ...]:
        """The same for the tiles of a chunk."""
        buckets = self._engine.chunk_buckets[-1:] if self._engine.deterministic else self._engine.chunk_buckets
        return tuple(chunk // self._engine.prefill_tile for chunk in buckets)

    def compile(self, progress: Callable[[str, int, int], None] = lambda name, done, total: None) -> None:
        """Compiles every program by running it on padding, so that no request waits for one.

        Args:
            progress: called before each program and at the end, with its name, how many are done, and of how many.
        """
        tile = self._engine.prefill_tile
        programs = [
            *((f"decode[{rows}]", StepPlan("decode", ()), rows, False) for rows in self.row_buckets),
            *((f"prefill[{tiles * tile}]", StepPlan("prefill", ()), tiles, False) for tiles in self.tile_buckets),
            (f"score[{self.tile_buckets[-1] * tile}]", StepPlan("score", ()), self.tile_buckets[-1], False),
        ]
        if self._ensembles_apart:
            rows = self.row_buckets[-1]
            programs.insert(len(self.row_buckets), (f"decode[{rows}] ensembles", StepPlan("decode", ()), rows, True))
        for done, (name, plan, rows, joined) in enumerate(programs):
            progress(name, done, len(programs) + 1)
            self._dispatch(plan, rows, joined)
            jax.block_until_ready(self._kv)
        progress("page writes", len(programs), len(programs) + 1)
        self.pool.compile()
        self.copy_block(SCRATCH_BLOCK, SCRATCH_BLOCK)
        self.prepare_slot(self._engine.max_rows, (), (), SamplingParams(presence_penalty=1.0))
        jax.block_until_ready((self._kv, self._state))
        progress("ready", len(programs) + 1, len(programs) + 1)

    def prepare_slot(
        self,
        slot: int,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: SamplingParams,
        feed_last: bool = False,
    ) -> None:
        """Gives `slot` to a new sequence; costs nothing unless its last token, penalties or bias are ever read."""
        if feed_last or RowSampling.of(params, seed=0).uses_slot:
            rows = slot_rows(prompt_ids, output_ids, params.logit_bias, self._model.vocab_size)
            last = np.int32((output_ids or prompt_ids or (0,))[-1])
            self._state = prepare_slot(self._state, np.int32(slot), last, *rows)

    def copy_block(self, source: int, target: int) -> None:
        """Copies one KV block over all layers."""
        self._kv = _copy_block(self._kv, np.int32(source), np.int32(target))

    def run(self, plan: StepPlan) -> StepResult:
        """Dispatches one step and returns at once.

        Raises:
            ValueError: more tiles than any program has, more work items than a list holds, or a page, block or slot
                that does not exist.
        """
        buckets = self.row_buckets if plan.kind == "decode" else self.tile_buckets
        joined = self._ensembles_apart and any(tile.ensemble for tile in plan.tiles)
        if plan.kind == "score" or joined:
            buckets = buckets[-1:]
        rows = next((bucket for bucket in buckets if bucket >= len(plan.tiles)), None)
        if rows is None:
            raise ValueError(f"{len(plan.tiles)} tiles in one {plan.kind} step, where the largest has {buckets[-1]}")
        return self._dispatch(plan, rows, joined)

    def _dispatch(self, plan: StepPlan, rows: int, joined: bool) -> StepResult:
        """`plan` padded to `rows` tiles; `joined` takes the program for ensembles, where they have one of their own."""
        tiles = self._tile_batch(plan.tiles, rows)
        work = work_list(plan.tiles, rows, self._engine.work_items, self._pool_pages)
        if plan.kind == "score":
            tokens = self._columns(plan.tiles, [tile.tokens for tile in plan.tiles], rows)
            targets = self._columns(plan.tiles, [tile.targets for tile in plan.tiles], rows)
            self._kv, scores = self._score(self.parameters, self._kv, tokens, targets, tiles, self.pool.arrays, work)
            return ScoredStep(plan.tiles, tuple(map(self._first, plan.tiles)), scores)
        sampling = self._sampling_batch(plan.tiles, rows)
        if plan.kind == "decode":
            ensembles = EnsembleBatch.pack(plan.tiles, rows) if joined or not self._ensembles_apart else None
            self._state, self._kv, sampled = self._decode(
                self.parameters, self._state, self._kv, tiles, sampling, ensembles, self.pool.arrays, work
            )
        else:
            tokens = self._columns(plan.tiles, [tile.tokens for tile in plan.tiles], rows)
            samples = np.bool_(any(tile.sampling for tile in plan.tiles))
            self._state, self._kv, sampled = self._prefill(
                self.parameters, self._state, self._kv, tokens, tiles, samples, sampling, self.pool.arrays, work
            )
        return SampledStep(plan.tiles, sampled)

    def _tile_batch(self, tiles: Sequence[Tile], rows: int) -> TileBatch:
        padding = [0] * (rows - len(tiles))
        check_ids(
            "KV block", [block for tile in tiles for block in tile.blocks] or [SCRATCH_BLOCK], self._engine.kv_blocks
        )
        first = np.array([*map(self._first, tiles), *padding], np.int32)
        return TileBatch(
            start=np.array([*(tile.start for tile in tiles), *padding], np.int32) - first,
            first=first,
            length=np.array([*map(_length, tiles), *padding], np.int32) + first,
            table=_padded([tile.blocks for tile in tiles], rows, self._table_width, SCRATCH_BLOCK),
        )

    def _first(self, tile: Tile) -> int:
        """The column of its first token; the first column is a multiple of the tile's size, see `kv_write`."""
        return 0 if tile.tokens is None else tile.start % self._engine.prefill_tile

    def _columns(
        self, tiles: Sequence[Tile], values: Sequence[Sequence[int] | None], rows: int
    ) -> Int[np.ndarray, "T W"]:
        """A value for each token, where the token is."""
        placed = [[0] * self._first(tile) + list(each or ()) for tile, each in zip(tiles, values, strict=True)]
        return _padded(placed, rows, self._engine.prefill_tile)

    def _sampling_batch(self, tiles: Sequence[Tile], rows: int) -> SamplingBatch:
        padding = rows - len(tiles)
        check_ids("slot", [tile.slot for tile in tiles] or [0], self._engine.max_rows)
        return SamplingBatch.pack(
            [tile.sampling for tile in tiles] + [None] * padding,
            [tile.slot for tile in tiles] + [0] * padding,
            [tile.start + _length(tile) for tile in tiles] + [0] * padding,
            scratch=self._engine.max_rows,
            max_forbidden=self._max_forbidden,
        )


@dataclass(frozen=True, slots=True)
class SampledStep:
    """A dispatched decode or prefill step."""

    tiles: tuple[Tile, ...]
    sampled: Sampled

    def read(self) -> Sequence[RowOutput]:
        """Waits for the step; one entry a tile."""
        wanted = [tile.sampling.logprobs or 0 if tile.sampling else 0 for tile in self.tiles]
        tokens, logprobs = np.asarray(self.sampled.token).tolist(), np.asarray(self.sampled.logprob).tolist()
        ids = np.asarray(self.sampled.top_ids).tolist() if any(wanted) else None
        values = np.asarray(self.sampled.top_logprobs).tolist() if any(wanted) else None

        def output(row: int, tile: Tile) -> TokenLogprobs | None:
            if tile.sampling is None:
                return None
            top = dict(zip(ids[row][: wanted[row]], values[row], strict=False)) if ids and values else {}
            return TokenLogprobs(tokens[row], logprobs[row], top)

        return [output(row, tile) for row, tile in enumerate(self.tiles)]


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """A dispatched score step; `first` is the column of each tile's first token."""

    tiles: tuple[Tile, ...]
    first: tuple[int, ...]
    scores: Scores

    def read(self) -> Sequence[RowOutput]:
        """Waits for the step; one entry a tile."""
        logprobs, greedy = np.asarray(self.scores.logprob), np.asarray(self.scores.greedy)

        def scored(row: int, begin: int, count: int) -> TileScores:
            columns = slice(begin, begin + count)
            return TileScores(tuple(logprobs[row, columns].tolist()), tuple(greedy[row, columns].tolist()))

        return [
            scored(row, self.first[row], len(tile.targets)) if tile.targets else None
            for row, tile in enumerate(self.tiles)
        ]


def _length(tile: Tile) -> int:
    return 1 if tile.tokens is None else len(tile.tokens)


def _padded(lists: Sequence[Sequence[int]], rows: int, width: int, filler: int = 0) -> Int[np.ndarray, "T W"]:
    array = np.full((rows, width), filler, np.int32)
    for row, values in zip(array, lists, strict=False):
        row[: len(values)] = values
    return array


@partial(jax.jit, donate_argnames="kv")
def _copy_block(kv: KvCache, source: Int[jax.Array, ""], target: Int[jax.Array, ""]) -> KvCache:
    copied: KvCache = jax.tree.map(lambda blocks: blocks.at[:, target].set(blocks[:, source]), kv)
    return copied
