"""OpenLoRA-JAX: thousands of LoRA adapters on one resident base model, served in one batch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openlora_jax.engine.sampling_params import SamplingParams as SamplingParams
    from openlora_jax.engine.scheduling_params import SchedulingParams as SchedulingParams
    from openlora_jax.inputs import ensemble as ensemble
    from openlora_jax.llm import LLM as LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "SchedulingParams", "__version__", "ensemble"]


def __getattr__(name: str) -> object:
    """What is promised here is imported when first named: the command line starts without JAX."""
    if name == "LLM":
        from openlora_jax.llm import LLM

        return LLM
    if name == "SamplingParams":
        from openlora_jax.engine.sampling_params import SamplingParams

        return SamplingParams
    if name == "SchedulingParams":
        from openlora_jax.engine.scheduling_params import SchedulingParams

        return SchedulingParams
    if name == "ensemble":
        from openlora_jax.inputs import ensemble

        return ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
