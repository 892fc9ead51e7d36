"""What `sort` and `bin` read: a run of `score`, Parquet files as they are, or tables in other files.

    runs/web                 the finished parts of a run
    scored/*.parquet         Parquet files: their columns and types as they are
    scored.jsonl, x.arrow    rows of a corpus: `id`, `source_file`, `source_row`, `input_status`, then their own columns

Rows of the last kind are written into Parquet files before anything else reads them. These files follow from the rows
alone, so a command that was killed makes the same ones again.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.corpus.corpus import Corpus, open_corpus
from fluxentropy.corpus.sources import file_format, find_sources
from fluxentropy.errors import SourceError
from fluxentropy.ordering.quantiles import is_numeric
from fluxentropy.ordering.shards import sum_of_rows
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.tables import TableFiles, table_files

PART_ROWS, PART_BYTES = 2**16, 2**26  # of a written file; the batch that reaches one of them is its last
TEXT_FORMATS = ("arrow", "jsonl", "csv", "tsv")


@dataclass(frozen=True, kw_only=True)
class Input:
    """The table that `source` names; see `Input.open`."""

    source: str
    paths: tuple[Path, ...]
    """The files that it names."""
    table: TableFiles
    """Where they are Parquet, these; else a table without files, which says columns and rows."""
    corpus: Corpus | None
    """The rows of other files."""

    @classmethod
    def open(cls, source: str) -> Input:
        """Errors: those of `table_files`, `TableFiles.open` and `open_corpus`."""
        if not _other_files(source):
            paths = table_files(source)
            return cls(source=source, paths=tuple(paths), table=TableFiles.open(paths), corpus=None)
        corpus = open_corpus([source], text_field=None)
        assert corpus.n_rows is not None  # which only sources on the Hub leave open
        return cls(
            source=source,
            paths=tuple(file.path for file in corpus.files if file.path is not None),
            table=TableFiles(files=[], schema=corpus.schema, rows=corpus.n_rows, row_bytes=0.0),
            corpus=corpus,
        )

    def in_parquet(self, folder: Path) -> TableFiles:
        """The table with Parquet files of all rows; those of other files are written into `folder` first."""
        if self.corpus is None:
            return self.table
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, rows in enumerate(_parts(self.corpus)):
            paths.append(folder / f"part-{number:05d}.parquet")
            with atomic_path(paths[-1], durable=False) as aside:
                pq.write_table(rows, aside, compression="zstd")
        return TableFiles.open(paths)

    def sums(self) -> Iterator[tuple[int, int]]:
        """For each batch of a corpus its rows, and the sum of their hashes."""
        assert self.corpus is not None
        for batch in self.corpus.batches():
            yield batch.num_rows, sum_of_rows(batch)


def numeric_hint(schema: pa.Schema, name: str) -> str:
    """The other columns of numbers, in words."""
    names = [field.name for field in schema if is_numeric(field.type) and field.name not in (name, "source_row")]
    return f"; columns of numbers are {', '.join(names)}" if names else "; no other column holds numbers"


def _other_files(source: str) -> bool:
    """Whether `source` names files that are no Parquet. A folder with Parquet files has these alone."""
    path = Path(source)
    if path.is_file():
        return file_format(path.name) in TEXT_FORMATS
    if (path / "scores").is_dir() or (path / "manifest.json").exists() or not (path.is_dir() or glob.has_magic(source)):
        return False
    try:
        table_files(source)
    except SourceError:
        pass
    else:
        return False
    try:
        found = find_sources([source])
    except SourceError:  # the other error names what may be given
        return False
    return all(file.path is not None and file.format in TEXT_FORMATS for file in found)


def _parts(corpus: Corpus) -> Iterator[pa.Table]:
    """All rows in tables of about PART_ROWS rows or PART_BYTES; where there is none, one without rows."""
    held: list[pa.RecordBatch] = []
    first = True
    for batch in corpus.batches():
        held.append(batch)
        rows, size = sum(one.num_rows for one in held), sum(one.get_total_buffer_size() for one in held)
        if rows >= PART_ROWS or size >= PART_BYTES:
            yield pa.Table.from_batches(held)
            held, first = [], False
    if held or first:
        yield pa.Table.from_batches(held, schema=corpus.schema)
