"""The options of every command: frozen dataclasses, read from flags and YAML, written back as YAML.

The text under each field is what `--help` shows. A field `max_tokens` is the flag `--max-tokens` and the YAML key
`max_tokens`; a field `lr` of a nested dataclass `optim` is `--optim.lr`, and `lr` in the mapping `optim`. What flags
and YAML leave open gets the defaults of its own class, so a nested field takes `default_factory=ItsClass`.

    >>> config = SortConfig(run="runs/web", out=Path("sorted.parquet"), limit=3)
    >>> print(to_yaml(config), end="")
    run: runs/web
    by: entropy_mean
    scores: null
    descending: false
    out: sorted.parquet
    limit: 3
    workers: 1
    engine: local
    address: null
    memory: 1GB
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fluxentropy.compareoptions import CompareConfig, GRPOCompareConfig, GRPOStudyConfig
from fluxentropy.errors import UsageError
from fluxentropy.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SWITCH,
    WORK,
    AgreementOptions,
    EngineOptions,
    ModelOptions,
    PlaceOptions,
    ScoredOptions,
    ScoringOptions,
    SourceOptions,
    at_least,
    parse_bytes,
    separated,
    suffix_of,
)
from fluxentropy.pretrainoptions import PretrainConfig
from fluxentropy.rl.grpooptions import GRPOConfig
from fluxentropy.scheduleoptions import BudgetOptions
from fluxentropy.yamlfile import to_yaml

__all__ = [
    "AgreeConfig",
    "BinConfig",
    "CompareConfig",
    "CountConfig",
    "DemoConfig",
    "DiagnoseConfig",
    "GRPOCompareConfig",
    "GRPOConfig",
    "GRPOStudyConfig",
    "HellaswagConfig",
    "LedgerConfig",
    "ModelsConfig",
    "PlanConfig",
    "PretrainConfig",
    "ReportConfig",
    "ScoreConfig",
    "SortConfig",
    "TokensConfig",
    "VerifyConfig",
    "ZooConfig",
    "parse_bytes",
    "to_yaml",
]

# --- one a command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(EngineOptions, ScoringOptions, ModelOptions, SourceOptions):
    """Options of `fluxentropy score`."""

    token_counts: Annotated[Path | None, INPUT] = None
    """File of `fluxentropy count`: how often each token occurs, for the scores that ask for it."""
    gpus_per_worker: Annotated[float | None, WORK] = None
    """GPUs of each Ray actor, or a share of one: 0.5 puts two actors on a GPU."""
    rank: Annotated[str | None, WORK] = None
    """R/N, with R from 0 to N - 1: score every N-th part, one of N processes with the same --out on any machines. The \
