"""How a training step changes a policy's entropy: everything public in one place.

    responses, Responses, Sampler          a batch of sampled responses
    Policy, sequence_stats, derivatives    log-probabilities and entropies of every token, and their derivatives
    sequence_entropy, support_entropy      the entropy, per sequence and per token; bounds from a top-k or top-p support
    entropy_gradient, RunningBaseline      its gradient by the score or the to-go form
    snapshot, difference, AdamWRecorder    the step that was taken, and AdamW's parts of it
    fisher_gradients, kernel_change, ...   which pairs of responses carry the change
    one_prompt_u, multi_prompt_u           the change from one batch
    two_batch, known_step, update_change   the change from two
    attribute, quadrants                   the parts of an update's tokens in it
    measured_change, linearised_change     the change after the step, by importance weights
    expand, ghost_radius                   second order and the range of validity
    EntropyProbe                           all of it for one real step

Only torch is imported; any decoder that maps ids to logits will do. Entropies are in nats, reductions in float64.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "fluxentropy.rl.attribution": (
        "Attribution CovarianceAgreement Quadrant attribute covariance_agreement part_change quadrants"
    ),
    "fluxentropy.rl.estimate": "Estimate jackknife leave_one_out mean_estimate",
    "fluxentropy.rl.gradient": (
        "GradientEstimate RunningBaseline entropy_gradient entropy_to_go others_to_go score_weights to_go_weights "
        "update_weights"
    ),
    "fluxentropy.rl.kernel": (
        "KernelSplit KernelStatistics covariance_change entropy_side fisher_gradients kernel_change "
        "kernel_statistics pairs update_side"
    ),
    "fluxentropy.rl.passes": (
        "SequenceStats Weights check_sampled_by derivatives prompt_gradients row_gradients sequence_stats "
        "weighted_gradient"
    ),
    "fluxentropy.rl.policy": "Parameters Policy dot flatten",
    "fluxentropy.rl.probe": "COSTS PARTS EntropyProbe Part",
    "fluxentropy.rl.proberecord": "Change KernelReport ProbeRecord",
    "fluxentropy.rl.responses": "Responses Sampler response_mask responses",
    "fluxentropy.rl.secondorder": "EntropyExpansion Expansion expand ghost_radius",
    "fluxentropy.rl.sequence_entropy": "SequenceEntropy sequence_entropy",
    "fluxentropy.rl.snis": "MeasuredChange linearised_change measured_change",
    "fluxentropy.rl.step": "AdamWRecorder AdamWSplit can_split clip_factor difference learning_rates snapshot",
    "fluxentropy.rl.support": "SupportEntropy support_entropy",
    "fluxentropy.rl.twobatch": "TwoBatch known_step two_batch two_batch_from_sums update_change",
    "fluxentropy.rl.ustatistics": (
        "UStatistic leave_one_out_advantages multi_prompt_u multi_prompt_u_from_sums one_prompt_u"
    ),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
