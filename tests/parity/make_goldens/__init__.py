"""Makes the golden files: `python -m tests.parity.make_goldens` (torch, peft and transformers are needed)."""
