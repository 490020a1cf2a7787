"""What every section of the config has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=100)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Widths = tuple[Width, ...]
"""Hidden widths of an MLP, first to last."""
Count = Annotated[int, Field(ge=1, le=256)]
