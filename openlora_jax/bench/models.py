"""Sizes of real models, for what needs a model's shapes and not its weights."""

from openlora_jax.model.config import ModelConfig, RopeScaling

SMOLLM2_135M = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position=8192,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    rope_scaling=None,
    tie_word_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131072,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=RopeScaling(
        kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    ),
    tie_word_embeddings=False,
    qkv_bias=False,
    qk_norm=False,
    bos_token_id=128000,
    eos_token_ids=(128001, 128008, 128009),
)
"""Llama-3.1-8B."""
