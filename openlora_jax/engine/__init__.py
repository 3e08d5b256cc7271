"""The engine: requests in, tokens out. Host side (request, scheduler, KV blocks) and device side (batch, step, sampler)."""
