"""Rotary position embedding (Su et al. 2021), half-split as in Hugging Face, with Llama 3 and linear scaling."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from openlora_jax.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Float[np.ndarray, "J"]:
    """Radians per position of each pair of a head, scaled as the config says."""
    plain = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain.astype(np.float32)
    slowed = plain / scaling.factor
    if scaling.kind == "linear":
        return slowed.astype(np.float32)
    # Llama 3: long wavelengths are slowed by the factor, short ones stay, the band between is interpolated.
    turns = scaling.original_max_position * plain / (2 * np.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(smooth, 0, 1)
    return ((1 - blend) * slowed + blend * plain).astype(np.float32)


def rotation(config: ModelConfig, positions: Int[Array, "T L"]) -> tuple[Float[Array, "T L 1 J"], ...]:
    """Cosine and sine of every pair's angle at every position, with an axis for the heads."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)[None, None, :]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x: Float[Array, "T L H E"], turn: tuple[Float[Array, "T L 1 J"], ...]) -> Float[Array, "T L H E"]:
    """Turns each pair (x[i], x[i + E/2]) by its angle."""
    cosine, sine = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
