"""Where top-k and top-p cut a row of weights, without a sort."""
