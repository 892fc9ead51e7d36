"""Options of `fluxentropy grpo`, section by section.

Annotations are evaluated here, not kept as text, as in `config/options.py`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fluxentropy.config.checks import Between, Check, Min, NotNegative, Options, Positive, Separated
from fluxentropy.config.options import INPUT, JSON, MODEL, OUTPUT, SWITCH, WORK
from fluxentropy.errors import UsageError
from fluxentropy.pretraining.options import EVALUATION, TRAINING, LRConfig, OptimConfig

ROLLOUTS = Parameter(group=Group("Rollouts", sort_key=2.3))


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is to be learnt."""

    name: Annotated[str, INPUT] = "chain_sum"
    """A data set of reasoning-gym, or gsm8k."""
    data: Annotated[str | None, INPUT] = None
    """Of gsm8k: the folder of train.jsonl and test.jsonl, or one file."""
    template: Annotated[str, INPUT] = "{question}"
    """How a problem is shown to the model: fields of its record in braces, such as {expression} of chain_sum."""
    options: Annotated[dict[str, Any], JSON, INPUT] = field(default_factory=dict)
    """Of the data set of reasoning-gym, as a mapping: {min_digits: 2, max_digits: 2}."""


@dataclass(frozen=True, kw_only=True)
class LoRAOptions(Options, prefix="--policy.lora."):
    """Low-rank adapters instead of all weights (PEFT)."""

    rank: Annotated[int | None, MODEL, Min(1)] = None
    """Of the adapters. Default: none, all weights are trained."""
    alpha: Annotated[int, MODEL, Positive()] = 16
    """Adapters are scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...] | None, MODEL, Separated()] = None
    """Names of the layers that get adapters. Default: all linear layers but the head."""


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options, prefix="--policy."):
    """The model that is trained: a given one, or a small GPT with new weights."""

    model: Annotated[str | None, MODEL] = None
    """Name from the zoo, Hub id or local folder. Default: a new GPT of the sizes below."""
    tokenizer: Annotated[str, MODEL] = "char"
    """Of a new GPT: char (one token a character), or a zoo name, Hub id or folder whose tokenizer it gets."""
    n_layer: Annotated[int, MODEL, Min(1)] = 4
    """Blocks of a new GPT."""
    n_head: Annotated[int, MODEL, Min(1)] = 4
    """Heads of attention of a new GPT."""
    n_embd: Annotated[int, MODEL, Min(1)] = 128
    """Width of a new GPT."""
    block_size: Annotated[int, MODEL, Min(1)] = 256
    """Longest input of a new GPT, in tokens."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    offline: Annotated[bool, SWITCH, MODEL] = False
    """Use only what is already on this machine."""


@dataclass(frozen=True, kw_only=True)
class WarmUpOptions(Options, prefix="--warmup."):
    """Supervised training on problems with their answers, before any reinforcement."""

    steps: Annotated[int, TRAINING, Min(0)] = 0
    """Steps of the optimizer; 0 for none."""
    kind: Annotated[Literal["muon", "adamw"], TRAINING] = "adamw"
    """What matrices get: muon or adamw. Everything else gets AdamW."""
    batch_size: Annotated[int, TRAINING, Min(1)] = 128
    """Problems in a step."""
    problems: Annotated[int | None, TRAINING, Min(1)] = None
    """Different problems that are shown, again and again. Default: new ones in each step."""
    lr: Annotated[float, TRAINING, Positive()] = 1e-3
    """Peak learning rate: it rises over a tenth of the steps and falls with a cosine."""
    floor: Annotated[float, TRAINING, Between(0, 1)] = 0.0
    """Share of the peak rate that is left at the end; 1 for a rate that does not fall. A high rate ends in a flatter \
minimum, from which GRPO takes longer steps."""
    weight_decay: Annotated[float, TRAINING, NotNegative()] = 0.1
    """Of the matrices, decoupled."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Options, prefix="--rollout."):
    """How responses are sampled."""

    prompts: Annotated[int, ROLLOUTS, Min(1)] = 32
    """Prompts in a step."""
    responses: Annotated[int, ROLLOUTS, Min(1)] = 8
    """Responses to each prompt."""
    max_tokens: Annotated[int, ROLLOUTS, Min(1)] = 16
    """Longest response; longer ones are cut, and count as they are."""
    temperature: Annotated[float, ROLLOUTS, Positive()] = 1.0
    """Logits are divided by it."""
    top_k: Annotated[int | None, ROLLOUTS] = None
    """Sample from so many most likely tokens only."""
    top_p: Annotated[float | None, ROLLOUTS, Positive()] = None
    """Sample from the most likely tokens that have this mass."""
    rows: Annotated[int | None, ROLLOUTS, Min(1)] = None
    """Responses that are generated at once. Default: all of a step."""


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options, prefix="--loss."):
    """The objective."""

    advantages: Annotated[Literal["standardised", "centred", "leave_one_out"], TRAINING] = "standardised"
    """standardised: (r - mean) / sd of the group (GRPO); centred: r - mean (Dr. GRPO); leave_one_out: r - mean of the \
