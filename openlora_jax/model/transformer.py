"""The decoder as Flax modules: what each layer is made of. How a step runs through it is in `forward.py`."""

from flax import nnx

from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weight import Weight
from openlora_jax.quantization.format import WIDE, Quantization


class Linear(nnx.Module):
    """One or several joined products with a common input: `[out, in]`, as Hugging Face stores them."""

    def __init__(
        self,
        d_in: int,
        sources: tuple[tuple[str, int], ...],
        quantization: Quantization | None,
        *,
        bias: bool = False,
    ) -> None:
        d_out = sum(rows for _, rows in sources)
        self.weight = Weight((d_out, d_in), ("out", "in"), _suffixed(sources, "weight"), quantization).parameter()
        self.bias = Weight((d_out,), ("out",), _suffixed(sources, "bias")).parameter() if bias else None


class Norm(nnx.Module):
    """The scale of an RMS norm."""

    def __init__(self, width: int, source: str) -> None:
        self.weight = Weight((width,), ("norm",), ((f"{source}.weight", width),)).parameter()


class Embedding(nnx.Module):
    def __init__(self, config: ModelConfig) -> None:
        sources = (("model.embed_tokens.weight", config.vocab_size),)
        shape = (config.vocab_size, config.hidden_size)
        self.weight = Weight(shape, ("vocab", "embed"), sources, WIDE if config.quantization else None).parameter()


class DecoderLayer(nnx.Module):
    """Grouped-query attention and a gated MLP, each behind an RMS norm. The head norms exist in Qwen3 alone."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        source = f"model.layers.{index}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.q_size, config.kv_size
        joined = ((f"{attention}.q_proj", q), (f"{attention}.k_proj", kv), (f"{attention}.v_proj", kv))
        self.attention_norm = Norm(hidden, f"{source}.input_layernorm")
        self.qkv = Linear(hidden, joined, config.quantization, bias=config.qkv_bias)
        self.q_norm = Norm(config.head_dim, f"{attention}.q_norm") if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, f"{attention}.k_norm") if config.qk_norm else None
        self.o = Linear(q, ((f"{attention}.o_proj", hidden),), config.quantization)
        self.mlp_norm = Norm(hidden, f"{source}.post_attention_layernorm")
        gate_up = ((f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner))
        self.gate_up = Linear(hidden, gate_up, config.quantization)
        self.down = Linear(inner, ((f"{mlp}.down_proj", hidden),), config.quantization)


class Transformer(nnx.Module):
    """The whole decoder. `head` is None where the embedding serves as the head."""

    def __init__(self, config: ModelConfig) -> None:
        self.embed = Embedding(config)
        self.layers = nnx.List([DecoderLayer(config, index) for index in range(config.num_layers)])
        self.norm = Norm(config.hidden_size, "model.norm")
        head = (("lm_head", config.vocab_size),)
        wide = WIDE if config.quantization else None
        self.head = None if config.tie_word_embeddings else Linear(config.hidden_size, head, wide)


def _suffixed(sources: tuple[tuple[str, int], ...], suffix: str) -> tuple[tuple[str, int], ...]:
    return tuple((f"{name}.{suffix}", rows) for name, rows in sources)
