"""Training a LoRA adapter on the frozen base: data, the adapter, its loss, the loop, and PEFT's files of the result."""
