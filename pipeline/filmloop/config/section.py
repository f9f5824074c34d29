"""What all sections of a site file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, and a key that nobody knows is an error, as is a number without an end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
