"""`python -m openlora_jax` is `openlora`."""

from openlora_jax.cli import main

if __name__ == "__main__":
    main()
