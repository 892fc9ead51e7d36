"""What the programs of this folder share: the steps of a pipeline, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fluxentropy.errors import FluxentropyError
from fluxentropy.outcome import Outcome


def run_steps(steps: Sequence[Callable[[], Outcome]]) -> int:
    """Run the steps in order; print what each says, and return the exit code of the first that fails, or 0."""
    try:
        for step in steps:
            outcome = step()
            print("\n".join(outcome.lines))
            if outcome.exit_code:
                return outcome.exit_code
    except FluxentropyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
