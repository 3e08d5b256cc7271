"""The engine: requests in, tokens out. Host side (scheduler, KV blocks, streams), device side (step, sampling)."""
