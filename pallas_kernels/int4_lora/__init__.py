"""LoRA with rank pages in 4 bits: the contract in `api`, the oracle in `reference`, the implementations beside them."""
