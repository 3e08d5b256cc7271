"""SGMV over rank pages: each tile's own low-rank products, added onto its base output."""
