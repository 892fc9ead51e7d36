"""`fluxentropy verify`: nothing in a run directory is lost or damaged; `--repair` makes again what is.

verify.py   asks each room's own check, and repairs
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fluxentropy.config.checks import Min, Options
from fluxentropy.config.options import INPUT, SWITCH, WORK
from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {},
)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Options):
    """Options of `fluxentropy verify`."""

    dir: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of score, bin, order, pretrain, grpo, compare, zoo, agree or hellaswag."""
    repair: Annotated[bool, SWITCH, WORK] = False
    """Make again what is damaged or missing, and nothing else."""
    workers: Annotated[int, WORK, Min(1)] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
