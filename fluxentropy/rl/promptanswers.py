"""The question how many prompts a reliable entropy needs, from the responses of the probed steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxentropy.rl.grpo_figures import Columns
from fluxentropy.rl.precision import entropy_precision, prompts_needed
from fluxentropy.rl.stepbootstrap import StepBootstrap

RELATIVE = (0.01, 0.05, 0.1)
REPLICATES = 200  # batches of each size
UNITS = ("per_sequence", "per_token")


def batches(responses: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """ΣH and length (B, G) of the responses of each step; without steps of fewer than 3 prompts, or of entropy 0."""
    found = []
    for step in np.unique(responses["step"]):
        here = responses["step"] == step
        order = np.lexsort((responses["response"][here], responses["prompt"][here]))
        prompts, counts = np.unique(responses["prompt"][here], return_counts=True)
        entropy, length = (responses[name][here][order] for name in ("entropy", "length"))
        if len(prompts) >= 3 and len(set(counts)) == 1 and entropy.sum() > 0:
            found.append((entropy.reshape(len(prompts), -1), length.reshape(len(prompts), -1).astype(float)))
    return found


def prompt_answer(
    runs: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], boot: StepBootstrap, *, seed: int = 0
) -> dict[str, Any]:
    """Prompts needed for a relative standard error, and that error at every size; medians over steps.

    `runs`: the `batches` of each run; `boot` is over these steps. By responses to a prompt: the first 1, 2, 4, ... of
    each. `curve`: the error of batches that are drawn from those of a step, as `precision.entropy_precision` has it.
    """
    every = [batch for run in runs for batch in run]
    prompts, most = (min(batch[0].shape[axis] for batch in every) for axis in (0, 1))
    each = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    return {
        "steps": len(every),
        "prompts": prompts,
        "by_responses": {str(G): _of_size(every, G, boot, seed) for G in each},
    }


def _of_size(every: Sequence[tuple[np.ndarray, np.ndarray]], G: int, boot: StepBootstrap, seed: int) -> dict[str, Any]:
    cut = [(entropy[:, :G], length[:, :G]) for entropy, length in every]
    needed = {share: [prompts_needed(H, T, relative=share) for H, T in cut] for share in RELATIVE}
    sizes = [2**power for power in range(1, 32) if all(2**power <= len(H) for H, _ in cut)]
    drawn = [entropy_precision(H, T, sizes, replicates=REPLICATES, seed=seed) for H, T in cut]
    return {
        "needed": {
            unit: {
                f"{share:g}": boot.median(np.array([float(getattr(n, unit)) for n in needed[share]]))
                for share in RELATIVE
            }
            for unit in UNITS
        },
        "curve": {
            unit: {
                str(size): boot.median(np.array([getattr(steps[place], unit).relative for steps in drawn]))
                for place, size in enumerate(sizes)
            }
            for unit in UNITS
        },
    }
