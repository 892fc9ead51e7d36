"""Options of `fluxentropy sort` and `fluxentropy bin`. The text under a field is its help.

A field `max_tokens` is the flag `--max-tokens` and the YAML key `max_tokens`.

    >>> from fluxentropy.config.yaml import to_yaml
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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fluxentropy.config.checks import Check, Min, Options, Separated, Some, Suffix
from fluxentropy.config.options import INPUT, OUTPUT, SIZE, SWITCH, WORK, parse_bytes
from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SortConfig(Options):
    """Options of `fluxentropy sort`."""

    run: Annotated[str, INPUT] = field(kw_only=False)
    """Run directory of `score`, or any table: .parquet, .arrow, .jsonl, .csv, a folder or a glob of them."""
    by: Annotated[str, INPUT] = "entropy_mean"
    """Column to sort by, or an expression of columns, such as "entropy_mean - 0.5*varentropy_mean" or "z(a) + z(b)"."""
    scores: Annotated[str | None, INPUT] = None
    """Another run that holds --by, or the NAME of each NAME_joined in it, for the same texts; joined by id."""
    descending: Annotated[bool, SWITCH, INPUT] = False
    """Largest first."""
    out: Annotated[Path, OUTPUT, Suffix(".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")]
    """File to write, .parquet or .jsonl."""
    limit: Annotated[int | None, OUTPUT, Min(1)] = None
    """Write only the first rows of the order."""
    workers: Annotated[int, WORK, Min(1)] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
    memory: Annotated[str, WORK, SIZE] = "1GB"
    """Memory that a worker sorts in; larger corpora are sorted on disk."""


BY = ("entropy_mean",)  # what is binned by where nothing is said


@dataclass(frozen=True, kw_only=True)
class BinConfig(Options):
    """Options of `fluxentropy bin`."""

    run: Annotated[str, INPUT] = field(kw_only=False)
    """Run directory of score, or of a zoo's consensus, or any table: .parquet, .arrow, .jsonl, .csv, a folder or a \
glob of them."""
    by: Annotated[tuple[str, ...], INPUT, Separated()] = BY
    """Column to bin by, or an expression of columns, such as "entropy_mean - 0.5*varentropy_mean" or "z(a) + z(b)"; \
two, separated by a comma, with --grid."""
    bins: Annotated[int | None, INPUT] = None
    """So many bins of equal counts."""
    quantiles: Annotated[tuple[str | float, ...] | None, INPUT, Separated()] = None
    """Edges at these percentiles, such as 10,25,50,75,90."""
    grid: Annotated[str | None, INPUT] = None
    """Bins of two columns, such as 4x4."""
    edges: Annotated[tuple[str | float, ...] | None, INPUT, Separated()] = None
    """Edges at these values, or those of another corpus: its bins.json."""
    weight: Annotated[str | None, INPUT] = None
    """Column of whole numbers, such as n_tokens: bins of equal sums of it instead of equal counts."""
    within: Annotated[str | None, INPUT] = None
    """Column, such as the source: bins by quantiles inside each of its values, so that every bin has each in the same \
share. Of a path its last part counts; null is the value unknown. Blocks hold texts of one value each."""
    scores: Annotated[str | None, INPUT] = None
    """Another run that holds --by for the same texts; joined by id. If both have NAME, it is NAME_joined, also in an \
expression."""
    order: Annotated[Literal["shuffle", "score", "source"], OUTPUT] = "shuffle"
    """Order of the rows inside a bin."""
    seed: Annotated[int, OUTPUT, Min(0)] = 0
    """Seed of the shuffle."""
    shard_size: Annotated[str, OUTPUT, SIZE] = "256MB"
    """Size of a shard, before compression."""
    tokenize: Annotated[str | None, OUTPUT, Some("give a zoo name, a Hub id, a folder, a .gguf file, or bytes")] = None
    """Also pack the texts as tokens into blocks to train on, with the tokenizer of this zoo name, Hub id, folder or \
.gguf file, or with bytes."""
    block_length: Annotated[int, OUTPUT, Min(1)] = 1024
    """Tokens that a block predicts, with --tokenize."""
    text_field: Annotated[str | None, OUTPUT] = None
    """Column of the texts, with --tokenize. Default: what the run was scored on, else text."""
    out: Annotated[Path, OUTPUT]
    """Folder to write. The same command again resumes it."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds bins."""
    workers: Annotated[int, WORK, Min(1)] = 1
    """Processes that share the work."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
    memory: Annotated[str, WORK, SIZE, Check(lambda size: parse_bytes(size) >= 2**24, "use 16 MiB or more")] = "256MB"
    """Memory that a worker sorts in; larger bins are sorted on disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = [name for name in ("bins", "quantiles", "grid", "edges") if getattr(self, name)]
        if len(ways) != 1:
            said = " and ".join(f"--{way}" for way in ways) or "none"
            raise UsageError(f"how to cut: give one of --bins, --quantiles, --grid and --edges, here is {said}")
        if self.edges and self.weight:
            raise UsageError("--weight with --edges: the edges are given, so nothing is weighted; leave one out")
        if self.within is not None and (self.grid or (self.edges and not self.edges_file)):
            other = f"--grid {self.grid}" if self.grid else f"--edges {','.join(map(str, self.edges or ()))}"
            raise UsageError(f"--within {self.within} with {other}: give --bins or --quantiles")
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
        named = self.edges is not None and len(self.edges) == 1 and str(self.edges[0]).endswith(".json")
        return Path(str(self.edges[0])) if self.edges and named else None

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Bins of each axis of `grid`."""
        parts = (self.grid or "").lower().split("x")
        return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
