"""Makes the four demo adapters: synthetic data, training with `peft`, held-out scores. Needs torch and peft."""
