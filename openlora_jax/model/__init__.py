"""The base model: what it is (config), what it is made of (weights), and how it computes (transformer)."""
