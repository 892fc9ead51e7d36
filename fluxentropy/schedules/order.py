"""`fluxentropy order`: a schedule as a data set, which a trainer that is not ours reads in sequence.

    DIR/data/part-00000.SUFFIX …   the units in order; mds also index.json; megatron instead order.bin and order.idx
    DIR/order.parquet              position, bin, row (in the bin), id; of blocks also a hash of the tokens
    DIR/strata.parquet             with `stratify`: the value of each unit there is, over all bins
    DIR/manifest.json              the schedule, the budget, what was drawn, and all that `verify` needs

The unit is a text of the bins for formats of texts, and a block of `bin --tokenize` for formats of tokens. Both come in
the order of `Sampler`, a batch after the other. A killed export goes on at the first part that is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from fluxentropy.config.options import parse_bytes
from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_yaml
from fluxentropy.corpus.readers import is_text
from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.shards import regular_batches
from fluxentropy.ordering.split import frugal_memory
from fluxentropy.runs.directory import RunDirectory, RunRecord, part_paths
from fluxentropy.runs.engine import prefetch
from fluxentropy.runs.files import atomic_path, sha256_file, versions, write_json
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import Writer, open_writer
from fluxentropy.schedules.dataset import FOLDER, INDEX, BlockSet
from fluxentropy.schedules.drawn import Drawn, draw_blocks, draw_texts, mean_tokens, spans
from fluxentropy.schedules.formats.catalogue import TEXT_FORMATS, TOKEN_FORMATS, find_format
from fluxentropy.schedules.formats.format import Span, TextFormat, TextLayout, TokenFormat, TokenLayout
from fluxentropy.schedules.options import OrderConfig
from fluxentropy.schedules.strata import write_strata
from fluxentropy.schedules.texts import ROW, Numbers, Piece, TextSet, load_bytes

# --- the command ------------------------------------------------------------------------------------------------------


ORDER, STRATA, PIECES, SPILL, PARTS = "order.parquet", "strata.parquet", ".order", ".spill", ".parts"
DATA, JOINED = "data", ("order.bin", "order.idx")
OWNED = (DATA, ORDER, STRATA, PIECES, SPILL, PARTS)
AT_ONCE = 2**21  # bytes of blocks that are taken together, which stay in the processor's memory
CHUNK = 2**16  # positions of blocks that are looked up together
MEMORY = 2**26  # bytes, of which an eighth may wait for a row group of order.parquet to be full


@dataclass(frozen=True, kw_only=True)
class OrderResult(Result):
    """A schedule as a data set, in the folder `out`."""

    out: Path
    format: str
    unit: str  # text or block
    units: int  # all positions
    drawn: list[int]  # (K,) units of each bin, each as often as it is drawn
    there: list[int]  # (K,) units that there are
    tokens: int | None  # None where the bins do not know them
    files: int
    schedule: str
    plan: str  # its fingerprint

    def lines(self) -> list[str]:
        tokens = f" of {self.tokens:,} tokens" if self.tokens else ""
        share = self.units / max(sum(self.there), 1)
        drawn = ", ".join(f"{number:,}" for number in self.drawn)
        return [
            f"{self.units:,} {self.unit}s{tokens} in the order of {self.schedule}, {share:.3g} epochs, {self.format}",
            f"of each bin: {drawn}",
            f"data       {self.out / DATA} ({self.files:,} file{'s' if self.files != 1 else ''})",
            f"order      {self.out / ORDER}; `fluxentropy verify {self.out}` proves it",
        ]


@command
def order(config: OrderConfig) -> OrderResult:
    """Write the bins in the order of a schedule, going on where an earlier run of the same command stopped."""
    form = find_format(config.format)
    if config.schedule.name == "adaptive":
        raise UsageError(
            "schedule.name adaptive: its mixture follows the losses of a training, and an order is written before "
            "there are any; use another schedule, or `fluxentropy pretrain`"
        )
    job: _Texts | _Blocks
    job = (
        _Texts.open(config, TEXT_FORMATS[form.name])
        if form.name in TEXT_FORMATS
        else _Blocks.open(config, TOKEN_FORMATS[form.name])
    )
    with (
        RunDirectory(config.out, overwrite=config.overwrite, folder=job.folder, suffix=form.suffix, owned=OWNED) as run,
        frugal_memory(),
    ):
        _refuse_changed(run, job)
        run.begin(job.identity(), to_yaml(config))
        for path in (config.out / SPILL, *config.out.glob(".aside-*"), *(config.out / DATA).glob(".aside-*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if not job.whole(run):
            _make(job, run)
        for folder in (PIECES, PARTS):  # they have served
            shutil.rmtree(config.out / folder, ignore_errors=True)
        record = RunRecord.read(config.out).facts
    return OrderResult(
        out=config.out,
        format=form.name,
        unit=job.unit,
        schedule=config.schedule.name,
        there=job.drawn.facts["counts"],
        plan=job.drawn.sampler.plan.fingerprint,
        **{name: record[name] for name in ("units", "drawn", "tokens", "files")},
    )


def _refuse_changed(run: RunDirectory, job: _Texts | _Blocks) -> None:
    """RunError where the directory holds an order of bins that were others then."""
    before = RunRecord.read(run.path).identity
    if before.get("kind") == "order" and before.get("unit") == job.unit and before.get("input") != job.input:
        raise RunError(
            f"{run.path} was begun with other bins: those in {job.config.bins} have changed since. Put the former ones "
            f"back to go on, choose another --out, or start afresh with --overwrite"
        )


def _make(job: _Texts | _Blocks, run: RunDirectory) -> None:
    """Write the parts that are missing, then the order, then the manifest."""
    done, pieces = run.done(), run.path / PIECES
    if job.drawn.strata is not None and not (run.path / STRATA).is_file():
        with atomic_path(run.path / STRATA) as aside:
            write_strata(aside, job.drawn.strata)
    ready = (run.path / ORDER).is_file()
    todo = [n for n in range(len(job.spans)) if n not in done or not (ready or piece_file(pieces, n).is_file())]
    with Progress(sum(job.spans[n].rows for n in todo), unit=f"{job.unit}s") as line:
        for made, number in enumerate(job.write(run, todo), 1):
            line.update(job.spans[number].rows, parts=made)
    if not ready:
        with atomic_path(run.path / ORDER) as aside, job.order_writer(aside) as writer:
            for number in range(len(job.spans)):
                with pa.OSFile(str(piece_file(pieces, number))) as source:
                    file = pa.ipc.open_file(source)
                    for place in range(file.num_record_batches):
                        writer.write(pa.Table.from_batches([file.get_batch(place)]))
    joined = job.finish(run)
    drawn = _counted(run.path / ORDER, len(job.drawn.first) - 1)
    run.finish(
        {
            "units": job.drawn.units,
            "drawn": drawn,
            "tokens": job.tokens(drawn),
            "parts": len(job.spans),
            "files": len(joined) or len(job.spans),
            "joined": joined,
            "order": _record(run.path / ORDER),
            "strata": _record(run.path / STRATA) if job.drawn.strata is not None else None,
            "bins": str(job.config.bins),
            "versions": versions(("pyarrow", "numpy")),
        }
    )


def piece_file(folder: Path, number: int) -> Path:
    """What order.parquet will have of a part."""
    return part_paths(folder, number, ".arrow")[0]


def _record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _counted(path: Path, bins: int) -> list[int]:
    """Units of each bin in order.parquet."""
    found = np.zeros(bins, np.int64)
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["bin"], use_threads=False):
            found += np.bincount(batch.column(0).to_numpy(), minlength=bins)
    return found.tolist()


# --- texts and blocks -------------------------------------------------------------------------------------------------


Rows = Callable[[pa.Table], None]  # takes rows of order.parquet


@dataclass(frozen=True, kw_only=True)
class _Units:
    """What an order of texts and one of blocks share."""

    config: OrderConfig
    drawn: Drawn
    input: str  # a fingerprint of the bins
    spans: list[Span]

    unit: ClassVar[str]
    extra: ClassVar[pa.Schema] = pa.schema([])  # columns of order.parquet behind the id

    @property
    def folder(self) -> str:
        """Of the parts."""
        return DATA

    @property
    def id_type(self) -> pa.DataType:
        return pa.int64()

    def identity(self) -> dict[str, Any]:
        """Everything that decides the bytes."""
        return {
            "kind": "order",
            "format": self.config.format,
            "unit": self.unit,
            "draws": self.drawn.facts,
            "plan": self.drawn.sampler.plan.fingerprint,
            "shard_bytes": parse_bytes(self.config.shard_size),
            "input": self.input,
        }

    def whole(self, run: RunDirectory) -> bool:
        """Whether nothing is to be done."""
        files = [
            ORDER,
            *([STRATA] if self.drawn.strata is not None else []),
            *(f"{DATA}/{name}" for name in self.beside),
        ]
        there = all((run.path / name).is_file() for name in files)
        return run.complete and there and (self.folder != DATA or len(run.done()) == len(self.spans))

    @property
    def beside(self) -> list[str]:
        """Files in DATA beside the parts, or instead of them."""
        return []

    def order_writer(self, path: Path) -> contextlib.AbstractContextManager[Writer]:
        return open_writer(path, ".parquet", self.order_schema, row_bytes=64, memory=MEMORY)

    @property
    def order_schema(self) -> pa.Schema:
        fields = {"position": pa.int64(), "bin": pa.int32(), "row": pa.int64(), "id": self.id_type}
        return pa.schema([*pa.schema(fields), *self.extra])

    def order_rows(self, position: int, numbers: np.ndarray, ids: pa.Array, *more: pa.Array) -> pa.Table:
        """Rows of order.parquet for the units `numbers`, the first of them at `position`."""
        bins = np.searchsorted(self.drawn.first, numbers, side="right") - 1
        columns = [
            pa.array(np.arange(position, position + len(numbers))),
            pa.array(bins.astype(np.int32)),
            pa.array(numbers - self.drawn.first[bins]),
            ids,
            *more,
        ]
        return pa.Table.from_arrays(columns, schema=self.order_schema)

    @contextlib.contextmanager
    def part(self, run: RunDirectory, number: int) -> Iterator[tuple[Path, Rows]]:
        """Where to write a part, and its rows of order.parquet: both appear, or none counts."""
        span = self.spans[number]
        piece = piece_file(run.path / PIECES, number)
        facts = {"rows": span.rows, "first": span.first}
        with (
            run.part(number, facts, hashed=self.folder == DATA) as path,
            atomic_path(piece) as aside,
            pa.ipc.new_file(str(aside), self.order_schema) as rows,
        ):
            yield path, rows.write_table


@dataclass(frozen=True, kw_only=True)
class _Texts(_Units):
    form: TextFormat
    texts: TextSet
    layout: TextLayout
    sizes: np.ndarray  # (T+1,) bytes that are drawn before each step

    unit: ClassVar[str] = "text"

    @classmethod
    def open(cls, config: OrderConfig, form: TextFormat) -> _Texts:
        bins = Bins.load(config.bins)
        if config.holdout:
            raise UsageError(f"--holdout {config.holdout}: it is of blocks of tokens, --format {form.name} is of texts")
        texts = TextSet.open(bins)
        drawn = draw_texts(config, texts)
        layout = TextLayout(
            schema=texts.schema,
            text_field=_text_field(config, bins, texts.schema),
            row_bytes=float(drawn.drawn_bytes(texts.row_bytes)[-1]) / drawn.units,
        )
        form.check(layout)
        size = drawn.drawn_bytes(texts.row_bytes)
        part = min(float(parse_bytes(config.shard_size)), size[-1] / form.least)
        return cls(
            config=config,
            drawn=drawn,
            input=texts.fingerprint,
            spans=spans(drawn.ends, size, part),
            form=form,
            texts=texts,
            layout=layout,
            sizes=size,
        )

    @property
    def id_type(self) -> pa.DataType:
        return self.texts.schema.field("id").type

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "text_field": self.layout.text_field}

    @property
    def beside(self) -> list[str]:
        return list(self.form.index(self.layout, []))

    def tokens(self, drawn: Sequence[int]) -> int | None:
        """Of the texts that are drawn of each bin, each counting as its bin's mean; None where the bins do not say."""
        means = mean_tokens(self.texts)
        return None if means is None else round(float(np.array(drawn) @ means))

    def pieces(self, span: Span, size: int) -> list[Piece]:
        """The positions of a part in pieces of about `size` bytes."""
        low, high = np.interp([span.first, span.first + span.rows], self.drawn.ends, self.sizes)
        cuts = np.interp(np.linspace(low, high, int((high - low) // size) + 2), self.sizes, self.drawn.ends)
        edges = np.unique(np.clip(np.round(cuts), span.first, span.first + span.rows).astype(np.int64)).tolist()
        edges = sorted({span.first, *edges, span.first + span.rows})
        return [Piece(start=start, stop=stop) for start, stop in itertools.pairwise(edges)]

    def write(self, run: RunDirectory, todo: Sequence[int]) -> Iterator[int]:
        """Write the parts `todo`, and yield the number of each that is done."""
        memory = parse_bytes(self.config.memory)
        pieces = {number: self.pieces(self.spans[number], load_bytes(memory)) for number in todo}
        wanted = [piece for number in todo for piece in pieces[number]]
        numbers: Numbers = self.drawn.numbers
        with contextlib.closing(self.texts.pieces(wanted, numbers, memory=memory, spill=run.path / SPILL)) as found:
            for number in todo:
                some = itertools.islice(found, len(pieces[number]))
                with self.part(run, number) as (path, rows):
                    batches = prefetch(regular_batches(some, self.texts.full_schema))
                    with contextlib.closing(batches):
                        self.form.write(path, self.layout, self.spans[number], self._noted(batches, number, rows))
                yield number

    def _noted(self, batches: Iterable[pa.RecordBatch], number: int, rows: Rows) -> Iterator[pa.RecordBatch]:
        """The batches without the rows' numbers, after these have gone into the order."""
        position = self.spans[number].first
        for batch in batches:
            rows(self.order_rows(position, batch.column(ROW).to_numpy(), batch.column("id")))
            position += batch.num_rows
            yield batch.select(self.layout.schema.names)

    def finish(self, run: RunDirectory) -> dict[str, Any]:
        names = [(part_paths(run.parts, number, run.suffix)[0].name, facts) for number, facts in run.done().items()]
        for name, content in self.form.index(self.layout, names).items():
            write_json(run.parts / name, content)
        return {}


@dataclass(frozen=True, kw_only=True)
class _Blocks(_Units):
    form: TokenFormat
    blocks: BlockSet
    layout: TokenLayout

    unit: ClassVar[str] = "block"
    extra: ClassVar[pa.Schema] = pa.schema({"hash": pa.uint64()})

    @classmethod
    def open(cls, config: OrderConfig, form: TokenFormat) -> _Blocks:
        if not (config.bins / FOLDER / INDEX).is_file():
            Bins.load(config.bins)  # or there are no bins either
            raise UsageError(
                f"--format {form.name} is of tokens, and {config.bins} has no blocks of them: make them with "
                f"`fluxentropy bin … --out {config.bins} --tokenize TOKENIZER`, or choose a format of texts: "
                f"{', '.join(TEXT_FORMATS)}"
            )
        if config.texts is not None:
            raise UsageError(f"--texts {config.texts}: --format {form.name} is of blocks of tokens, use --tokens")
        blocks = BlockSet.open(config.bins)
        if config.holdout:
            blocks = blocks.without_end(config.holdout)
        layout = TokenLayout(length=blocks.length, vocabulary=blocks.vocabulary, end=blocks.eos_token_id or 0)
        form.check(layout)
        drawn = draw_blocks(config, blocks)
        width = np.full(blocks.bins, blocks.length * form.dtype(layout).itemsize, np.float64)
        return cls(
            config=config,
            drawn=drawn,
            input=blocks.fingerprint,
            spans=spans(drawn.ends, drawn.drawn_bytes(width), float(parse_bytes(config.shard_size))),
            form=form,
            blocks=blocks,
            layout=layout,
        )

    @property
    def folder(self) -> str:
        return PARTS if self.form.joined else DATA

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "vocabulary": self.layout.vocabulary, "end": self.layout.end}

    def tokens(self, drawn: Sequence[int]) -> int:
        return sum(drawn) * self.layout.length

    @property
    def beside(self) -> list[str]:
        return list(JOINED) if self.form.joined else []

    def write(self, run: RunDirectory, todo: Sequence[int]) -> Iterator[int]:
        """Write the parts `todo`, and yield the number of each that is done."""
        for number in todo:
            with self.part(run, number) as (path, rows):
                self.form.write(path, self.layout, self.spans[number], self._arrays(self.spans[number], rows))
            yield number

    def _arrays(self, span: Span, rows: Rows) -> Iterator[np.ndarray]:
        """The blocks of a part, which go into the order."""
        stored, dtype = self.blocks.dtype, self.form.dtype(self.layout)
        step = max(AT_ONCE // (self.layout.length * stored.itemsize), 1)
        for first in range(span.first, span.first + span.rows, CHUNK):
            numbers = self.drawn.numbers(first, min(first + CHUNK, span.first + span.rows))
            found: list[np.ndarray] = []
            for at in range(0, len(numbers), step):
                views = self.blocks.pick(numbers[at : at + step])
                some = np.frombuffer(b"".join(views), stored).reshape(len(views), -1).astype(dtype, copy=False)
                found.append(hashes(some))
                yield some
            rows(self.order_rows(first, numbers, pa.array(numbers), pa.array(np.concatenate(found))))

    def finish(self, run: RunDirectory) -> dict[str, Any]:
        """Of a format of one data set: put it together, and say what its files are."""
        if not self.form.joined:
            return {}
        parts = [part_paths(run.parts, number, run.suffix)[0] for number in range(len(self.spans))]
        data, index = (run.path / DATA / name for name in JOINED)
        with atomic_path(data) as tokens, atomic_path(index) as places:
            self.form.join(parts, self.layout, self.drawn.units, tokens, places)
        return {path.name: _record(path) for path in (data, index)}


def hashes(blocks: np.ndarray) -> np.ndarray:
    """XXH3 (64 bits) of the tokens of each block (n, L), as they are in the file. -> uint64 (n,)"""
    data, size = np.ascontiguousarray(blocks).data.cast("B"), blocks.shape[1] * blocks.itemsize
    starts = range(0, len(data), size)
    return np.fromiter((xxh3_64_intdigest(data[at : at + size]) for at in starts), np.uint64, len(starts))


# --- columns of texts -------------------------------------------------------------------------------------------------


def _text_field(config: OrderConfig, bins: Bins, schema: pa.Schema) -> str | None:
    """The column of the texts: what was said, else what `score` was told, else `text`; None where there is none."""
    if config.text_field is not None:
        if config.text_field not in schema.names or not is_text(schema.field(config.text_field).type):
            texts = [one.name for one in schema if is_text(one.type)]
            raise UsageError(f"--text-field {config.text_field}: no such column of texts; there are {', '.join(texts)}")
        return config.text_field
    run = Path(str(RunRecord.read(bins.path).facts.get("run", "")))
    told = RunRecord.read(run).identity.get("text_field") if run.is_dir() else None
    return next((name for name in (told, "text") if name in schema.names and is_text(schema.field(name).type)), None)
