"""No control: what the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fluxentropy.rl.controllers.base import Base


@dataclass(frozen=True, kw_only=True)
class NoControl(Base):
    """Leaves loss and step as they are."""

    name: ClassVar[str] = "none"
