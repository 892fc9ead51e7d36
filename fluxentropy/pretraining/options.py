"""Options of `fluxentropy pretrain`, section by section.

Annotations are evaluated here, not kept as text, as in `config/options.py`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from fluxentropy.config.checks import BELOW_ONE, Between, Check, Min, NotNegative, Options
from fluxentropy.config.options import INPUT, MODEL, OUTPUT, SWITCH, WORK
from fluxentropy.errors import UsageError
from fluxentropy.schedules.options import BudgetOptions


def constant(tokens: float, budget: float, *, warmup: float = 0.0) -> float:
    """The peak rate after a warm-up.

    >>> [constant(tokens, 100, warmup=0.1) for tokens in (0, 5, 10, 100)]
    [0.0, 0.5, 1.0, 1.0]
    """
    u = _progress(tokens, budget)
    return u / warmup if u < warmup else 1.0


def cosine(tokens: float, budget: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Half a cosine from the peak rate to the floor.

    >>> [round(cosine(tokens, 100, warmup=0.2, floor=0.1), 3) for tokens in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    u = _progress(tokens, budget)
    if u < warmup:
        return u / warmup
    done = (u - warmup) / (1 - warmup) if warmup < 1 else 0.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def trapezoid(tokens: float, budget: float, *, warmup: float = 0.0, decay: float = 0.2, floor: float = 0.0) -> float:
    """Warm-up, stable, decay.

    >>> [round(trapezoid(tokens, 100, warmup=0.1, decay=0.4, floor=0.1), 3) for tokens in (0, 5, 10, 60, 80, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.55, 0.1]
    """
    u = _progress(tokens, budget)
    if u < warmup:
        return u / warmup
    return floor + (1 - floor) * (1 - u) / decay if u > 1 - decay else 1.0


def _progress(tokens: float, budget: float) -> float:
    return min(max(tokens / budget, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class LRConfig(Options, prefix=""):
    """A learning-rate schedule."""

    schedule: Literal["trapezoid", "cosine", "constant"] = "trapezoid"
    """How the rate falls: trapezoid (warm-up, stable, decay), cosine or constant."""
    warmup: Annotated[float, Between(0, 1, "share")] = 0.02
    """Share of the token budget over which the rate rises from 0."""
    decay: Annotated[float, Between(0, 1, "share")] = 0.4
    """Share of the token budget over which the trapezoid falls."""
    floor: Annotated[float, Between(0, 1, "share")] = 0.0
    """The lowest rate, as a share of the peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "trapezoid" and self.warmup + self.decay > 1:
            raise UsageError(
                f"warmup {self.warmup} and decay {self.decay} are more than the whole budget: let them sum to 1 or less"
            )

    def factor(self, tokens: float, budget: float) -> float:
        """The factor of every peak rate after `tokens` of `budget` tokens.

        >>> LRConfig(schedule="cosine", warmup=0.0).factor(50, 100)
        0.5
        """
        if self.schedule == "constant":
            return constant(tokens, budget, warmup=self.warmup)
        if self.schedule == "cosine":
            return cosine(tokens, budget, warmup=self.warmup, floor=self.floor)
        return trapezoid(tokens, budget, warmup=self.warmup, decay=self.decay, floor=self.floor)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Options, prefix=""):
    """Peak learning rates and the rest of an optimizer. Weight decay is for the matrices of the blocks alone.

    Errors: UsageError names a number out of its range.
    """

    kind: Literal["muon", "adamw"] = "muon"
    """What the matrices of the blocks get: muon or adamw. Everything else gets AdamW."""
    lr: Annotated[float, NotNegative()] = 3e-3
    """Peak learning rate, where a role has none of its own."""
    matrix_lr: Annotated[float | None, NotNegative()] = None
    """Of the matrices of the blocks."""
    embedding_lr: Annotated[float | None, NotNegative()] = None
    """Of the embeddings, a tied head among them."""
    head_lr: Annotated[float | None, NotNegative()] = None
    """Of a head of its own."""
    gain_lr: Annotated[float | None, NotNegative()] = None
    """Of gains and biases."""
    weight_decay: Annotated[float, NotNegative()] = 0.1
    """Of the matrices, decoupled: every step takes away lr * weight_decay of them."""
    momentum: Annotated[float, BELOW_ONE] = 0.95
    """Of Muon, after Nesterov."""
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Size of Muon's updates: that of AdamW's, so that both share learning rates (Liu et al. 2025, arXiv:2502.16982), \
or sqrt(max(1, rows / columns))."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    """Of AdamW: decay of the mean gradient."""
    beta2: Annotated[float, BELOW_ONE] = 0.95
    """Of AdamW: decay of the mean squared gradient."""
    eps: Annotated[float, NotNegative()] = 1e-8
    """Of AdamW: added to the root of the mean squared gradient."""
    fused: bool = False
    """AdamW in one kernel: faster on GPUs."""


TRAINING = Parameter(group=Group("Training", sort_key=2.7))
EVALUATION = Parameter(group=Group("Evaluation", sort_key=3.5))


@dataclass(frozen=True, kw_only=True)
class ArchitectureOptions:
    """The model; null stands for what the preset, or the blocks, say."""

    preset: Annotated[Literal["modern", "gpt2"], MODEL] = "modern"
    """modern: rotary positions, RMSNorm, ReLU^2; gpt2: that of GPT-2."""
    n_layer: Annotated[int, MODEL] = 12
    """Blocks."""
    n_head: Annotated[int, MODEL] = 12
    """Heads of attention."""
    n_embd: Annotated[int, MODEL] = 768
    """Width."""
    n_kv_head: Annotated[int | None, MODEL] = None
    """Heads of keys and values. Default: n_head."""
    n_hidden: Annotated[int | None, MODEL] = None
    """Width of the MLP. Default: 4 n_embd."""
    vocab_size: Annotated[int | None, MODEL] = None
    """Default: what the tokenizer of the blocks has."""
    vocab_multiple: Annotated[int, MODEL] = 64
    """Rows of the embedding and the head are padded to a multiple of this."""
    block_size: Annotated[int | None, MODEL] = None
    """Longest input, in tokens. Default: the length of the blocks."""
    soft_cap: Annotated[float | None, MODEL] = None
    """Of the logits. Default: that of the preset."""
    value_embeddings: Annotated[bool, Parameter(show=False)] = False
    """There are none any more; the name stands in the files and the identities of earlier runs."""
    tied: Annotated[bool | None, Parameter(negative=()), MODEL] = None
    """Use the embedding as the head. Default: what the preset does."""
    document_masks: Annotated[bool, SWITCH, MODEL] = False
    """Attention does not cross the borders of documents."""

    def __post_init__(self) -> None:
        if self.value_embeddings:
            raise UsageError("model.value_embeddings true: there are none any more: leave the option out")


@dataclass(frozen=True, kw_only=True)
class AverageOptions(Options, prefix="--average."):
    """An average of the weights, validated and exported beside the last ones."""

    kind: Annotated[Literal["none", "ema", "last"], TRAINING] = "none"
    """none, ema (exponential), or last (the mean of the last k)."""
    decay: Annotated[float, TRAINING, BELOW_ONE] = 0.999
    """Of the exponential average, for each set of weights. It is warmed up: after n of them it reaches back over \