others (RLOO)."""
    average: Annotated[Literal["tokens", "responses", "constant"], TRAINING] = "tokens"
    """Sums over tokens are divided by: the tokens of the batch; each response's length, then the responses (GRPO); \
the responses times --rollout.max-tokens (Dr. GRPO)."""
    ratio: Annotated[Literal["token", "sequence"], TRAINING] = "token"
    """Importance ratio of each token, or of the response: the geometric mean of its tokens' (GSPO)."""
    clip_low: Annotated[float, TRAINING, Between(0, 1)] = 0.2
    """Ratios count down to 1 - clip_low."""
    clip_high: Annotated[float, TRAINING, NotNegative()] = 0.2
    """Ratios count up to 1 + clip_high."""
    entropy_bonus: Annotated[float, TRAINING, Check(math.isfinite, "use a finite number")] = 0.0
    """Coefficient of the entropy of each token's distribution, which is added to the objective."""


@dataclass(frozen=True, kw_only=True)
class KLOptions(Options, prefix="--kl."):
    """A penalty on the divergence from the policy after the warm-up."""

    beta: Annotated[float, TRAINING, NotNegative()] = 0.0
    """Its coefficient; 0: no reference is kept."""
    target: Annotated[float | None, TRAINING, Positive()] = None
    """Adapt beta so that the divergence is about this, nats a token (Ziegler et al. 2019). Default: beta is fixed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.beta == 0:
            raise UsageError(f"--kl.target {self.target} with --kl.beta 0: give the beta to start from")


@dataclass(frozen=True, kw_only=True)
class GRPOOptim(OptimConfig):
    """The optimizer."""

    kind: Literal["muon", "adamw"] = "adamw"
    """What matrices get: muon or adamw. Everything else gets AdamW; the probe splits the steps of AdamW alone."""
    lr: float = 3e-4
    """Peak learning rate, where a role has none of its own."""
    weight_decay: float = 0.0
    """Of the matrices, decoupled: every step takes away lr * weight_decay of them."""


@dataclass(frozen=True, kw_only=True)
class GRPORates(LRConfig):
    """The learning rate over the steps."""

    schedule: Literal["trapezoid", "cosine", "constant"] = "constant"
    """How the rate falls: trapezoid (warm-up, stable, decay), cosine or constant."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options, prefix="--probe."):
    """The entropy probe: what a step does to the entropy, on a batch of its own."""

    every: Annotated[int | None, EVALUATION, Min(1)] = None
    """Steps from one probed step to the next. Default: none is probed."""
    prompts: Annotated[int, EVALUATION, Min(3)] = 32
    """Prompts of the entropy batch."""
    responses: Annotated[int, EVALUATION, Min(1)] = 2
    """Responses to each."""
    same_prompts: Annotated[bool, SWITCH, EVALUATION] = False
    """Take the first prompts of the update, with responses of their own. Default: prompts that no update uses."""
    parts: Annotated[tuple[str, ...] | None, EVALUATION, Separated()] = None
    """Parts to run: measured, first_order, split, range, second_order, two_batch, kernel, u_statistic. Default: all \
that can be run but kernel and u_statistic."""
    kernel: Annotated[Literal["exact", "sketch"], EVALUATION] = "exact"
    """Of the part kernel: exact holds the gradient of every response in memory, in float64; sketch, from 32 random \
directions, is for models too large for that, and too noisy for the steps of AdamW."""
    budget: Annotated[float | None, EVALUATION, Positive()] = None
    """Stop adding parts at about so many forward passes."""
    attribution: Annotated[bool | None, EVALUATION] = None
    """Write what each token of the update did to the entropy, into attribution/. Default: where it can be known \
(AdamW, no controller), unless parts or budget is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribution and self.every is None:
            raise UsageError(
                "--probe.attribution without --probe.every: no step is probed; say every how many shall be"
            )


@dataclass(frozen=True, kw_only=True)
class GRPOOptions(Options):
    """Everything about a training but where it is written."""

    task: TaskOptions = field(default_factory=TaskOptions)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    warmup: WarmUpOptions = field(default_factory=WarmUpOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    kl: KLOptions = field(default_factory=KLOptions)
    optim: Annotated[GRPOOptim, TRAINING] = field(default_factory=GRPOOptim)
    lr: Annotated[GRPORates, TRAINING] = field(default_factory=GRPORates)
    controller: Annotated[dict[str, Any], JSON, TRAINING] = field(default_factory=dict)
    """What steers the entropy, as a mapping: {name: none} or that of a controller with its options."""
    steps: Annotated[int, TRAINING, Min(1)] = 100
    """Rollouts to learn from."""
    inner_epochs: Annotated[int, TRAINING, Min(1)] = 1
    """Steps of the optimizer on each rollout."""
    micro_batch: Annotated[int | None, TRAINING, Min(1)] = None
    """Responses in one forward pass; gradients of several are accumulated. Default: all."""
    clip: Annotated[float | None, TRAINING, Positive()] = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    seed: Annotated[int, TRAINING, Min(0)] = 0
    """Seed of the weights, the problems and the responses."""
    max_logp_gap: Annotated[float, TRAINING, Positive()] = 0.05
    """Stop where a log-probability stored when sampling differs by more nats from that of the training's forward."""
    precision: Annotated[Literal["fp32", "bf16"], WORK] = "fp32"
    """Of the training's and the rollouts' matrix products."""
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], WORK] = "auto"
    """What to train on."""
    eval_every: Annotated[int, EVALUATION, Min(1)] = 20
    """Steps from one evaluation on held-out problems to the next; also before the first and after the last."""
    eval_problems: Annotated[int, EVALUATION, Min(1)] = 200
    """Held-out problems, which are never trained on."""
    eval_sampled: Annotated[bool, SWITCH, EVALUATION] = False
    """Sample the answers to held-out problems as in training. Default: the most likely token each time."""
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    checkpoint_every: Annotated[int | None, OUTPUT, Min(1)] = None
    """Steps from one checkpoint to the next, which is what a killed run loses. Default: a twentieth of the steps."""
    keep: Annotated[int, OUTPUT, Min(1)] = 2
    """Checkpoints to keep, beside that of after the warm-up."""
    plots: Annotated[bool, OUTPUT] = True
    """Draw the run's entropy, its reward and what the probe found, into figures/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.responses < 2:
            raise UsageError(f"--rollout.responses {self.rollout.responses}: advantages within a group need at least 2")
        if self.probe.same_prompts and self.rollout.prompts < 3:
            raise UsageError(f"--probe.same-prompts with --rollout.prompts {self.rollout.prompts}: use at least 3")
        if self.probe.every is not None and (self.rollout.top_k is not None or self.rollout.top_p not in (None, 1.0)):
            raise UsageError(
                "--probe.every with --rollout.top-k or --rollout.top-p: the probe needs the whole vocabulary"
            )


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GRPOOptions):
    """Options of `fluxentropy grpo`."""

    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""
