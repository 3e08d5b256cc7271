"""Kernels and their references: arrays in, arrays out; no models, no adapters, no state.

One op, one folder, fixed file names: `reference.py` (plain jnp, the oracle), `xla.py` (what runs on a CPU),
`pallas_triton.py` and `mosaic_gpu.py` (on NVIDIA GPUs), `config.py` and `shapes.py` (their sizes and checks).

The axis alphabet of the whole project:

    T  tiles of a step                      F  where tiles begin and end in a list (T + 1)
    L  tokens of a tile                     X  rows, all tiles' tokens in one axis; *X in any number of axes
    D  model width                          E  head width
    I  width in                             J  pairs of a head (E / 2)
    O  width out                            W  any other width
    Y  layers                               V  vocabulary
    P  pages of a pool                      B  KV blocks
    R  ranks of a page (16)                 S  tokens of a KV block
    M  modules that have a list             C  KV blocks of a table
    N  work items of a module               G  groups of columns that share a scale
    H  query heads                          U  slots of the sampler
    K  KV heads                             Z  best tokens of a row
    Q  ranks, or queries, of a kernel's turn
    A  rows of an ensemble
"""
