"""Arrays as a step takes them."""

import numpy as np
from jax import Array

AnyArray = Array | np.ndarray
"""On the device, or still on the host."""
