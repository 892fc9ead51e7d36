"""`fluxentropy ARGUMENTS` that is killed at a step of writing; also in the worker processes that it starts.

    CRASH_AT=3:after python tests/crashing.py bin … --out DIR      killed after the 3rd call of fsync, replace or rename

An opened file of sorted rows is a step too, also where it is read again, and so is the end of what a repair has taken
away. With CRASH_COUNT=FILE, each process adds a line for each step to FILE.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

calls = 0


def crash(when: str) -> None:
    if os.environ.get("CRASH_AT") == f"{calls}:{when}":
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(function: Callable[..., Any], only: str = "") -> Callable[..., Any]:
    """`function`, a step where its first argument holds `only`."""

    def call(*arguments: Any, **options: Any) -> Any:
        global calls
        if only not in str(arguments[0]):
            return function(*arguments, **options)
        calls += 1
        if counts := os.environ.get("CRASH_COUNT"):
            with open(counts, "a") as file:
                file.write(f"{function.__name__}\n")
        crash("before")
        result = function(*arguments, **options)
        crash("after")
        return result

    return call


os.fsync = deadly(os.fsync)
os.replace = deadly(os.replace)
os.rename = deadly(os.rename)  # what Path.rename calls
pa.OSFile = deadly(pa.OSFile, ".arrows")  # a sorted run
os.unlink = deadly(os.unlink, ".damaged-")
os.rmdir = deadly(os.rmdir, ".damaged-")

if __name__ == "__main__":  # a spawned worker imports this file under another name, and patches itself
    from fluxentropy.cli import main

    sys.exit(main(sys.argv[1:]))
