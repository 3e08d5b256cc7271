"""Whether the Triton kernels run for real: compiled where JAX's default device is a GPU, interpreted elsewhere."""

import jax

INTERPRET = jax.default_backend() != "gpu"
