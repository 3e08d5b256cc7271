"""`bench kernels`: each op as a backend runs it, beside XLA's plain forms of it and beside the floor of the device."""
