"""A Hugging Face `config.json` as a `ModelConfig`; whatever the model would compute differently is refused by name."""

from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import Family, Layers, ModelConfig, Positive, RopeScaling, Size, TokenId
from openlora_jax.untrusted import read_json_object

FAMILIES: tuple[Family, ...] = get_args(Family)
ROPE_KINDS = ("default", "linear", "llama3")
REMEDY = "use a model without it"
Model = TypeVar("Model", bound=BaseModel)
Number = TypeVar("Number", int, float)


class HfRope(BaseModel):
    """`rope_parameters` of transformers 5, or `rope_scaling` of earlier versions."""

    model_config = ConfigDict(extra="allow", strict=True)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    partial_rotary_factor: Positive = 1.0

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"


class HfConfig(BaseModel):
    """The keys of a config.json that change what a supported family computes; others are of no consequence."""

    model_config = ConfigDict(extra="ignore", strict=True)

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size
    rms_norm_eps: Positive
    rope_theta: Positive | None = None
    rope_scaling: HfRope | None = None
    rope_parameters: HfRope | None = None
    partial_rotary_factor: Positive = 1.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    sliding_window: Size | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None


class HfGenerationConfig(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    eos_token_id: TokenId | list[TokenId] | None = None


def read_hf_config(folder: Path) -> ModelConfig:
    """Reads `config.json`, and the end tokens of `generation_config.json`, which win where both name some.

    Raises:
        BadCheckpoint: missing or malformed, or sizes that contradict each other.
        UnsupportedFeature: another model type, or a feature that the model here does not have.
    """
    path = folder / "config.json"
    fields = read_json_object(path)
    family = _family(path, fields.get("model_type"))
    config = _validated(HfConfig, path, fields)
    _refuse_features(path, family, config)
    model = _model_config(path, family, config, _end_tokens(folder, config))
    _check_sizes(path, model)
    return model


def _family(path: Path, model_type: object) -> Family:
    for family in FAMILIES:
        if model_type == family:
            return family
    raise UnsupportedFeature(
        path, f"model_type {str(model_type)[:60]!r}", f"the supported ones are {', '.join(FAMILIES)}"
    )


def _validated(kind: type[Model], path: Path, fields: dict[str, Any]) -> Model:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise BadCheckpoint(path, *problems) from error


def _refuse_features(path: Path, family: Family, config: HfConfig) -> None:
    refused = {
        "attention_bias": config.attention_bias and family != "qwen2",
        "mlp_bias": config.mlp_bias,
        f"hidden_act {config.hidden_act!r}": config.hidden_act != "silu",
        "partial_rotary_factor": config.partial_rotary_factor != 1,
    }
    for kind in sorted(set(config.layer_types or ()) - {"full_attention", "sliding_attention"}):
        refused[f"layer type {kind[:60]!r}"] = True
    for feature, present in refused.items():
        if present:
            raise UnsupportedFeature(path, feature, REMEDY)


def _model_config(path: Path, family: Family, config: HfConfig, end_tokens: tuple[int, ...]) -> ModelConfig:
    theta, scaling = _rope(path, config)
    return ModelConfig(
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or _default_kv_heads(path, family, config),
        head_dim=config.head_dim or _default_head_dim(path, family, config),
        max_position=_max_position(config),
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        bos_token_id=config.bos_token_id,
        eos_token_ids=end_tokens,
    )


def _default_kv_heads(path: Path, family: Family, config: HfConfig) -> int:
    """The first Llama models did not say: they have as many as query heads."""
    if family != "llama":
        raise BadCheckpoint(path, "num_key_value_heads: Field required")
    return config.num_attention_heads


def _default_head_dim(path: Path, family: Family, config: HfConfig) -> int:
    if family == "qwen3":
        raise BadCheckpoint(path, "head_dim: Field required")
    if config.hidden_size % config.num_attention_heads:
        raise BadCheckpoint(
            path,
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}",
        )
    return config.hidden_size // config.num_attention_heads


def _max_position(config: HfConfig) -> int:
    """Within its first window sliding attention is full attention: the window is the longest exact context."""
    slides = config.sliding_window is not None and config.use_sliding_window is not False
    if not slides or (config.layer_types is not None and "sliding_attention" not in config.layer_types):
        return config.max_position_embeddings
    return min(config.max_position_embeddings, config.sliding_window or 0)


def _rope(path: Path, config: HfConfig) -> tuple[float, RopeScaling | None]:
    if config.rope_parameters and config.rope_scaling and config.rope_parameters.kind != config.rope_scaling.kind:
        raise BadCheckpoint(path, "rope_parameters and rope_scaling contradict each other")
    rope = config.rope_parameters or config.rope_scaling or HfRope()
    if rope.partial_rotary_factor != 1:
        raise UnsupportedFeature(path, "partial_rotary_factor", REMEDY)
    return rope.rope_theta or config.rope_theta or 10000.0, _rope_scaling(path, rope)


def _rope_scaling(path: Path, rope: HfRope) -> RopeScaling | None:
    if rope.kind not in ROPE_KINDS:
        raise UnsupportedFeature(
            path, f"rope type {rope.kind[:60]!r}", f"the supported ones are {', '.join(ROPE_KINDS)}"
        )
    for field in rope.model_extra or ():
        raise UnsupportedFeature(path, f"{field[:60]!r} of rope type {rope.kind}", REMEDY)
    if rope.kind == "default":
        return None
    factor = _required(path, rope.kind, "factor", rope.factor)
    if rope.kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    low = _required(path, rope.kind, "low_freq_factor", rope.low_freq_factor)
    high = _required(path, rope.kind, "high_freq_factor", rope.high_freq_factor)
    original = rope.original_max_position_embeddings
    if low >= high:
        raise BadCheckpoint(path, f"rope low_freq_factor {low} must be below high_freq_factor {high}")
    return RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_required(path, rope.kind, "original_max_position_embeddings", original),
    )


def _required(path: Path, kind: str, field: str, value: Number | None) -> Number:
    if value is None:
        raise BadCheckpoint(path, f"rope type {kind} needs {field}")
    return value


def _end_tokens(folder: Path, config: HfConfig) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    if path.exists():
        generation = _validated(HfGenerationConfig, path, read_json_object(path))
        if generation.eos_token_id is not None:
            return _tuple(generation.eos_token_id)
    return _tuple(config.eos_token_id)


def _tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(dict.fromkeys(ids))


def _check_sizes(path: Path, config: ModelConfig) -> None:
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append(
            f"{config.num_heads} attention heads are not a multiple of {config.num_kv_heads} key/value heads"
        )
    if config.head_dim % 2:
        problems.append(f"head_dim {config.head_dim} is odd")
    named = [config.bos_token_id] if config.bos_token_id is not None else []
    for token in [*named, *config.eos_token_ids]:
        if token >= config.vocab_size:
            problems.append(f"token id {token} is outside the vocabulary of {config.vocab_size}")
    if problems:
        raise BadCheckpoint(path, *problems)
