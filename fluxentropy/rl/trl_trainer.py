"""TRL's GRPOTrainer, which also remembers the batch of the update that a probe takes apart.

    from fluxentropy.rl import EntropyProbeCallback, RecordingGRPOTrainer

    trainer = RecordingGRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=...)
    trainer.add_callback(EntropyProbeCallback(trainer, prompts, parts=["measured", "two_batch"]))

Only for parts of the update (two batches, kernel, U-statistic, attribution); all others need no subclass. Training is
that of GRPOTrainer, to the bit. Needs the extra `trl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fluxentropy.errors import UsageError
from fluxentropy.rl.responses import Responses, Sampler, responses
from fluxentropy.rl.step import clip_factor

KEPT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
LOSSES = ("grpo", "dr_grpo", "bnpo", "dapo")


class RecordingGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # of type Any
    """GRPOTrainer with `update_batch` and `clip`, both of the optimizer step at hand."""

    clip = 1.0  # the factor that clipping multiplied the gradients by

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window: list[dict[str, Any]] = []
        self._closed = False

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            if self._closed:
                self._window.clear()
            self._window.append(dict(inputs))
            self._closed = bool(self.accelerator.sync_gradients)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.clip = clip_factor(norm, self.args.max_grad_norm)
        return norm

    def update_batch(self) -> Responses:
        """The responses of this step's update, with weights that make its gradient (1/BG) Σ A ∇S: norm is 1."""
        return update_responses(self._window, self.args, self.accelerator.num_processes)


def check_update(args: GRPOConfig, processes: int = 1) -> None:
    """Raise `UsageError` where the gradient of TRL's loss is not Σ (A / a length) ∇S over the step's responses."""
    needs = (
        ("loss_type", args.loss_type in LOSSES, f"one of {', '.join(LOSSES)}"),
        ("importance_sampling_level", args.importance_sampling_level == "token", "'token'"),
        ("beta", args.beta == 0, "0"),
        ("num_iterations", args.num_iterations == 1, "1"),
        ("top_entropy_quantile", args.top_entropy_quantile == 1, "1"),
        ("entropy_coef", args.entropy_coef == 0, "0"),
        ("use_adaptive_entropy", not args.use_adaptive_entropy, "False"),
        ("off_policy_mask_threshold", args.off_policy_mask_threshold is None, "None"),
        ("mask_truncated_completions", not args.mask_truncated_completions, "False"),
        ("use_vllm", not args.use_vllm, "False"),
        (
            "steps_per_generation",
            args.steps_per_generation == args.gradient_accumulation_steps,
            f"{args.gradient_accumulation_steps}, as gradient_accumulation_steps",
        ),
    )
    for name, met, wanted in needs:
        if not met:
            raise UsageError(
                f"{name} {getattr(args, name)!r}: the parts of the update need {wanted}, where the update is a plain "
                "policy gradient of whole groups; leave these parts out (the others hold for every loss)"
            )
    if processes > 1:
        raise UsageError(f"{processes} processes: the parts of the update are for one; leave them out")


def update_responses(window: Sequence[Mapping[str, Any]], args: GRPOConfig, processes: int = 1) -> Responses:
    """The micro-batches of one optimizer step, as TRL's loss gets them, in groups of `num_generations`.

    Each response's advantage is divided as the loss divides it, times the number of responses, so that with norm 1 the
    ascent (1/BG) Σ A ∇S is minus the gradient of the loss. Errors: `UsageError` for losses of another form
    (`check_update`), and for groups that are not whole.
    """
    check_update(args, processes)
    if any(name in inputs for inputs in window for name in ("tool_mask", "old_per_token_logps", "pixel_values")):
        raise UsageError("tools, images and updates off the policy: the parts of the update cannot be computed")
    rows: dict[tuple[int, ...], list[tuple[Tensor, float]]] = {}
    count = sum(len(inputs["advantages"]) for inputs in window)
    for inputs in window:
        weights = count * inputs["advantages"].double() / _divisors(inputs, args, len(window))
        for n, weight in enumerate(weights.tolist()):
            prompt = tuple(inputs["prompt_ids"][n][inputs["prompt_mask"][n].bool()].tolist())
            tokens = inputs["completion_ids"][n][inputs["completion_mask"][n].bool()]
            rows.setdefault(prompt, []).append((tokens, weight))
    G = args.num_generations
    if broken := [prompt for prompt, found in rows.items() if len(found) % G]:
        raise UsageError(f"{len(rows[broken[0]])} responses to one prompt in a step: groups of {G} are not whole")
    prompts = [prompt for prompt, found in rows.items() for _ in range(len(found) // G)]
    flat = [row for found in rows.values() for row in found]
    lengths = torch.tensor([len(tokens) for tokens, _ in flat], device=flat[0][0].device)
    padded = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in flat], batch_first=True)
    return responses(
        prompts,
        padded.view(len(prompts), G, -1),
        mask=(torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).view(len(prompts), G, -1),
        sampler=Sampler(temperature=args.temperature),
        advantages=torch.tensor([weight for _, weight in flat], dtype=torch.float64, device=padded.device).view(-1, G),
    )


def _divisors(inputs: Mapping[str, Any], args: GRPOConfig, window: int) -> Tensor | float:
    """What the loss divides Σ_k A ∇S_k of each response by, (n,) or one number."""
    lengths = inputs["completion_mask"].sum(1).double()
    if args.loss_type == "grpo":
        return lengths * len(lengths) * window
    if args.loss_type == "dr_grpo":
        return float(len(lengths) * args.max_completion_length * window)
    if args.loss_type == "bnpo":
        return float(lengths.sum() * window)
    return float(inputs["num_items_in_batch"]) * window / (args.steps_per_generation or window)
