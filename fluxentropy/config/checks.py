"""What an option accepts stands in its annotation, and `Options` reads it:

    limit: Annotated[int | None, INPUT, Min(1)] = None

None is always accepted. What several options must agree on is left to a `__post_init__`, after that of `super()`.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin

from fluxentropy.errors import UsageError


@dataclass(frozen=True, eq=False)
class Check:
    """Stands in the annotation of an option: which values it accepts, and what to use instead of others."""

    accepts: Callable[[Any], bool]
    fix: str
    opening: str = "{flag} {value}: "


@dataclass(frozen=True)
class Separated:
    """Stands in the annotation of a list: `--by a,b` and `--by a --by b` are the same; `empty` stands for no names."""

    empty: tuple[str, ...] | None = ()


def Min(least: int) -> Check:  # noqa: N802
    return Check(lambda value: value >= least, f"use {least} or more")


def Positive(what: str = "number") -> Check:  # noqa: N802
    return Check(lambda value: 0 < value < math.inf, f"use a positive {what}")


def NotNegative() -> Check:  # noqa: N802
    return Check(lambda value: 0 <= value < math.inf, "use 0 or a positive number")


def Between(low: float, high: float, what: str = "number") -> Check:  # noqa: N802
    """Both ends are accepted."""
    return Check(lambda value: low <= value <= high, f"use a {what} from {low} to {high}")


def Suffix(*suffixes: str) -> Check:  # noqa: N802
    return Check(lambda value: str(value).endswith(suffixes), f"use a name that ends in {' or '.join(suffixes)}")


def Some(fix: str, opening: str = "{flag} is empty: ") -> Check:  # noqa: N802
    return Check(bool, fix, opening)


BELOW_ONE = Check(lambda value: 0 <= value < 1, "use a number from 0 to below 1")


class Options:
    """What all options share: each value is checked against the annotations of its field, the inherited ones too.

    Errors: UsageError names the option and the fix.
    """

    prefix: ClassVar[str] = "--"
    digits: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str | None = None, digits: str | None = None) -> None:
        """`prefix`: what messages put before a name, --policy. in that section; `digits`: how they write floats."""
        for name, value in {"prefix": prefix, "digits": digits}.items():
            if value is not None:
                setattr(cls, name, value)

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, check in _checks(own):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(check, Separated):
                names = tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
                object.__setattr__(self, name, names or check.empty)
            elif not check.accepts(value):
                shown = format(value, self.digits) if isinstance(value, float) else value
                raise UsageError(check.opening.format(flag=self.flag(name), value=shown) + check.fix)

    def flag(self, name: str) -> str:
        """How messages call an option."""
        return self.prefix + (name.rstrip("_").replace("_", "-") if self.prefix.startswith("--") else name)


@functools.cache
def _checks(cls: type) -> list[tuple[str, Check | Separated]]:
    """What the annotations of `cls` and its bases, these first, say of each option; of a Literal, its values."""
    found: list[tuple[str, Check | Separated]] = []
    for base in reversed(cls.__mro__):
        for name, hint in inspect.get_annotations(base, eval_str=True).items():
            kind: Any
            said: list[Any]
            kind, *said = (hint.__origin__, *hint.__metadata__) if hasattr(hint, "__metadata__") else (hint,)
            if get_origin(kind) is Literal:
                *most, last = values = get_args(kind)
                fix = f"use {', '.join(map(str, most))}{' or ' if most else ''}{last}"
                said = [*said, Check(values.__contains__, fix)]
            found += [(name, check) for check in said if isinstance(check, Check | Separated)]
    return found
