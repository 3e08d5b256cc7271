"""Adapters: what they are on disk (artifact, store), in host memory (residency, loader) and on the device (pool)."""
