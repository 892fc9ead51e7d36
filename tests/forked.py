"""`fluxentropy ARGUMENTS` several times, in forks of one process, which imports torch once for all of them.

    python tests/forked.py '[{"CRASH_AT": "9:after"}, {}]' pretrain …       in turn, each with its environment
    TOGETHER=1 python tests/forked.py '[{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}]' pretrain …

It prints a line for each: how it ended, as `subprocess` says it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

import crashing


def fork(environment: dict[str, str], argv: list[str]) -> int:
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        crashing.numbers = itertools.count(1)
        code = 1
        try:
            code = main(argv)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child: int) -> None:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    import fluxentropy.pretraining.pretrain  # noqa: F401  (all that is heavy)
    from fluxentropy.cli.app import main

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    children = []
    for environment in json.loads(sys.argv[1]):
        children.append(fork(environment, sys.argv[2:]))
        if "TOGETHER" not in os.environ:
            ended(children.pop())
    for each in children:
        ended(each)
