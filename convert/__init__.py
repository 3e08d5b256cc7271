"""From the formats of others to ours: base models and LoRA adapters to orbax."""
