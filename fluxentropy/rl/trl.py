"""What each step of TRL's GRPOTrainer does to the entropy: a callback that probes around `optimizer.step()`.

    from fluxentropy.rl import EntropyProbeCallback

    trainer = GRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=...)
    trainer.add_callback(EntropyProbeCallback(trainer, held_out_prompts, every=10))

Every `every` steps it samples an entropy batch of its own from the model, as TRL samples (temperature, chat template,
length), probes the step, and logs `ProbeRecord.row()` with "probe_" before each name, through the trainer's loggers
and into `trainer.state.log_history`. Needs the extra `trl`.

Training is the same to the bit as without: random states are put back, gradients and optimizer are only read. The step
is probed after clipping and before `zero_grad`, however many micro-batches it accumulates; steps that the gradient
scaler skips are not recorded. With several processes the first one probes, on its whole copy of the model; models
that are sharded over processes (FSDP, DeepSpeed) are refused. Under mixed precision (TRL's default is bf16) the policy
is sampled with it and probed without, for rounding to bf16 exceeds what most steps change.

TRL logs an `entropy` of its own, of the update's batch under dropout, a mean over micro-batches of their means, and
without the responses that `mask_truncated_completions` leaves out. Where none of these matter the two agree.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe import attribution
from fluxentropy.rl.probe.policy import ROWS, Forward, evaluating
from fluxentropy.rl.probe.probe import OF_THE_UPDATE, EntropyProbe, Part
from fluxentropy.rl.probe.samples import Responses, Sampler, responses
from fluxentropy.rl.probe.step import clip_factor

# --- the trainer ------------------------------------------------------------------------------------------------------
#
#     from fluxentropy.rl import EntropyProbeCallback, RecordingGRPOTrainer
#
#     trainer = RecordingGRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=...)
#     trainer.add_callback(EntropyProbeCallback(trainer, prompts, parts=["measured", "two_batch"]))
#
# Only for parts of the update (two batches, kernel, U-statistic, attribution); all others need no subclass. Training is
# that of GRPOTrainer, to the bit. Needs the extra `trl`.


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


# --- the callback -----------------------------------------------------------------------------------------------------


log = logging.getLogger(__name__)

NEUTRAL: dict[str, tuple[Any, ...]] = {  # settings of generation that leave softmax(z / temperature) as it is
    "top_p": (None, 1, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
}

HARMLESS = ("use_cache", "cache_implementation")


class EntropyProbeCallback(TrainerCallback):
    """Probes every `every`-th optimizer step of a GRPOTrainer, the first one included.

    Args:
        trainer: the trainer that the callback is then added to.
        prompts: at least 3, in the form of the dataset's "prompt" column (text, or messages of a chat), best none of
            the training set's: the entropy batch has to be independent of the update.
        every: steps from one probe to the next.
        responses: to each prompt.
        parts, budget, sketch, rows: see `EntropyProbe`; parts of the update need a `RecordingGRPOTrainer`.
        attribute: whether to log the quadrants of the update's tokens (`attribution.row`) as well, and to write every
            token's part to `output_dir/attribution/step_N.parquet`.
        seed: of the entropy batches; they depend on it and on the step alone.

    Errors: `UsageError` for generation settings under which the entropy's change is not defined (top-p, top-k, min-p,
    repetition penalty), sharded models, tools, images, and parts that this trainer cannot serve.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        prompts: Sequence[Any],
        *,
        every: int = 10,
        responses: int = 2,
        parts: Collection[Part] | None = None,
        budget: float | None = None,
        sketch: int | None = 32,
        attribute: bool = False,
        seed: int = 0,
        rows: int = ROWS,
    ) -> None:
        check_sampling(trainer.args)
        _check_trainer(trainer)
        for name, value in (("every", every), ("responses", responses)):
            if value < 1:
                raise UsageError(f"{name} {value}: use a whole number of at least 1")
        if len(prompts) < 3:
            raise UsageError(f"{len(prompts)} prompts: a probe with standard errors needs at least 3")
        self._of_the_update = attribute or bool(set(parts or ()) & set(OF_THE_UPDATE))
        if self._of_the_update:
            if not isinstance(trainer, RecordingGRPOTrainer):
                raise UsageError(
                    f"{type(trainer).__name__} does not keep the update's batch: parts of the update need a "
                    "fluxentropy.rl.RecordingGRPOTrainer"
                )
            check_update(trainer.args, trainer.accelerator.num_processes)
        self._trainer, self._prompts, self._every, self._responses = trainer, list(prompts), every, responses
        self._options: dict[str, Any] = {"parts": parts, "budget": budget, "sketch": sketch, "rows": rows}
        self._attribute, self._seed, self._rows = attribute, seed, rows
        self._probe: EntropyProbe | None = None
        self._row: dict[str, float] | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Gradients are accumulated, averaged and clipped; the step is next."""
        self._probe = self._row = None
        if state.global_step % self._every or not state.is_world_process_zero:
            return
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        options = {**self._options, "forward": _in_full(model)}
        if self._of_the_update:
            try:
                options |= {"update": self._trainer.update_batch(), "norm": 1.0}
            except UsageError as error:  # the last window of an epoch may be cut short
                log.warning("step %d is not probed: %s", state.global_step + 1, error)
                return
        self._probe = EntropyProbe(model, self.sample(model, state.global_step), optimizer=optimizer, **options)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The step was taken, or skipped; the gradients are still there."""
        probe, self._probe = self._probe, None
        if probe is None:
            return
        if self._trainer.accelerator.optimizer_step_was_skipped:
            log.warning("step %d was skipped by the gradient scaler: not probed", state.global_step + 1)
            return
        clip = getattr(self._trainer, "clip", 1.0)
        record = probe.measure(clip=clip)
        for warning in record.warnings:
            log.warning("step %d: %s", state.global_step + 1, warning)
        row = record.row()
        if self._attribute:
            row |= self._attributed(probe, clip, state.global_step + 1)
        self._row = {f"probe_{name}": value for name, value in row.items() if math.isfinite(value)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The step's number is known now: log. GRPOTrainer.log would empty the trainer's own running means."""
        row, self._row = self._row, None
        if row is not None:
            due = control.should_log  # logging resets it, and the trainer's own row of this step would be lost
            Trainer.log(self._trainer, row)
            control.should_log = due

    def _attributed(self, probe: EntropyProbe, clip: float, step: int) -> dict[str, float]:
        found = probe.attribute(clip=clip)
        path = attribution.attribution_path(Path(self._trainer.args.output_dir), step)
        attribution.write_attribution(path, found, step=step)
        return attribution.row(found)

    def sample(self, model: Any, step: int) -> Responses:
        """The entropy batch of a step: B prompts, `responses` each, from the model in evaluation mode."""
        trainer = self._trainer
        prompt_ids, _, _ = trainer._tokenize_prompts(self._prompts)
        config = _generation_config(trainer)
        each = [ids for ids in prompt_ids for _ in range(self._responses)]
        parts = []
        with _aside(model, config, self._seed + 1_000_003 * step):
            for first in range(0, len(each), self._rows):
                parts.append(_generate(model, each[first : first + self._rows], config))
        tokens = torch.cat(parts).view(len(prompt_ids), self._responses, -1)
        sampler = Sampler(temperature=trainer.temperature)
        return responses(prompt_ids, tokens, eos=trainer.eos_token_ids, sampler=sampler)


def check_sampling(args: GRPOConfig) -> None:
    """Raise `UsageError` unless responses are drawn from softmax(z / temperature) over the whole vocabulary."""
    extra = dict(args.generation_kwargs or {})
    settings = {name: extra.pop(name, getattr(args, name)) for name in NEUTRAL}
    for name, value in settings.items():
        if value not in NEUTRAL[name]:
            raise UsageError(
                f"{name} {value}: the change of the entropy is defined for responses from the whole vocabulary; set "
                "top_p=1.0, top_k=0, min_p=None and repetition_penalty=1.0"
            )
    if unknown := sorted(set(extra) - set(HARMLESS)):
        raise UsageError(
            f"generation_kwargs {unknown[0]!r}: it may change what is sampled, so that probabilities would not be "
            "softmax(logits / temperature); leave it out"
        )


def _check_trainer(trainer: GRPOTrainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UsageError("a model that FSDP or DeepSpeed shards: the probe needs all parameters in one process")
    if trainer.tools or trainer.environment_factories is not None:
        raise UsageError("tools or an environment: responses of several turns cannot be probed")
    if trainer._is_vlm:
        raise UsageError("a model with images: only text can be probed")


def _in_full(model: Any) -> Forward | None:
    """The forward pass without accelerate's autocast; None where there is none to leave out."""
    if not hasattr(model, "_original_forward"):
        return None
    return lambda policy, ids, mask: policy._original_forward(ids, use_cache=False)  # noqa: ARG005


def _generation_config(trainer: GRPOTrainer) -> GenerationConfig:
    tokenizer = trainer._tokenizer
    return GenerationConfig(
        max_new_tokens=trainer.max_completion_length,
        do_sample=True,
        temperature=trainer.temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=trainer.eos_token_ids,
        disable_compile=True,
    )


@contextlib.contextmanager
def _aside(model: Any, config: GenerationConfig, seed: int) -> Iterator[None]:
    """Sample in evaluation mode with random numbers of its own; the model's own settings must not fill gaps."""
    devices = [model.device] if model.device.type == "cuda" else []
    own = model.generation_config
    with torch.random.fork_rng(devices=devices), evaluating(model), torch.no_grad():
        torch.manual_seed(seed)
        model.generation_config = config
        try:
            yield
        finally:
            model.generation_config = own


def _generate(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> Tensor:
    """(n, max_new_tokens), padded with the first EOS after the ends."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), config.pad_token_id)
    present = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        present[row, width - len(prompt) :] = 1
    found = model.generate(
        input_ids=ids.to(model.device), attention_mask=present.to(model.device), generation_config=config
    )[:, width:]
    end = config.eos_token_id[0]  # a chunk that ended early did so in every row
    return torch.nn.functional.pad(found, (0, config.max_new_tokens - found.shape[1]), value=end)
