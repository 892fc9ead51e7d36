"""What the programs of this folder share: the steps of a pipeline, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fluxentropy.config.results import Result
from fluxentropy.errors import FluxentropyError
from fluxentropy.ordering.bin import bin_corpus
from fluxentropy.ordering.options import BinConfig
from fluxentropy.scoring.options import ScoreConfig
from fluxentropy.scoring.score import score
from fluxentropy.verification import VerifyConfig
from fluxentropy.verification.verify import verify


def score_bin_verify(scoring: ScoreConfig, binning: BinConfig) -> int:
    """Score a corpus, bin it and verify both, with the engine of `binning`; the exit code."""
    work = {name: getattr(binning, name) for name in ("workers", "engine", "address")}
    return run_steps(
        (
            lambda: score(scoring),
            lambda: bin_corpus(binning),
            lambda: verify(VerifyConfig(dir=scoring.out, **work)),
            lambda: verify(VerifyConfig(dir=binning.out, **work)),
        )
    )


def run_steps(steps: Sequence[Callable[[], Result]]) -> int:
    """Run the steps in order; print what each says, and return the exit code of the first that fails, or 0."""
    for step in steps:
        result = step()
        print("\n".join(result.lines()))
        if result.exit_code:
            return result.exit_code
    return 0


def program(main: Callable[[], int]) -> int:
    """What `main` returns; an error that its user can act on becomes a message and an exit code."""
    try:
        return main()
    except FluxentropyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
