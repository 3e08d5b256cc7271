"""OpenLoRA-JAX: thousands of LoRA adapters on one resident base model, served in one batch."""

__version__ = "0.1.0"
