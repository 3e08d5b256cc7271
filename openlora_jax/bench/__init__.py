"""Benchmarks: what is measured runs in turn in one process, beside a floor or a peer, and with its spread."""
