"""What a decoder-only base model is: the facts that a checkpoint must supply. Nothing here has a default."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3`); `linear` is the case without the smooth band."""

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The architecture of a base model.

    These hold: `num_heads` is a multiple of `num_kv_heads`, `head_dim` is even, all sizes are positive.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`; unknown or missing keys raise TypeError."""
        scaling = fields["rope_scaling"]
        return cls(
            **{
                **fields,
                "rope_scaling": RopeScaling(**scaling) if scaling else None,
                "eos_token_ids": tuple(fields["eos_token_ids"]),
            }
        )
