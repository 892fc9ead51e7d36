"""`fluxentropy bin`: a scored corpus -> `data/bin=NN/` folders of Arrow shards, cut at exact edges."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa

from fluxentropy.config.options import parse_bytes
from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import did_you_mean, read_yaml, to_yaml
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.models.tokenizers import find_tokenizer
from fluxentropy.ordering.bins import Bins, count_text
from fluxentropy.ordering.blocks import FOLDER, Blocks, read_blocks, text_column, text_tokens
from fluxentropy.ordering.edges import UNSCORED, BinEdges, Binning, Cut
from fluxentropy.ordering.expressions import JOINED, Derived, Standards, derive_columns, find_derived, numbered
from fluxentropy.ordering.inputs import Input, numeric_hint
from fluxentropy.ordering.options import BY, BinConfig
from fluxentropy.ordering.quantiles import STAT_LEVELS, ColumnSummary, Selection, is_numeric
from fluxentropy.ordering.shards import (
    DATA,
    FORMAT,
    FORMATS,
    bin_folder,
    bins_top,
    counts_tokens,
    read_manifest,
    readable_schema,
)
from fluxentropy.ordering.split import (
    PIECES,
    PLACE,
    Gather,
    Scan,
    ScoredFile,
    Split,
    fingerprints,
    frugal_memory,
    ranges,
)
from fluxentropy.ordering.within import WithinBinning, check_values, cut_within
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.engine import Engine, Local, make_engine, usable_cores
from fluxentropy.runs.files import read_json, sha256_file, versions, write_json
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import TableFiles, table_files

# --- bins.json --------------------------------------------------------------------------------------------------------


def bins_json(
    binning: Binning,
    made: Sequence[dict[str, Any]],
    stats: Sequence[dict[str, Any]],
    config: BinConfig,
    *,
    counted: bool = True,
) -> dict[str, Any]:
    """The record, of the manifests `made` of all bins, and then of `unscored`, if any.

    `counted` says whether the rows have numbers of tokens; where they have none, those of the bins are null.
    """
    bins = made[: binning.bins]
    return {
        **binning.to_json(),
        "counts": [record["rows"] for record in bins],
        "tokens": [record["tokens"] if counted else None for record in bins],
        "stats": stats[0] if len(stats) == 1 else list(stats),
        "rows": sum(record["rows"] for record in made),
        "unscored": sum(record["rows"] for record in made[binning.bins :]),
        "hash": sum(record["hash"] for record in made) % 2**64,
        "order": config.order,
        "seed": config.seed,
        "format": index_format(binning, counted),
    }


def index_format(binning: Binning, counted: bool) -> int:
    """The format of a bins.json: the later one only where an earlier version could not read it."""
    return FORMATS["bins.json"] if isinstance(binning, WithinBinning) or not counted else FORMAT


def all_there(bins: Bins) -> bool:
    """Whether every bin that `bins.json` speaks of is there."""
    return all(read_manifest(part.folder) is not None for part in bins.parts)


@dataclass(frozen=True, kw_only=True)
class BinResult(Result):
    """The bins in the folder `out`, lowest scores first."""

    out: Path
    rows: int  # of all bins, and those without a score
    unscored: int  # rows
    edges: list[Any] | dict[str, list[float]]  # one less than there are bins; of a grid, those of each score; within
    # a column, those of each of its values
    counts: list[int]  # the rows of each bin
    tokens: list[int] | list[None]  # of each bin's texts: by n_tokens of the input, else by the blocks, else unknown
    blocks: dict[str, Any] | None  # the record of the blocks of tokens, where there are any
    bins: Bins = field(repr=False)

    @classmethod
    def of(cls, bins: Bins) -> BinResult:
        facts = {name: bins.facts[name] for name in ("rows", "unscored", "edges", "counts")}
        blocks = read_blocks(bins.path)
        tokens = text_tokens(bins.path, len(bins)) if blocks and None in bins.tokens else bins.tokens
        return cls(out=bins.path, blocks=blocks, bins=bins, tokens=tokens, **facts)

    def lines(self) -> list[str]:
        facts, bins, blocks = self.bins.facts, self.bins, self.blocks
        how = facts["how"] if bins.grid is None else " x ".join(facts["how"])
        by = ", ".join(bins.binning.columns)
        by += f" within {facts['within']}" if facts.get("within") else ""
        lines = [f"{self.rows:,} rows by {by} in {len(bins)} bins ({how}), {facts['order']} order, in {self.out}"]
        for one, tokens in zip(bins, self.tokens, strict=True):
            packed = f", {blocks['blocks'][one.number]:,} blocks" if blocks else ""
            span = f"  {one.span}" if one.span and bins.grid is None else ""
            lines.append(f"  {one.folder.name}  {one.rows:,} rows, {count_text(tokens)} tokens{packed}{span}")
        if self.unscored:
            lines.append(f"  unscored  {self.unscored:,} rows without a score")
        if blocks:
            lines.append(
                f"{sum(blocks['blocks']):,} blocks of {blocks['length']:,} tokens by {blocks['tokenizer']['name']}, "
                f"{sum(blocks['left_over']):,} tokens left over, in {self.out / FOLDER}"
            )
        if None in self.tokens:
            lines.append("numbers of tokens are unknown, as there is no column n_tokens: --tokenize counts them")
        return [
            *lines,
            f"edges and counts in {self.out / 'bins.json'}; `fluxentropy verify {self.out}` proves the whole",
        ]

    def to_dict(self) -> dict[str, Any]:
        """`out`, all of bins.json, and the blocks."""
        facts = {**self.bins.facts, "tokens": list(self.tokens)}
        return {"out": str(self.out), **facts, **({"blocks": self.blocks} if self.blocks else {})}

    def _repr_html_(self) -> str:
        return self.bins._repr_html_()


# --- `fluxentropy bin` ------------------------------------------------------------------------------------------------


SHARE = 2**26  # of --memory: what each thread of a process has at least
OWNED = (DATA, "bin=*", "unscored", "bins.json", FOLDER)  # what a run of `bin` puts into its folder, or once put
log = logging.getLogger(__name__)


@command
def bin_corpus(config: BinConfig) -> BinResult:
    """Bin the rows of a run by a score, going on where an earlier run of the same command stopped."""
    with RunDirectory(config.out, overwrite=config.overwrite, folder=PIECES, owned=OWNED) as run:
        job = _Job.open(config)
        blocks = job.blocks()
        run.begin(job.identity(), to_yaml(_with_its_blocks(config)), last=_packs_anew(config))
        for pattern in (".aside-*", f"{DATA}/.aside-*"):  # of a process that was killed
            for aside in config.out.glob(pattern):
                shutil.rmtree(aside, ignore_errors=True)
        manifest = read_json(run.manifest) or {}
        if not manifest.get("complete"):
            try:
                bins = job.make()
            except UsageError:  # found in the scores, before anything is made: the mended command may have this folder
                run.clear()
                raise
            run.finish({**job.facts(bins), "versions": versions()})
        else:
            there = Bins.read(config.out)
            if there is None or not all_there(there):  # one was taken away: it is made again, and all else stays
                shutil.rmtree(run.parts, ignore_errors=True)
                there = job.make()
            bins = there
        if blocks is not None:
            job = dataclasses.replace(job, threads=1)  # a tokenizer has threads of its own
            blocks.make(bins, lambda pack, units: job.run(pack, units, "rows packed", lambda facts: facts["documents"]))
        shutil.rmtree(run.parts, ignore_errors=True)  # the pieces have served; a complete run needs none
    return BinResult.of(bins)


@dataclasses.dataclass(kw_only=True)
class _Job:
    """One invocation of `bin` on an open run directory."""

    config: BinConfig
    by: tuple[str, ...]
    source: Input
    files: list[ScoredFile]
    table: TableFiles
    given: Binning | None  # the edges of another corpus
    derived: dict[str, Derived]  # those of `by` that are no columns of the input, in this order
    engine: Engine
    threads: int  # of each process
    top: str  # of the bins' folders in `out`
    renamed: dict[str, str]  # a column's name in the input -> in the shards
    columns: pa.Schema  # of the input, with the types that the shards have
    standards: Standards = dataclasses.field(default_factory=dict)  # of z(...) in `by`

    @property
    def within(self) -> str | None:
        """The column inside of whose values the bins are, here or in those whose edges are given."""
        return self.config.within or (self.given.within if isinstance(self.given, WithinBinning) else None)

    @property
    def joined(self) -> tuple[str, ...]:
        return tuple(self.derived)

    @classmethod
    def open(cls, config: BinConfig) -> _Job:
        source = Input.open(config.run)
        table = source.table
        given = Binning.load(config.edges_file) if config.edges_file else None
        by = _columns(config, given)
        names = table.schema.names
        if config.scores is not None and {*by} <= {*names}:  # both have them: those of --scores are meant
            if config.edges_file:
                raise UsageError(
                    f"--scores {config.scores}: {config.run} has {', '.join(by)} itself, so nothing is joined"
                )
            by = tuple(f"{name}{JOINED}" for name in by)
            if taken := sorted({*by} & {*names}):
                raise SourceError(f"{config.run} has a column {taken[0]}, a name that is needed here: rename it")
        derived = find_derived(by, names, config.run, config.scores)
        if config.weight not in (None, *by, *names):
            near = did_you_mean(str(config.weight), names)
            raise UsageError(f"--weight {config.weight}: no such column in {config.run}{near}")
        for name in {*by} & {*names}:
            if not is_numeric(kind := table.schema.field(name).type):
                hint = numeric_hint(table.schema, name)
                raise UsageError(f"{config.run}, column {name}: its values are of type {kind}, not numbers{hint}")
        _check_within(config, given, table.schema)
        if PLACE in table.schema.names:
            raise SourceError(f"{config.run} has a column {PLACE}, a name that is needed here: rename it")
        try:
            columns, notes = readable_schema(table.schema)
        except SourceError as error:
            raise SourceError(f"{config.run}: {error}") from error
        for note in notes:
            log.info(note)
        return cls(
            config=config,
            by=by,
            source=source,
            files=numbered(table.files, int(table.row_bytes)),
            table=table,
            given=given,
            derived=derived,
            engine=(engine := make_engine(config.engine, config.workers, config.address)),
            threads=max(1, min(usable_cores(), parse_bytes(config.memory) // SHARE)) if engine == Local() else 1,
            top=bins_top(config.out),
            columns=columns,
            renamed=_renamed([*names, *derived])
            | {item.name: item.column for item in derived.values() if item.name != item.column},
        )

    def identity(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards."""
        config = self.config
        options = ("bins", "quantiles", "weight", "grid", "order", "seed")
        edges = self.given.fingerprint if self.given else config.edges
        expressions = {name: item.expression.text for name, item in self.derived.items() if item.expression}
        return {
            "kind": "bins",
            **{name: getattr(config, name) for name in options},
            "by": list(self.by),
            "edges": edges,
            "shard_bytes": parse_bytes(config.shard_size),
            "inputs": fingerprints(config.run, self.source.paths),
            "joined": fingerprints(config.scores, table_files(config.scores)) if config.scores else None,
            **({"expressions": expressions, "standards": self._given_standards()} if expressions else {}),
            **({"within": config.within} if config.within else {}),
        }

    def blocks(self) -> Blocks | None:
        """The blocks that `--tokenize` asks for, none of them made yet; RunError where `out` has others."""
        if self.config.tokenize is None:
            return None
        column = text_column(self.config.run, self.table.schema, self.config.text_field)
        blocks = Blocks(
            out=self.config.out,
            tokenizer=find_tokenizer(self.config.tokenize),
            length=self.config.block_length,
            text_field=self.renamed.get(column, column),
            shard_bytes=parse_bytes(self.config.shard_size),
            packed_by=None if self.within is None else self.renamed.get(self.within, self.within),
        )
        blocks.refuse_others()
        return blocks

    @frugal_memory()
    def make(self) -> Bins:
        """Edges, split, gather, `bins.json`; each step finds what is made already."""
        self._refuse_older()
        if self.source.corpus is not None:
            self.table = self.source.in_parquet(self.config.out / PIECES / "input")
            self.files = numbered(self.table.files, int(self.table.row_bytes))
        if self.derived:
            self.files, self.standards = derive_columns(
                self.files,
                list(self.derived.values()),
                names=self.table.schema.names,
                other=self.config.scores,
                folder=self.config.out / PIECES,
                run=self.run,
                standards=self._given_standards(),
            )
        summaries, selections = self._scan()
        binning = self._binning(selections)
        for note in binning.notes if self.table.rows else [f"{self.config.run} has no row: one bin, which is empty"]:
            log.warning(note)
        split = self._split(binning)
        parts = self.run(split, self.files, "rows split", lambda record: record["rows"])
        gather = Gather(
            out=self.config.out,
            top=self.top,
            bins=binning.bins,
            schema=split.schema,
            order=self.config.order,
            by=self.renamed.get(self.by[0], self.by[0]),
            shard_bytes=parse_bytes(self.config.shard_size),
            memory=parse_bytes(self.config.memory) // self.threads,
        )
        unscored = UNSCORED not in (split.only or ()) or any(str(UNSCORED) in record["bins"] for record in parts)
        numbers = [*range(binning.bins), *([UNSCORED] if unscored else [])]
        made = self.run(gather, numbers, "rows written", lambda record: record["rows"])
        self._check(parts, made)
        stats = [summary.stats(selection) for summary, selection in zip(summaries, selections, strict=True)]
        record = bins_json(binning, made, stats, self.config, counted=counts_tokens(split.schema))
        if any(item.expression for item in self.derived.values()):
            columns = {name: self.renamed.get(name, name) for name in self.by}
            record |= {"columns": columns, "standards": {name: list(found) for name, found in self.standards.items()}}
        write_json(self.config.out / "bins.json", record)
        return Bins.of(self.config.out, record)

    def _refuse_older(self) -> None:
        """Bins of a former version have other hashes of rows, which would not add up with those of new ones."""
        out = self.config.out
        folders = (*sorted((out / self.top).glob("bin=*")), out / "unscored")
        records = [read_json(out / "manifest.json"), *map(read_manifest, folders)]
        made = [record for record in records if record and record.get("complete") is not False]
        if any(record.get("format") != FORMAT for record in made):
            raise RunError(
                f"{out} holds bins of a former version, to which this one adds none: they can be read and verified as "
                f"they are; to make them again, start afresh with --overwrite"
            )

    def _given_standards(self) -> dict[str, tuple[float, float]] | None:
        """Mean and deviation of each z(...) of the corpus that `--edges` are of; None where they are not given."""
        if self.config.edges_file is None:
            return None
        found = (read_json(self.config.edges_file) or {}).get("standards", {})
        return {name: (float(mean), float(deviation)) for name, (mean, deviation) in found.items()}

    def _scan(self) -> tuple[list[ColumnSummary], list[Selection | None]]:
        """All passes over the score columns."""
        scan = Scan(by=self.by, weight=self.config.weight, joined=self.joined)
        summaries: list[ColumnSummary] = self._total(scan)
        selections: list[Selection | None] = []
        for cut, summary in zip(self._cuts(), summaries, strict=True):
            if summary.histogram.count == 0:
                selections.append(None)
            elif cut is None:
                selections.append(Selection.start(summary.histogram, levels=STAT_LEVELS))
            else:
                selections.append(cut.start(summary.histogram, levels=STAT_LEVELS))
        while any(selection is not None and not selection.done for selection in selections):
            asked = tuple(None if selection is None or selection.done else selection for selection in selections)
            found = self._total(dataclasses.replace(scan, selections=asked))
            selections = [
                one if selection is None else selection.refine(whole)
                for one, selection, whole in zip(selections, asked, found, strict=True)
            ]
        return summaries, selections

    def _total(self, scan: Scan) -> list[Any]:
        """What a pass over all files finds of each score column."""
        parts = self._each(scan, self.files)
        return reduce(lambda whole, part: [a if b is None else a + b for a, b in zip(whole, part, strict=True)], parts)

    def _cuts(self) -> list[Cut | None]:
        """Where the edges of each axis shall lie; None where they are given."""
        config = self.config
        if config.edges or config.within:
            return [None] * len(self.by)
        if config.grid:
            return [Cut.equal(count, config.weight) for count in config.grid_shape]
        return [self._cut()]

    def _cut(self) -> Cut:
        """Where `--bins` or `--quantiles` cut."""
        config = self.config
        if config.quantiles:
            return Cut.percentiles(config.numbers("quantiles"), config.weight)
        assert config.bins is not None
        return Cut.equal(config.bins, config.weight)

    def _binning(self, selections: Sequence[Selection | None]) -> Binning:
        if self.given:
            return self.given
        if self.config.edges:
            return Binning(axes=(BinEdges.fixed(self.by[0], self.config.numbers("edges")),))
        for name, selection in zip(self.by, selections, strict=True):
            if selection is None and self.table.rows:
                hint = numeric_hint(self.table.schema, name)
                raise UsageError(f"--by {name}: no row of {self.config.run} has a score in it{hint}")
        if self.config.within:
            within, cut = self.config.within, self._cut()
            return cut_within(self.files, self.by[0], within, cut, self._each, self.joined)
        axes = []
        for name, one, selection in zip(self.by, self._cuts(), selections, strict=True):
            assert one is not None
            axes.append(one.no_edges(name) if selection is None else one.edges(name, selection))
        return Binning(axes=tuple(axes))

    def _split(self, binning: Binning) -> Split:
        fields = [*self.columns, *(pa.field(name, pa.float64()) for name in self.joined)]
        named = [field.with_name(self.renamed.get(field.name, field.name)) for field in fields]
        schema = pa.schema([*named, pa.field("bin", pa.int32())])
        numbers = (*range(binning.bins), UNSCORED)
        shuffled = self.config.order == "shuffle"
        return Split(
            out=self.config.out,
            binning=binning,
            schema=schema,
            renamed=tuple(self.renamed.items()),
            joined=self.joined,
            seed=self.config.seed if shuffled else None,
            ranges=ranges(int(self.table.rows * self.table.row_bytes), binning.bins) if shuffled else 1,
            only=frozenset(n for n in numbers if read_manifest(self._folder(n, binning.bins)) is None),
        )

    def _folder(self, number: int, bins: int) -> Path:
        return self.config.out / bin_folder(number, bins, self.top)

    def run(self, job: Any, units: Sequence[Any], unit: str, size: Any) -> list[dict[str, Any]]:
        found = []
        with Progress(self.table.rows, unit=unit) as line:
            for record in self._each(job, units):
                found.append(record)
                line.update(size(record))
        return found

    def _each(self, job: Any, units: Sequence[Any]) -> Iterator[Any]:
        """What `job` returns for each unit, made by the engine, or in threads of this process."""
        return (Local(self.threads) if self.threads > 1 else self.engine).run(job, units)

    def _check(self, parts: Sequence[dict[str, Any]], made: Sequence[dict[str, Any]]) -> None:
        """Every row of the input is in the bins: by count, and by the sum of the rows' hashes."""
        there, here = (sum(record["rows"] for record in records) for records in (parts, made))
        before, after = (sum(record["hash"] for record in records) % 2**64 for records in (parts, made))
        if (there, before) != (here, after) or there != self.table.rows:
            raise RunError(
                f"{self.config.out} holds {here:,} rows where {self.config.run} has {self.table.rows:,}, "
                f"or other ones: start afresh with --overwrite"
            )

    def facts(self, bins: Bins) -> dict[str, Any]:
        """What the manifest says of the result."""
        return {name: bins.facts[name] for name in ("rows", "unscored", "hash", "fingerprint")} | {
            "bins_sha256": sha256_file(self.config.out / "bins.json"),
            "run": self.config.run,
            "files": [str(path) for path in self.source.paths],
            "format": FORMAT,
        }


