"""What the engine asks of the device and what comes back: plain data that the runner turns into arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.engine.request import TokenLogprobs
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of tokens of one sequence: up to `prefill_tile` in a chunk, exactly one in a decode step.

    A sampled token's position, the last part of its key, is the one after the tile: start + its number of tokens.

    Attributes:
        slot: the sequence's row in the runner's per-sequence state, 0..max_rows-1; no other sequence has it.
        start: position of the first token.
        tokens: 1..prefill_tile ids, in a chunk none beyond the next multiple of `prefill_tile`; None in a decode step:
            the token last sampled in `slot`, which is on the device.
        blocks: the sequence's KV blocks so far, never block 0; position p lies in `blocks[p // kv_block]`.
        pages: pages and weight of each member of the mix that acts on these tokens; () is the base model.
        sampling: how to sample after the last token; None does not sample. Set in every decode tile, in no score tile.
        targets: score chunks: the token that follows each of `tokens`; None where nothing of this tile is scored.
    """

    slot: int
    start: int
    tokens: tuple[int, ...] | None
    blocks: Sequence[int]
    pages: tuple[tuple[AdapterPages, float], ...] = ()
    sampling: RowSampling | None = None
    targets: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One device dispatch. Per pool, the items (pages of all tiles together) never exceed `work_items`.

    A sequence may have several tiles in one chunk, in ascending order; a tile sees the keys of the tiles before it.
    A slot that samples in a chunk is decoded right after it, from the token on the device.
    """

    kind: Literal["prefill", "decode", "score"]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class TileScores:
    """Per token of a scored tile: the log-probability of its target and whether that was the argmax."""

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]


RowOutput = TokenLogprobs | TileScores | None
"""One tile's result: the sampled token, the scores of `targets`, or None where neither was asked for."""


@runtime_checkable
class StepResult(Protocol):
    """A dispatched step, perhaps still running."""

    def read(self) -> Sequence[RowOutput]:
        """Waits for the step. One entry a tile, in the plan's order; `top` holds `params.logprobs` alternatives."""


@runtime_checkable
class Runner(Protocol):
    """The device side. Calls take effect in call order; none of them waits. Engine thread only."""

    def prepare_slot(
        self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int], params: SamplingParams
    ) -> None:
        """Gives `slot` to a new sequence: penalty counts, bias; `output_ids` are what it had before a preemption."""

    def copy_block(self, source: int, target: int) -> None:
        """Copies one KV block over all layers: a fork's own copy of the prompt's last block."""

    def run(self, plan: StepPlan) -> StepResult:
        """Dispatches one step. An exception here, or in `read`, says that the step's results are lost."""

    def reset(self) -> None:
        """Makes slots, KV blocks and pages anew, all empty: a failed step or page write may have lost them."""
