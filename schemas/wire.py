"""The base of every wire model."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Frozen, and deaf to unknown fields: a producer may be newer than we are."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
