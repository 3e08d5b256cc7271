"""Base models of few bits: the formats, and how numbers are put into them. Products with them: `pallas_kernels`."""