def _columns(config: BinConfig, given: Binning | None) -> tuple[str, ...]:
    """The columns to bin by; a bins.json brings its own."""
    if given is None:
        return config.by
    loaded = given.columns
    if config.by not in (loaded, BY):
        said, found = ",".join(config.by), ",".join(loaded)
        raise UsageError(f"--by {said}: the edges in {config.edges_file} are of {found}; leave --by out")
    return loaded


def _check_within(config: BinConfig, given: Binning | None, schema: pa.Schema) -> None:
    """UsageError where there is no such column, or one whose values are no names."""
    if given is not None and config.within not in (None, getattr(given, "within", None)):
        there = getattr(given, "within", None)
        said = f"are within {there}" if there else "are the same for all rows"
        raise UsageError(f"--within {config.within}: the edges in {config.edges_file} {said}; leave --within out")
    within = config.within or getattr(given, "within", None)
    if within is None:
        return
    if within not in schema.names:
        near = did_you_mean(within, schema.names)
        columns = "" if ": use one of" in near else f"; the columns are {', '.join(schema.names)}"
        raise UsageError(f"--within {within}: no such column in {config.run}{near}{columns}")
    check_values(schema.field(within).type, within)


def _renamed(names: Sequence[str]) -> dict[str, str]:
    """The new name of an input's own column `bin`.

    >>> _renamed(["id", "bin", "source_bin"]), _renamed(["id"])
    ({'bin': 'source_source_bin'}, {})
    """
    if "bin" not in names:
        return {}
    free = "source_bin"
    while free in names:
        free = f"source_{free}"
    return {"bin": free}


def _with_its_blocks(config: BinConfig) -> BinConfig:
    """Without --tokenize, a folder keeps the blocks that it has, and the record of how they were made."""
    if config.tokenize is not None or not (config.out / FOLDER).is_dir():
        return config
    return dataclasses.replace(config, **_how_packed(config.out))


def _packs_anew(config: BinConfig) -> bool:
    """Whether the folder does not say yet that it has such blocks: finished bins then get them."""
    asked = {"tokenize": config.tokenize, "block_length": config.block_length}
    return config.tokenize is not None and _how_packed(config.out) != asked


def _how_packed(out: Path) -> dict[str, Any]:
    """What the record of the folder's making says of its blocks."""
    path = out / "config.resolved.yaml"
    before = read_yaml(path, BinConfig) if path.is_file() else {}
    return {name: before[name] for name in ("tokenize", "block_length") if name in before}
