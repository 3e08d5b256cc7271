"""Embedding and head of an adapter's own, in the place of the base's for the tiles that it serves."""
