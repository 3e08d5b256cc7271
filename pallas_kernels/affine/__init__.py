"""Outputs scaled and shifted by vectors of adapters, tile by tile."""
