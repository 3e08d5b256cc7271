"""y = x W^T for one layer out of several: the base model's products."""