1 + n / 9, until that is 1 / (1 - decay)."""
    k: Annotated[int, TRAINING] = 5
    """Number of weights in the mean of the last ones."""
    every: Annotated[int, TRAINING] = 1
    """Steps from one set of weights to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.every < 1:
            raise UsageError(f"--average.k {self.k} --average.every {self.every}: use 1 or more")


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Multiple-choice questions that the model answers while it is trained."""

    data: Annotated[str | None, EVALUATION] = None
    """File of questions, as for `fluxentropy hellaswag`. Default: none are asked."""
    task: Annotated[str, EVALUATION] = "hellaswag"
    """How records become questions."""
    limit: Annotated[int, EVALUATION] = 200
    """Number of questions."""
    every: Annotated[int | None, EVALUATION] = None
    """Tokens from one round to the next. Default: only after the last step."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(BudgetOptions):
    """How a model is trained: all but the blocks and the place of one run, so that many runs can share it."""

    validation: Annotated[Path | None, INPUT] = None
    """Another folder of bins to validate on, with the same tokenizer and length. Default: blocks held out of --bins."""
    holdout: Annotated[int, INPUT, Min(0)] = 16
    """Blocks at the end of each bin that are kept for validation, without --validation."""
    eval_blocks: Annotated[int | None, EVALUATION, Min(1)] = None
    """Blocks at the end of each bin of --validation that are validated on. Default: all."""
    model: ArchitectureOptions = field(default_factory=ArchitectureOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lr: LRConfig = field(default_factory=LRConfig)
    average: AverageOptions = field(default_factory=AverageOptions)
    questions: QuestionOptions = field(default_factory=QuestionOptions)
    clip: Annotated[float | None, TRAINING, Check(lambda c: c > 0, "use a number above 0, or null for none")] = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    micro_batch: Annotated[int | None, TRAINING, Min(1)] = None
    """Blocks in one forward pass of one device; gradients of several are accumulated. Default: all of its share."""
    short_start: Annotated[int | None, TRAINING, Min(1)] = None
    """Length of the pieces that blocks are cut into at first: sequence-length warm-up. Default: whole blocks."""
    short_tokens: Annotated[int, TRAINING, Min(0)] = 0
    """Tokens over which the pieces grow to whole blocks."""
    model_seed: Annotated[int | None, TRAINING, Min(0)] = None
    """Seed of the initial weights. Default: --seed."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], WORK] = "auto"
    """auto: bf16 on GPUs that have it, else fp32."""
    compile: Annotated[bool, SWITCH, WORK] = False
    """Compile the model with torch.compile."""
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], WORK] = "auto"
    """What to train on."""
    devices: Annotated[int, WORK, Min(1)] = 1
    """Devices that share each batch."""
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], WORK] = "auto"
    """How several devices work together; fsdp shards the model, and goes with --optim.kind adamw."""
    workers: Annotated[int, WORK, Min(0)] = 0
    """Processes that read blocks."""
    eval_every: Annotated[int | None, EVALUATION, Min(1)] = None
    """Tokens from one validation to the next. Default: a tenth of the budget."""
    eval_batch: Annotated[int, EVALUATION, Min(1)] = 16
    """Blocks in a forward pass of the validation."""
    log_every: Annotated[int, OUTPUT, Min(1)] = 10
    """Steps from one row of metrics.csv to the next."""
    checkpoint_every: Annotated[int | None, OUTPUT, Min(1)] = None
    """Steps from one checkpoint to the next, which is what a killed run loses. Default: a twentieth of the steps."""
    keep: Annotated[int, OUTPUT, Min(1)] = 2
    """Checkpoints to keep."""
    loggers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], OUTPUT] = ()
    """Where metrics go beside metrics.csv."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy == "fsdp" and self.optim.kind == "muon":
            raise UsageError(
                "--strategy fsdp with --optim.kind muon: Muon needs whole matrices; use --optim.kind adamw"
            )
        if self.strategy == "fsdp" and self.average.kind == "ema":
            raise UsageError(
                "--strategy fsdp with --average.kind ema: the average is of whole weights; use --average.kind none"
            )
        if self.validation is None and self.eval_blocks is not None:
            raise UsageError(f"--eval-blocks {self.eval_blocks} is for --validation; without it, use --holdout")
        if self.validation is None and self.holdout == 0:
            raise UsageError("--holdout 0: there is nothing to validate on; give --validation, or hold blocks out")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingOptions):
    """Options of `fluxentropy pretrain`."""

    bins: Annotated[Path, INPUT]
    """Folder that bin wrote with --tokenize."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""
    allow_changed_bins: Annotated[bool, SWITCH, OUTPUT] = False
    """Go on from a checkpoint that was trained on other blocks or under another schedule."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Options of `fluxentropy ledger`."""

    run: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of pretrain."""
    out: Annotated[Path | None, OUTPUT] = None
    """Parquet file to write. Default: documents.parquet in the run directory."""
