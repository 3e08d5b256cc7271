"""The sampling parameters of a step's rows, as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from openlora_jax.arrays import AnyArray
from openlora_jax.engine.row_sampling import RowSampling

_PADDING = RowSampling()


class SamplingBatch(NamedTuple):
    """One entry per row; on the host as packed, on the device inside a step.

    Attributes:
        slot: the row's slot in the sampler state; padding rows name the scratch slot.
        position: of the token to be sampled in its sequence, prompt included.
        reports: whether the row's log-probabilities are asked for.
        forbidden: ids that get no probability; entries at or above the vocabulary size are padding.
        others: as in RowSampling.
    """

    slot: Int32[AnyArray, "T"]
    position: Int32[AnyArray, "T"]
    seed: Int32[AnyArray, "T"]
    sample: Int32[AnyArray, "T"]
    temperature: Float32[AnyArray, "T"]
    top_k: Int32[AnyArray, "T"]
    top_p: Float32[AnyArray, "T"]
    min_p: Float32[AnyArray, "T"]
    repetition_penalty: Float32[AnyArray, "T"]
    presence_penalty: Float32[AnyArray, "T"]
    frequency_penalty: Float32[AnyArray, "T"]
    biased: Bool[AnyArray, "T"]
    reports: Bool[AnyArray, "T"]
    forbidden: Int32[AnyArray, "T E"]

    @classmethod
    def pack(
        cls,
        rows: Sequence[RowSampling | None],
        slots: Sequence[int],
        positions: Sequence[int],
        *,
        scratch: int,
        max_forbidden: int,
    ) -> "SamplingBatch":
        """Arrays on the host, one entry per row.

        Args:
            rows: None for a padding row, whose slot and position are not looked at.
            slots: of the rows' sequences in the sampler state.
            positions: of the tokens to be sampled.
            scratch: the slot that padding rows write to.
            max_forbidden: E; no row forbids more ids (the most stop ids and end tokens that a request can have).
        """

        def column(name: str, dtype: type[np.generic]) -> np.ndarray:
            return np.array([getattr(row or _PADDING, name) for row in rows], dtype)

        forbidden = np.full((len(rows), max_forbidden), np.iinfo(np.int32).max, np.int32)
        for entry, row in zip(forbidden, rows, strict=True):
            if row is not None and row.forbidden:
                entry[: len(row.forbidden)] = row.forbidden
        return cls(
            slot=np.array([scratch if row is None else slot for row, slot in zip(rows, slots, strict=True)], np.int32),
            position=np.array(positions, np.int32),
            seed=column("seed", np.int32),
            sample=column("sample", np.int32),
            temperature=column("temperature", np.float32),
            top_k=column("top_k", np.int32),
            top_p=column("top_p", np.float32),
            min_p=column("min_p", np.float32),
            repetition_penalty=column("repetition_penalty", np.float32),
            presence_penalty=column("presence_penalty", np.float32),
            frequency_penalty=column("frequency_penalty", np.float32),
            biased=column("biased", np.bool_),
            reports=np.array([row is not None and row.logprobs is not None for row in rows]),
            forbidden=forbidden,
        )
