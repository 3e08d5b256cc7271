"""Whether the GPU's kernels run for real: compiled where JAX's default device is a GPU, interpreted elsewhere."""

import jax

INTERPRET = jax.default_backend() != "gpu"


def _runs_mosaic() -> bool:
    if INTERPRET:
        return bool(jax.__version_info__ >= (0, 11))
    return float(jax.devices()[0].compute_capability) >= 9


MOSAIC = _runs_mosaic()
"""Whether kernels by Mosaic run at all: JAX has an interpreter for all to use from 0.11 on."""
