"""Causal grouped-query attention of a step's tiles over the paged KV cache; decode is a tile of one token."""