same command without --rank then completes the run."""
    dry_run: Annotated[bool, SWITCH, WORK] = False
    """Check everything and show what would be done, without scoring."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""

    def __post_init__(self) -> None:
        SourceOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        ScoringOptions.__post_init__(self)
        EngineOptions.__post_init__(self)
        if self.token_counts is not None and not self.scores:
            raise UsageError(f"--token-counts {self.token_counts} without --scores: name the scores to make of them")
        if self.gpus_per_worker is not None and not (self.engine == "ray" and self.gpus_per_worker > 0):
            raise UsageError(f"--gpus-per-worker {self.gpus_per_worker:g}: use a number above 0, with --engine ray")
        if self.rank is not None:
            rank, ranks = self.share
            if not rank < ranks:
                raise UsageError(f"--rank {self.rank}: use R/N with R from 0 to N - 1, such as 0/4")
            if self.overwrite or "-" in self.sources or self.dry_run:
                other = "--overwrite" if self.overwrite else "--dry-run" if self.dry_run else "standard input"
                raise UsageError(
                    f"--rank {self.rank} with {other}: the ranks share one run, so this is for none of them"
                )

    @property
    def share(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        if self.rank is None:
            return 0, 1
        rank, _, ranks = self.rank.partition("/")
        return (int(rank), int(ranks)) if rank.isdigit() and ranks.isdigit() else (0, 0)


@dataclass(frozen=True, kw_only=True)
class CountConfig(ModelOptions, SourceOptions):
    """Options of `fluxentropy count`."""

    limit: Annotated[int | None, INPUT] = None
    """Stop after this many texts."""
    offline: Annotated[bool, SWITCH, MODEL] = False
    """Use only what is already on this machine."""
    out: Annotated[Path, OUTPUT]
    """File to write, .parquet: token and count."""

    def __post_init__(self) -> None:
        SourceOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        at_least(1, self, "limit")
        suffix_of(self, "out", (".parquet",))


@dataclass(frozen=True, kw_only=True)
class ZooConfig(AgreementOptions, ScoringOptions, SourceOptions):
    """Options of `fluxentropy zoo`."""

    zoo: Annotated[Path, MODEL]
    """YAML file of the models, or the name of one that comes with the package: offline, small, published."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a run directory for each model, and the comparison. The same command again resumes it."""

    def __post_init__(self) -> None:
        SourceOptions.__post_init__(self)
        ScoringOptions.__post_init__(self)
        AgreementOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class AgreeConfig(AgreementOptions, ScoredOptions):
    """Options of `fluxentropy agree`."""

    out: Annotated[Path, OUTPUT]
    """Folder to write."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds another comparison."""

    def __post_init__(self) -> None:
        ScoredOptions.__post_init__(self)
        AgreementOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Options of `fluxentropy models`."""

    zoo: Annotated[Path | None, INPUT] = None
    """YAML file of models, or the name of one that comes with the package. Default: all that come with it."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig(PlaceOptions, ModelOptions, SourceOptions):
    """Options of `fluxentropy tokens`."""

    limit: Annotated[int, INPUT] = 8
    """Number of texts to show."""
    top_k: Annotated[int, OUTPUT] = 5
    """Likely alternatives to show for each token."""
    out: Annotated[Path, OUTPUT]
    """HTML file to write; a CSV with the same numbers is put beside it."""

    def __post_init__(self) -> None:
        SourceOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        PlaceOptions.__post_init__(self)
        at_least(1, self, "limit")
        at_least(0, self, "top_k")
        suffix_of(self, "out", (".html", ".htm"))


@dataclass(frozen=True, kw_only=True)
class HellaswagConfig(PlaceOptions, ModelOptions):
    """Options of `fluxentropy hellaswag`."""

    data: Annotated[str | None, INPUT] = None
    """Questions with ctx, endings and label: .jsonl[.gz|.zst], .parquet, .arrow, a folder or glob, - for JSONL on \
stdin, or hf://datasets/OWNER/NAME[/CONFIG][:SPLIT]. Default: the task's own data set on the Hub."""
    task: Annotated[str, INPUT] = "hellaswag"
    """How records become questions: hellaswag, arc_easy, arc_challenge, piqa, winogrande, or a YAML file."""
    limit: Annotated[int | None, INPUT] = None
    """Stop after this many questions."""
    max_tokens: Annotated[int | None, MODEL] = None  # type: ignore[assignment]
    """Longest context with one ending, in tokens; longer ones lose their beginning. Default: the model's window."""
    batch_tokens: Annotated[int | None, WORK] = None
    """Tokens in a batch, padding included. Default: what fits the device."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        PlaceOptions.__post_init__(self)
        for name in ("limit", "batch_tokens"):
            at_least(1, self, name)


@dataclass(frozen=True, kw_only=True)
class SortConfig:
    """Options of `fluxentropy sort`."""

    run: Annotated[str, INPUT] = field(kw_only=False)
    """Run directory of `score`."""
    by: Annotated[str, INPUT] = "entropy_mean"
    """Column to sort by, or an expression of columns, such as "entropy_mean - 0.5*varentropy_mean" or "z(a) + z(b)"."""
    scores: Annotated[str | None, INPUT] = None
    """Another run that holds --by, or the NAME of each NAME_joined in it, for the same texts; joined by id."""
    descending: Annotated[bool, SWITCH, INPUT] = False
    """Largest first."""
    out: Annotated[Path, OUTPUT]
    """File to write, .parquet or .jsonl."""
    limit: Annotated[int | None, OUTPUT] = None
    """Write only the first rows of the order."""
    workers: Annotated[int, WORK] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
    memory: Annotated[str, WORK] = "1GB"
    """Memory that a worker sorts in; larger corpora are sorted on disk."""

    def __post_init__(self) -> None:
        at_least(1, self, "limit")
        at_least(1, self, "workers")
        parse_bytes(self.memory)
        suffix_of(self, "out", (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"))


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """Options of `fluxentropy diagnose`."""

    table: Annotated[str, INPUT] = field(kw_only=False)
    """Table of items (.csv, .tsv, .parquet, .arrow, .jsonl[.gz|.zst]), a folder of such files, or a run directory."""
    target: Annotated[str, INPUT]
    """Column to predict: True and False, yes and no, or 1 and 0."""
    metrics: Annotated[tuple[str, ...] | None, INPUT] = None
    """Columns to predict it from, separated by commas. Default: every column with a known metric. sqrt_varentropy is \
made from varentropy where the table lacks it."""
    pairs: Annotated[tuple[str, ...] | None, WORK] = None
    """Pairs of metrics to fit together, as a+b and separated by commas; or all, or none. Default: each entropy with \
the varentropy of its kind."""
    balance: Annotated[bool, SWITCH, WORK] = False
    """Use a random sample of the larger class, as large as the smaller one."""
    bootstrap: Annotated[int, WORK] = 2000
    """Samples of the rows that the confidence interval of the AUC rests on; 0 for none."""
    folds: Annotated[int, WORK] = 10
    """Folds of the cross-validation."""
    seed: Annotated[int, WORK] = 0
    """Seed of the balancing, the bootstrap and the folds."""
    out: Annotated[Path, OUTPUT]
    """Folder to write."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds another diagnosis."""

    def __post_init__(self) -> None:
        at_least(0, self, "bootstrap")
        at_least(2, self, "folds")
        at_least(0, self, "seed")
        for name in ("metrics", "pairs"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, separated(given) or None)


BY = ("entropy_mean",)  # what is binned by where nothing is said


@dataclass(frozen=True, kw_only=True)
class BinConfig:
    """Options of `fluxentropy bin`."""

    run: Annotated[str, INPUT] = field(kw_only=False)
    """Run directory of score, or of a zoo's consensus, or Parquet files with scores."""
    by: Annotated[tuple[str, ...], INPUT] = BY
    """Column to bin by, or an expression of columns, such as "entropy_mean - 0.5*varentropy_mean" or "z(a) + z(b)"; \
two, separated by a comma, with --grid."""
    bins: Annotated[int | None, INPUT] = None
    """So many bins of equal counts."""
    quantiles: Annotated[tuple[str, ...] | None, INPUT] = None
    """Edges at these percentiles, such as 10,25,50,75,90."""
    grid: Annotated[str | None, INPUT] = None
    """Bins of two columns, such as 4x4."""
    edges: Annotated[tuple[str, ...] | None, INPUT] = None
    """Edges at these values, or those of another corpus: its bins.json."""
    weight: Annotated[str | None, INPUT] = None
    """Column of whole numbers, such as n_tokens: bins of equal sums of it instead of equal counts."""
    scores: Annotated[str | None, INPUT] = None
    """Another run that holds --by for the same texts; joined by id. If both have NAME, it is NAME_joined, also in an \
expression."""
    order: Annotated[Literal["shuffle", "score", "source"], OUTPUT] = "shuffle"
    """Order of the rows inside a bin."""
    seed: Annotated[int, OUTPUT] = 0
    """Seed of the shuffle."""
    shard_size: Annotated[str, OUTPUT] = "256MB"
    """Size of a shard, before compression."""
    tokenize: Annotated[str | None, OUTPUT] = None
    """Also pack the texts as tokens into blocks to train on, with the tokenizer of this zoo name, Hub id, folder or \
.gguf file, or with bytes."""
    block_length: Annotated[int, OUTPUT] = 1024
    """Tokens that a block predicts, with --tokenize."""
    out: Annotated[Path, OUTPUT]
    """Folder to write. The same command again resumes it."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds bins."""
    workers: Annotated[int, WORK] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
    memory: Annotated[str, WORK] = "256MB"
    """Memory that a worker sorts in; larger bins are sorted on disk."""

    def __post_init__(self) -> None:
        for name in ("by", "edges", "quantiles"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, separated([str(item) for item in given]))
        ways = [name for name in ("bins", "quantiles", "grid", "edges") if getattr(self, name)]
        if len(ways) != 1:
            said = " and ".join(f"--{way}" for way in ways) or "none"
            raise UsageError(f"how to cut: give one of --bins, --quantiles, --grid and --edges, here is {said}")
        at_least(1, self, "workers")
        at_least(1, self, "block_length")
        at_least(0, self, "seed")
        if self.tokenize == "":
            raise UsageError("--tokenize is empty: give a zoo name, a Hub id, a folder, a .gguf file, or bytes")
        if parse_bytes(self.memory) < 2**24:
            raise UsageError(f"--memory {self.memory}: use 16 MiB or more")
        parse_bytes(self.shard_size, "--shard-size")
        if self.edges and self.weight:
            raise UsageError("--weight with --edges: the edges are given, so nothing is weighted; leave one out")
        if self.grid is not None:
            if len(self.by) != 2 or len(self.grid_shape) != 2:
                raise UsageError(
                    f"--grid {self.grid} --by {','.join(self.by)}: give two columns, and a grid such as 4x4"
                )
        elif len(self.by) != 1 and not self.edges_file:
            raise UsageError(f"--by {','.join(self.by)}: two columns need --grid, such as --grid 4x4")

    def numbers(self, name: str) -> list[float]:
        """The numbers in `edges` or `quantiles`; UsageError names what is none."""
        try:
            return [float(item) for item in getattr(self, name)]
        except ValueError as error:
            raise UsageError(f"--{name} {','.join(getattr(self, name))}: {error}") from error

    @property
    def edges_file(self) -> Path | None:
        """The bins.json that `edges` names, if it does."""
        named = self.edges is not None and len(self.edges) == 1 and self.edges[0].endswith(".json")
        return Path(self.edges[0]) if self.edges and named else None

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Bins of each axis of `grid`."""
        parts = (self.grid or "").lower().split("x")
        return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Options of `fluxentropy verify`."""

    dir: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of score, bin, pretrain, grpo, compare, zoo, agree or hellaswag."""
    repair: Annotated[bool, SWITCH, WORK] = False
    """Make again what is damaged or missing, and nothing else."""
    workers: Annotated[int, WORK] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""

    def __post_init__(self) -> None:
        at_least(1, self, "workers")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(BudgetOptions):
    """Options of `fluxentropy schedule`."""

    bins: Annotated[Path, INPUT]
    """Folder that bin wrote with --tokenize."""
    out: Annotated[Path, OUTPUT] = Path("schedule")
    """Folder for the picture and the numbers; those of an earlier plan are replaced."""


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Options of `fluxentropy ledger`."""

    run: Annotated[Path, INPUT] = field(kw_only=False)
    """Run directory of pretrain."""
    out: Annotated[Path | None, OUTPUT] = None
    """Parquet file to write. Default: documents.parquet in the run directory."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of `fluxentropy report`."""

    runs: Annotated[tuple[str, ...], INPUT] = field(kw_only=False)
    """Run directories of any command, tables of `tokens` (.csv), or folders that hold such."""
    title: Annotated[str, OUTPUT] = "fluxentropy report"
    """Title of the page."""
    out: Annotated[Path, OUTPUT] = Path("report.html")
    """HTML file to write."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("no run: name run directories, or a folder that holds some")
        suffix_of(self, "out", (".html", ".htm"))


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Options of `fluxentropy demo`."""

    out: Annotated[Path, OUTPUT] = Path("demo")
    """Folder to write."""
    model: Annotated[str, MODEL] = "smollm2-135m-instruct"
    """Name from the zoo, Hub id, local folder, or .gguf file."""
    passages: Annotated[int, INPUT] = 200
    """Number of passages to score."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a demo."""

    def __post_init__(self) -> None:
        at_least(1, self, "passages")
