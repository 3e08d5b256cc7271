"""Kernels and their references: arrays in, arrays out; no models, no adapters, no state.

One op, one folder, fixed file names: `reference.py` (plain jnp, the oracle), `xla.py` (what runs on a CPU),
`pallas_triton.py` and `mosaic_gpu.py` (on NVIDIA GPUs), `config.py` and `shapes.py` (their sizes and checks).

The axis alphabet of the whole project:

    T tiles of a step        L tokens of a tile       D model width        I, O  width in, width out
    Y layers                 P rank pages of a pool   R ranks of a page (16)
    N work items of a step   B KV blocks              S tokens of a block  C blocks of a table
    H query heads            K KV heads               E head width         V vocabulary
    F where tiles begin and end in a list (T + 1)     J pairs of a head (E / 2)
"""
