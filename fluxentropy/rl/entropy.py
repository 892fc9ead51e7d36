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

from fluxentropy.rl.attribution import (
    Attribution,
    CovarianceAgreement,
    Quadrant,
    attribute,
    covariance_agreement,
    part_change,
    quadrants,
)
from fluxentropy.rl.estimate import Estimate, jackknife, leave_one_out, mean_estimate
from fluxentropy.rl.gradient import (
    GradientEstimate,
    RunningBaseline,
    entropy_gradient,
    entropy_to_go,
    others_to_go,
    score_weights,
    to_go_weights,
    update_weights,
)
from fluxentropy.rl.kernel import (
    KernelSplit,
    KernelStatistics,
    covariance_change,
    entropy_side,
    fisher_gradients,
    kernel_change,
    kernel_statistics,
    pairs,
    update_side,
)
from fluxentropy.rl.passes import (
    SequenceStats,
    Weights,
    check_sampled_by,
    derivatives,
    prompt_gradients,
    row_gradients,
    sequence_stats,
    weighted_gradient,
)
from fluxentropy.rl.policy import Parameters, Policy, dot, flatten
from fluxentropy.rl.probe import COSTS, PARTS, EntropyProbe, Part
from fluxentropy.rl.proberecord import Change, KernelReport, ProbeRecord
from fluxentropy.rl.responses import Responses, Sampler, response_mask, responses
from fluxentropy.rl.secondorder import EntropyExpansion, Expansion, expand, ghost_radius
from fluxentropy.rl.sequence_entropy import SequenceEntropy, sequence_entropy
from fluxentropy.rl.snis import MeasuredChange, linearised_change, measured_change
from fluxentropy.rl.step import AdamWRecorder, AdamWSplit, can_split, clip_factor, difference, learning_rates, snapshot
from fluxentropy.rl.support import SupportEntropy, support_entropy
from fluxentropy.rl.twobatch import TwoBatch, known_step, two_batch, two_batch_from_sums, update_change
from fluxentropy.rl.ustatistics import (
    UStatistic,
    leave_one_out_advantages,
    multi_prompt_u,
    multi_prompt_u_from_sums,
    one_prompt_u,
)

__all__ = [
    "COSTS",
    "PARTS",
    "AdamWRecorder",
    "AdamWSplit",
    "Attribution",
    "Change",
    "CovarianceAgreement",
    "EntropyExpansion",
    "EntropyProbe",
    "Estimate",
    "Expansion",
    "GradientEstimate",
    "KernelReport",
    "KernelSplit",
    "KernelStatistics",
    "MeasuredChange",
    "Parameters",
    "Part",
    "Policy",
    "ProbeRecord",
    "Quadrant",
    "Responses",
    "RunningBaseline",
    "Sampler",
    "SequenceEntropy",
    "SequenceStats",
    "SupportEntropy",
    "TwoBatch",
    "UStatistic",
    "Weights",
    "attribute",
    "can_split",
    "check_sampled_by",
    "clip_factor",
    "covariance_agreement",
    "covariance_change",
    "derivatives",
    "difference",
    "dot",
    "entropy_gradient",
    "entropy_side",
    "entropy_to_go",
    "expand",
    "fisher_gradients",
    "flatten",
    "ghost_radius",
    "jackknife",
    "kernel_change",
    "kernel_statistics",
    "known_step",
    "learning_rates",
    "leave_one_out",
    "leave_one_out_advantages",
    "linearised_change",
    "mean_estimate",
    "measured_change",
    "multi_prompt_u",
    "multi_prompt_u_from_sums",
    "one_prompt_u",
    "others_to_go",
    "pairs",
    "part_change",
    "prompt_gradients",
    "quadrants",
    "response_mask",
    "responses",
    "row_gradients",
    "score_weights",
    "sequence_entropy",
    "sequence_stats",
    "snapshot",
    "support_entropy",
    "to_go_weights",
    "two_batch",
    "two_batch_from_sums",
    "update_change",
    "update_side",
    "update_weights",
    "weighted_gradient",
]
