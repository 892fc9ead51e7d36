"""Options of `fluxentropy score` and `fluxentropy count`. The text under a field is its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fluxentropy.config.checks import Min, Separated, Suffix
from fluxentropy.config.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SWITCH,
    WORK,
    EngineOptions,
    ModelOptions,
    PlaceOptions,
    SourceOptions,
)
from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(PlaceOptions):
    """How texts are scored: what `score` and `zoo` share."""

    window: Annotated[Literal["first", "sliding"], MODEL] = "first"
    """What happens to longer texts: first scores the first --max-tokens, sliding scores all of it in windows."""
    stride: Annotated[int | None, MODEL, Min(1)] = None
    """Tokens between the starts of two windows, with --window sliding. Default: half of --max-tokens."""
    limit: Annotated[int | None, INPUT, Min(1)] = None
    """Stop after this many texts."""
    on_error: Annotated[Literal["fail", "skip"], INPUT] = "fail"
    """What happens to rows that cannot be read: stop and name the row, or count them and go on."""
    batch_tokens: Annotated[int | None, WORK, Min(1)] = None
    """Tokens in a batch, padding included. Default: what fits the device."""
    threads: Annotated[int | None, WORK, Min(1)] = None
    """Threads on a CPU, each with texts of its own. Default: one for each core that this process may use. The numbers \
do not depend on it."""
    part_tokens: Annotated[int | None, WORK, Min(1)] = None
    """Tokens in an output part, which is what a killed run loses at most. Default: automatic."""
    scores: Annotated[tuple[str, ...], OUTPUT, Separated()] = ()
    """More scores, separated by commas: entropy_normalised, entropy_slope, mink, minkpp, zlib_ratio, or all of these; \
of the text alone gzip_ratio, mtld, flesch, word_frequency, mean_word_length; and of `score` with --token-counts \
dcpdd, unigram_surprisal."""
    text: Annotated[bool, OUTPUT] = True
    """Keep the text in the scores."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores:
            from fluxentropy.scoring.scores import NO_MODEL, chosen_extra

            counts, model = getattr(self, "token_counts", None) is not None, getattr(self, "model", None) != NO_MODEL
            object.__setattr__(self, "scores", chosen_extra(self.scores, counts=counts, model=model))
        if self.window == "sliding" and self.max_tokens < 2:
            raise UsageError("--window sliding with --max-tokens 1: windows need at least 2 tokens")
        if self.stride is not None and self.window != "sliding":
            raise UsageError(f"--stride {self.stride} with --window {self.window}: add --window sliding, or drop it")
        if self.stride is not None and self.stride > self.max_tokens:
            raise UsageError(
                f"--stride {self.stride} is larger than --max-tokens {self.max_tokens}, which would leave tokens "
                f"unscored: use at most {self.max_tokens}"
            )


# --- one a command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(EngineOptions, ScoringOptions, ModelOptions, SourceOptions):
    """Options of `fluxentropy score`."""

    token_counts: Annotated[Path | None, INPUT] = None
    """File of `fluxentropy count`: how often each token occurs, for the scores that ask for it."""
    word_table: Annotated[Path | None, INPUT] = None
    """Table of words and their counts, .parquet, .csv or .tsv, for word_frequency. Default: those of the sources \
themselves."""
    rank: Annotated[str | None, WORK] = None
    """R/N, with R from 0 to N - 1: score every N-th part, one of N processes with the same --out on any machines. The \
same command without --rank then completes the run."""
    dry_run: Annotated[bool, SWITCH, WORK] = False
    """Check everything and show what would be done, without scoring."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_counts is not None and not self.scores:
            raise UsageError(f"--token-counts {self.token_counts} without --scores: name the scores to make of them")
        if self.word_table is not None and "word_frequency" not in self.scores:
            raise UsageError(f"--word-table {self.word_table} without --scores word_frequency: add it, or drop it")
        if self.model == "none":
            if not self.scores:
                raise UsageError("--model none without --scores: name what to score, such as mtld,zlib_ratio, or all")
            if self.window != "first":
                raise UsageError(f"--window {self.window} with --model none: whole texts are scored, leave it out")
        if self.rank is not None and "word_frequency" in self.scores and self.word_table is None:
            raise UsageError(
                f"--rank {self.rank} with --scores word_frequency: the ranks do not count the words together; give a "
                f"--word-table, such as the word_counts.parquet of another run"
            )
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

    limit: Annotated[int | None, INPUT, Min(1)] = None
    """Stop after this many texts."""
    offline: Annotated[bool, SWITCH, MODEL] = False
    """Use only what is already on this machine."""
    out: Annotated[Path, OUTPUT, Suffix(".parquet")]
    """File to write, .parquet: token and count."""
