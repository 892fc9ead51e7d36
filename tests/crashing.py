"""`fluxentropy ARGUMENTS` that is killed at a step of writing; also in the worker processes that it starts.

    CRASH_AT=3:after python tests/crashing.py bin … --out DIR      killed after the 3rd call of fsync, replace or rename

An opened file of sorted rows is a step too, also where it is read again, and so is the end of what a repair has taken
away. With CRASH_COUNT=FILE, each process adds a line for each step to FILE.

Without arguments it serves: each line on stdin is {"argv": […], "environment": {…}, "modules": […], "log": FILE}, whose
command a fork of this process carries out; its exit code is answered on stdout. So nothing is imported twice.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

numbers = itertools.count(1)  # a call has its own, also where threads call at once


def crash(number: int, when: str) -> None:
    if os.environ.get("CRASH_AT") == f"{number}:{when}":
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(function: Callable[..., Any], only: str = "") -> Callable[..., Any]:
    """`function`, a step where its first argument holds `only`."""

    def call(*arguments: Any, **options: Any) -> Any:
        if only not in str(arguments[0]):
            return function(*arguments, **options)
        number = next(numbers)
        if counts := os.environ.get("CRASH_COUNT"):
            with open(counts, "a") as file:
                file.write(f"{function.__name__}\n")
        crash(number, "before")
        result = function(*arguments, **options)
        crash(number, "after")
        return result

    return call


os.fsync = deadly(os.fsync)
os.replace = deadly(os.replace)
os.rename = deadly(os.rename)  # what Path.rename calls
pa.OSFile = deadly(pa.OSFile, ".arrows")  # a sorted run
os.unlink = deadly(os.unlink, ".damaged-")
os.rmdir = deadly(os.rmdir, ".damaged-")


def serve() -> None:
    from fluxentropy.cli.app import main

    for line in sys.stdin:
        asked = json.loads(line)
        for name in asked["modules"]:
            importlib.import_module(name)
        if not (child := os.fork()):
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
                os.dup2(target, number)
            os.environ |= asked["environment"]
            sys.exit(main(asked["argv"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":  # a spawned worker imports this file under another name, and patches itself
    if len(sys.argv) == 1:
        serve()
    else:
        from fluxentropy.cli.app import main

        sys.exit(main(sys.argv[1:]))
