"""What a decoder-only base model is: the facts that a checkpoint must supply, and how its matrices are stored."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from openlora_jax.quantization.format import Quantization

Size = Annotated[int, Field(ge=1, le=1 << 24)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]

CHECKED = ConfigDict(strict=True, extra="forbid")
"""How the dataclasses of a manifest are read: every field of its own type, none unknown."""

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3`); `linear` is the case without the smooth band."""

    __pydantic_config__ = CHECKED

    kind: Literal["llama3", "linear"]
    factor: Positive
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 1.0
    original_max_position: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The architecture of a base model. What it computes has no default.

    These hold: `num_heads` is a multiple of `num_kv_heads`, `head_dim` is even, all sizes are positive.
    """

    __pydantic_config__ = CHECKED

    family: Family
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_layers: Layers
    num_heads: Size
    num_kv_heads: Size
    head_dim: Size
    max_position: Size
    rms_norm_eps: Positive
    rope_theta: Positive
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    bos_token_id: TokenId | None
    eos_token_ids: tuple[TokenId, ...]
    quantization: Quantization | None = None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """What the digest of a base covers; of one that is not quantised, the architecture alone."""
        return {name: value for name, value in asdict(self).items() if name != "quantization" or value is not None}
