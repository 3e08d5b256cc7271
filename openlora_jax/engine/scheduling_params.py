"""How a request wants to be treated beside others: its class, whose it is, and by when it is of use."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Priority = Literal["low", "normal", "high"]

MAX_TENANT = 128
"""Characters of a tenant's name."""

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class SchedulingParams(BaseModel):
    """What the scheduler knows of a request beside its size. A value out of range raises pydantic's ValidationError.

    Attributes:
        priority: a higher class starts first, and takes rows, KV blocks and pages back from a lower one.
        tenant: whose request it is. Tenants share the engine evenly, and no tenant reads what another left in a cache.
        ttft_deadline: seconds from the submission to the first token, or to a text's scores.
        tpot_deadline: seconds from one token of a sample to its next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Priority = "normal"
    tenant: str = Field("", max_length=MAX_TENANT)
    ttft_deadline: Seconds | None = None
    tpot_deadline: Seconds | None = None

    @property
    def limits_time(self) -> bool:
        """Whether there is a deadline to keep."""
        return self.ttft_deadline is not None or self.tpot_deadline is not None


DEFAULT_SCHEDULING = SchedulingParams()
"""Of who says nothing."""
