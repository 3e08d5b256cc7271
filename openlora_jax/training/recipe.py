"""How an adapter is trained: its size, and what the optimiser is told."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import optax
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openlora_jax.adapters.manifest import MAX_RANK
from openlora_jax.errors import InvalidRequest

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

WARMUP_STEPS = 10
MAX_NORM = 1.0
"""Of the gradient over all factors; a longer one is shortened to it."""


class Recipe(BaseModel):
    """A value out of range raises pydantic's ValidationError; `Recipe.of` raises InvalidRequest.

    Attributes:
        rank: of every target module.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: the modules of each layer that get factors.
        steps: updates of the factors.
        batch: examples of a step.
        learning_rate: of AdamW at its peak. It rises over the first steps, then falls to zero as a cosine.
        seed: of the initial values and of the order of the examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, le=MAX_RANK)
    alpha: Positive = 32.0
    targets: tuple[Target, ...] = Field(Target.__args__, min_length=1)  # type: ignore[attr-defined]
    steps: int = Field(100, ge=1)
    batch: int = Field(8, ge=1)
    learning_rate: Positive = 5e-4
    seed: int = Field(0, ge=0, lt=2**31)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Recipe":
        """These settings, and the defaults of all others. Raises InvalidRequest."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidRequest(str(first["loc"][0]), first["msg"]) from error

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW (Loshchilov and Hutter 2019) without decay, on clipped gradients."""
        warmup = min(WARMUP_STEPS, self.steps - 1)
        rate = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=self.steps,
        )
        return optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(rate, weight_decay=0.0))
