"""Deployment settings shipped with the package, found by name: `--config cpu`."""
