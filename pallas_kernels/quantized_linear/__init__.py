"""y = x W^T for one layer out of several, where W has few bits: the products of a quantised base model."""
