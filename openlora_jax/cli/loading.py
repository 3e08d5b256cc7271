"""The library, loaded as commands load it: behind a progress bar, its programs kept for the next start."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlora_jax.cli.progress import shown_progress

if TYPE_CHECKING:
    from openlora_jax.llm import LLM


def load(base: str, store: str | None, **settings: Any) -> "LLM":
    """Loads a base model and compiles its programs, or finds them in the user's cache; arguments as for LLM.

    JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) names another cache.
    """
    import jax

    from openlora_jax.llm import LLM

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache()))
    with shown_progress("loading") as progress:
        return LLM(base, store, progress=progress, **settings)


def user_cache() -> Path:
    """Where what can be made again is kept for the user's next command."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openlora-jax"
