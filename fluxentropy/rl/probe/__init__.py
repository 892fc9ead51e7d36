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

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "AdamWRecorder": "step",
        "AdamWSplit": "step",
        "Attribution": "attribution",
        "COSTS": "probe",
        "Change": "probe",
        "CovarianceAgreement": "attribution",
        "EntropyExpansion": "change",
        "EntropyProbe": "probe",
        "Estimate": "estimate",
        "Expansion": "change",
        "GradientEstimate": "step",
        "KernelReport": "probe",
        "KernelSplit": "kernel",
        "KernelStatistics": "kernel",
        "MeasuredChange": "change",
        "PARTS": "probe",
        "Parameters": "policy",
        "Part": "probe",
        "Policy": "policy",
        "ProbeRecord": "probe",
        "Quadrant": "attribution",
        "Responses": "samples",
        "RunningBaseline": "step",
        "Sampler": "samples",
        "SequenceEntropy": "estimate",
        "SequenceStats": "policy",
        "SupportEntropy": "estimate",
        "TwoBatch": "kernel",
        "UStatistic": "kernel",
        "Weights": "policy",
        "attribute": "attribution",
        "can_split": "step",
        "check_sampled_by": "policy",
        "clip_factor": "step",
        "covariance_agreement": "attribution",
        "covariance_change": "kernel",
        "derivatives": "policy",
        "difference": "step",
        "dot": "policy",
        "entropy_gradient": "step",
        "entropy_side": "kernel",
        "entropy_to_go": "step",
        "expand": "change",
        "fisher_gradients": "kernel",
        "flatten": "policy",
        "ghost_radius": "change",
        "jackknife": "estimate",
        "kernel_change": "kernel",
        "kernel_statistics": "kernel",
        "known_step": "kernel",
        "learning_rates": "step",
        "leave_one_out": "estimate",
        "leave_one_out_advantages": "kernel",
        "linearised_change": "change",
        "mean_estimate": "estimate",
        "measured_change": "change",
        "multi_prompt_u": "kernel",
        "multi_prompt_u_from_sums": "kernel",
        "one_prompt_u": "kernel",
        "others_to_go": "step",
        "pairs": "kernel",
        "part_change": "attribution",
        "prompt_gradients": "policy",
        "quadrants": "attribution",
        "response_mask": "samples",
        "responses": "samples",
        "row_gradients": "policy",
        "score_weights": "step",
        "sequence_entropy": "estimate",
        "sequence_stats": "policy",
        "snapshot": "step",
        "support_entropy": "estimate",
        "to_go_weights": "step",
        "two_batch": "kernel",
        "two_batch_from_sums": "kernel",
        "update_change": "kernel",
        "update_side": "kernel",
        "update_weights": "step",
        "weighted_gradient": "policy",
    },
)
