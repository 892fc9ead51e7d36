"""Doors of packages: public names that are imported when they are first used, and not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def door(
    package: str, names: Mapping[str, str], call: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package with public `names`, each with where it is.

    That is a file of the package, `file:other_name` where it is called otherwise there, or "." for a package in it.
    With `call`, `file:function`, the package itself can be called: `fluxentropy.report` is a room and a command.
    """
    module = sys.modules[package]

    def found(place: str, name: str) -> Any:
        if place == ".":
            return importlib.import_module(f"{package}.{name}")
        file, _, other = place.partition(":")
        return getattr(importlib.import_module(f"{package}.{file}"), other or name)

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = found(names[name], name)
        setattr(module, name, value)
        return value

    if call is not None:
        place = call

        class Room(ModuleType):
            def __call__(self, *args: Any, **options: Any) -> Any:
                return found(place, "")(*args, **options)

        module.__class__ = Room
    return load, lambda: sorted({*names, *(name for name in vars(module) if name.startswith("__"))})
