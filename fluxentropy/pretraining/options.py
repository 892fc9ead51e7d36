"""Options of `fluxentropy pretrain`, section by section.

Annotations are evaluated here, not kept as text, as in `config/options.py`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from fluxentropy.config.checks import BELOW_ONE, Between, Check, Min, NotNegative, Options, Separated
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


def _are_decays(value: float | tuple[float, ...]) -> bool:
    several = value if isinstance(value, tuple) else (value,)
    return 0 < len(several) == len(set(several)) and all(map(BELOW_ONE.accepts, several))


DECAYS = Check(_are_decays, "use a number from 0 to below 1, or several, each once")


@dataclass(frozen=True, kw_only=True)
class AverageOptions(Options, prefix="--average."):
    """An average of the weights, validated and exported beside the last ones."""

    kind: Annotated[Literal["none", "ema", "last"], TRAINING] = "none"
    """none, ema (exponential), or last (the mean of the last k)."""
    decay: Annotated[float | tuple[float, ...], TRAINING, DECAYS] = 0.999
    """Of the exponential average, for each set of weights. It is warmed up: after n of them it reaches back over \
1 + n / 9, until that is 1 / (1 - decay). Given several times, it makes an average each, named by its decay."""
    k: Annotated[int, TRAINING] = 5
    """Number of weights in the mean of the last ones."""
    every: Annotated[int, TRAINING] = 1
    """Steps from one set of weights to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.every < 1:
            raise UsageError(f"--average.k {self.k} --average.every {self.every}: use 1 or more")
        if isinstance(self.decay, tuple) and len(self.decay) == 1:
            object.__setattr__(self, "decay", self.decay[0])

    def suffixes(self) -> dict[str, float]:
        """What the columns of each average end with, and its decay (nothing but a name, where the last are averaged).

        >>> AverageOptions(kind="ema").suffixes(), AverageOptions(kind="ema", decay=(0.9, 0.99)).suffixes()
        ({'_averaged': 0.999}, {'_averaged_0.9': 0.9, '_averaged_0.99': 0.99})
        """
        if self.kind == "none":
            return {}
        if self.kind == "ema" and isinstance(self.decay, tuple):
            return {f"_averaged_{decay!r}": decay for decay in self.decay}
        return {"_averaged": self.decay if isinstance(self.decay, float) else 0.0}


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


def _are_steps(values: tuple[float, ...]) -> bool:
    return all(0 < value < 1 or (value >= 1 and float(value).is_integer()) for value in values)


STEPS = Check(_are_steps, "use shares between 0 and 1, or whole numbers of steps")


def step_at(place: float, steps: int) -> int:
    """The step of a share of the `steps`, below 1, or of a number of a step.

    >>> step_at(0.6, 20), step_at(0.001, 20), step_at(5.0, 20)
    (12, 1, 5)
    """
    return max(round(place * steps), 1) if place < 1 else int(place)


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
    checkpoint_at: Annotated[tuple[float, ...], OUTPUT, STEPS] = ()
    """Checkpoints to keep for good, beside those: shares of the steps, such as 0.6, or numbers of steps, from 1 on."""
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
    from_: Annotated[str | None, INPUT] = None
    """Weights to start from: RUN, a run of pretrain at its last checkpoint, RUN@STEP, or a model folder of \
transformers, such as RUN/export. Default: new ones. It is a new training, from step 0 of its own schedule, budget and \
rates, unless --branch."""
    keep_optimizer: Annotated[bool, SWITCH, INPUT] = False
    """Take the optimizer's state over from the run of --from, too."""
    branch: Annotated[bool, SWITCH, INPUT] = False
    """Go on with the run of --from, after its step: the same bins, schedule, seed and budget, with its optimizer's \
state, but with other rates, averages or clipping, as the options say."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""
    allow_changed_bins: Annotated[bool, SWITCH, OUTPUT] = False
    """Go on from a checkpoint that was trained on other blocks or under another schedule."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("branch", "keep_optimizer"):
            if getattr(self, name) and self.from_ is None:
                raise UsageError(f"{self.flag(name)} is for --from: name the run to start from")


@dataclass(frozen=True, kw_only=True)
class AverageConfig(Options, digits="g"):
    """Options of `fluxentropy average`."""

    run: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of pretrain, with checkpoints: those of --keep and --checkpoint-at."""
    last: Annotated[int | None, MODEL, Min(1)] = None
    """The plain mean of this many checkpoints, the last ones."""
    ema: Annotated[float | None, MODEL, BELOW_ONE] = None
    """An exponential average of all checkpoints with this decay, from the first to the last, warmed up as that of \
--average.kind ema."""
    weights: Annotated[tuple[str | float, ...] | None, MODEL, Separated(empty=None)] = None
    """A weight for each of as many checkpoints, the last ones, from the earliest on, or for each of --steps, \
separated by commas; they sum to 1."""
    steps: Annotated[tuple[str | int, ...] | None, MODEL, Separated(empty=None)] = None
    """Steps of the checkpoints to choose from, separated by commas. Default: all that are there."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a model of transformers, as export/ is, and average.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("last", "ema", "weights") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(f"{' '.join(map(self.flag, given)) or 'no weights'}: give one of --last, --ema, --weights")
        try:
            object.__setattr__(self, "weights", self.weights and tuple(map(float, self.weights)))
            object.__setattr__(self, "steps", self.steps and tuple(map(int, self.steps)))
        except ValueError as error:
            raise UsageError(f"--weights and --steps take numbers separated by commas: {error}") from error
        if self.weights is not None and not abs(sum(map(float, self.weights)) - 1) < 1e-6:
            raise UsageError(f"--weights: they sum to {sum(map(float, self.weights)):g}: let them sum to 1")
        if self.steps is not None and len(set(self.steps)) < len(self.steps):
            raise UsageError(f"--steps {','.join(map(str, self.steps))}: name each step once")
        if self.steps is not None and self.weights is not None and len(self.steps) == len(self.weights):
            steps, weights = zip(*sorted(zip(self.steps, self.weights, strict=True)), strict=True)
            object.__setattr__(self, "weights", weights)
            object.__setattr__(self, "steps", steps)


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Options of `fluxentropy ledger`."""

    run: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of pretrain."""
    out: Annotated[Path | None, OUTPUT] = None
    """Parquet file to write. Default: documents.parquet in the run directory."""
