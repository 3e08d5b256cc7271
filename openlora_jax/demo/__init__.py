"""The demo: four adapters for SmolLM2-135M-Instruct, the prompts that show them, and how they were trained."""
