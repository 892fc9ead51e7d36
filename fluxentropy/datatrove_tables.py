"""Parquet files in and out of a datatrove pipeline without losing a row: `TableReader`, `TableWriter`, `compare`.

    web/a.parquet   task 0   TableReader -> … -> TableWriter   scored/00000.parquet
    web/b.parquet   task 1                                     scored/00001.parquet
    web/c.parquet   task 0

datatrove's own reader passes over texts that are empty or null, and its writer leaves a readable file where a task
failed. Here each row becomes a document, and each task, also one without rows, one file, whole or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from fluxentropy.datatrove_block import INPUT_STATUS, NULL_TEXT, file_facts
from fluxentropy.errors import RunError, SourceError
from fluxentropy.readers import is_text
from fluxentropy.store import atomic_path
from fluxentropy.tablefiles import without_dictionary

if TYPE_CHECKING:
    from fsspec.implementations.dirfs import DirFileSystem

BATCH_ROWS = 1000


class TableReader(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """The rows of a folder of Parquet files as documents, all of them; a task has every n-th file.

    All other columns are the document's metadata. An `id` that is null or missing is `FILE/ROW`. A null text is "" with
    a note in the metadata, from which `EntropyScorer` takes the status.

    Args:
        folder: a folder or an address that datatrove knows, such as hf://datasets/OWNER/NAME/FOLDER
        text_field: the column of the texts
        limit: rows of each task; None for all

    Errors: SourceError where there is no file, a file has no such column, or two files do not fit each other.
    """

    name = "📒 Parquet, every row"
    type = "📖 - READER"

    def __init__(self, folder: str, *, text_field: str = "text", limit: int | None = None) -> None:
        super().__init__()
        here = Path(folder)  # fsspec keeps what it has opened by its name, and would not see a change of directory
        self.folder: DirFileSystem = get_datafolder(str(here.absolute()) if here.exists() else folder)
        self.place, self.text_field, self.limit = folder, text_field, limit

    def files(self) -> list[str]:
        """Names in the folder, in the order in which tasks share them."""
        found: list[str] = self.folder.list_files(glob_pattern="*.parquet")
        if not found:
            raise SourceError(f"{self.place}: no Parquet file there")
        return found

    def schema(self) -> pa.Schema:
        """The columns of all files together, and `id`."""
        whole: pa.Schema | None = None
        for name in self.files():
            with self._open(name) as parquet:
                fields = [without_dictionary(field) for field in parquet.schema_arrow.remove_metadata()]
            try:
                mine = pa.schema([*fields, *([] if "id" in [field.name for field in fields] else [ID])])
                whole = mine if whole is None else pa.unify_schemas([whole, mine], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise SourceError(
                    f"{self.place}/{name}: its columns do not fit those of the other files: {error}"
                ) from error
            if self.text_field not in mine.names or not is_text(mine.field(self.text_field).type):
                raise SourceError(f"{self.place}/{name}: no column {self.text_field!r} of texts")
        assert whole is not None
        return whole

    def rows(self, rank: int, tasks: int) -> Iterator[tuple[dict[str, Any], str]]:
        """The rows of a task, with their `id`, and the file of each."""
        found = itertools.chain.from_iterable(self._rows(name) for name in self.files()[rank::tasks])
        yield from itertools.islice(found, self.limit)

    def _rows(self, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        with self._open(name) as parquet:
            at = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                try:
                    rows = batch.to_pylist()
                except (UnicodeDecodeError, ValueError) as error:
                    raise SourceError(f"{self.place}/{name}, rows {at} to {at + len(batch)}: {error}") from error
                for row in rows:
                    if row.get("id") is None:
                        row["id"] = f"{name}/{at}"
                    at += 1
                    yield row, name

    def _open(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.folder.open(name, "rb"))
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{self.place}/{name} cannot be read: {str(error).splitlines()[0]}") from error

    def identity(self) -> dict[str, Any]:
        files = {name: file_facts(self.folder, name) for name in self.files()}
        return {"text_field": self.text_field, "limit": self.limit, "files": files}

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what comes before, then the task's rows."""
        yield from data or ()
        for row, _ in self.rows(rank, world_size):
            text, name = row.pop(self.text_field), row.pop("id")
            document = Document(text=text or "", id=name, metadata=row)
            if text is None:
                document.metadata[INPUT_STATUS] = NULL_TEXT
            self.update_doc_stats(document)
            yield document


ID = pa.field("id", pa.string())


class TableWriter(PipelineStep):  # type: ignore[misc]
    """Writes a task's documents as `00000.parquet`, `00001.parquet`, …: whole or not at all, also without a document.

    Args:
        out: a folder of this machine, or one that all machines share
        schema: the columns: text, `id`, and those of the metadata that shall be kept
        text_field: the column of the texts

    Errors: RunError where a document does not fit the columns, or the file cannot be written.
    """

    name = "💽 Parquet, whole files"
    type = "💽 - WRITER"

    def __init__(self, out: Path, schema: pa.Schema, *, text_field: str = "text") -> None:
        super().__init__()
        self.out, self.schema, self.text_field = Path(out), schema, text_field

    def path(self, rank: int) -> Path:
        return self.out / f"{rank:05d}.parquet"

    def has(self, rank: int) -> bool:
        """Whether the file of a task that is done is still there."""
        return self.path(rank).is_file()

    def identity(self) -> dict[str, Any]:
        return {"columns": str(self.schema), "text_field": self.text_field}

    def check(self, tasks: int) -> None:
        """RunError names a file that is not of a run of so many tasks."""
        ours = {self.path(rank) for rank in range(tasks)}
        if foreign := sorted(path for path in self.out.rglob("*.parquet") if path not in ours and path.name[0] != "."):
            raise RunError(f"{foreign[0]} is not of a run of {tasks} tasks: move it away, or choose another --out")

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        """Write the documents, and yield each."""
        documents = iter(data)
        with (
            atomic_path(self.path(rank)) as aside,
            pq.ParquetWriter(aside, self.schema, compression="zstd") as writer,
        ):
            while batch := list(itertools.islice(documents, BATCH_ROWS)):
                writer.write_table(self._table(batch))
                for document in batch:
                    self.update_doc_stats(document)
                    yield document

    def _table(self, batch: Sequence[Document]) -> pa.Table:
        rows = [
            {
                **document.metadata,
                "id": document.id,
                self.text_field: None if document.metadata.get(INPUT_STATUS) == NULL_TEXT else document.text,
            }
            for document in batch
        ]
        try:
            return pa.Table.from_pylist(rows, schema=self.schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RunError(f"{self.out}: documents {batch[0].id!r} to {batch[-1].id!r}: {error}") from error


def compare(reader: TableReader, writer: TableWriter, tasks: int) -> int:
    """How many rows there are, if the files hold exactly the reader's rows, in order: same `id`, same text.

    Errors: RunError names the first row that is missing, new or different; the file of a task that has none.
    """
    writer.check(tasks)
    total = 0
    for rank in range(tasks):
        path = writer.path(rank)
        if not path.is_file():
            raise RunError(f"{path} is missing: the same command makes it again")
        for wanted, found in itertools.zip_longest(reader.rows(rank, tasks), _written(path, reader.text_field)):
            if found is None:
                raise RunError(f"{path} lacks the row {wanted[0]['id']!r} of {reader.place}/{wanted[1]}: {AFRESH}")
            if wanted is None:
                raise RunError(f"{path} has a row {found[0]!r} that {reader.place} does not have there: {AFRESH}")
            row, file = wanted
            if (str(row["id"]), row[reader.text_field]) != (str(found[0]), found[1]):
                raise RunError(
                    f"{path} has the row {found[0]!r} where {reader.place}/{file} has {row['id']!r}, or another text: "
                    f"{AFRESH}"
                )
            total += 1
    return total


AFRESH = "remove the folder that holds it and start afresh"


def _written(path: Path, text_field: str) -> Iterator[tuple[Any, str | None]]:
    try:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=["id", text_field], use_threads=False):
                yield from zip(batch["id"].to_pylist(), batch[text_field].to_pylist(), strict=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): remove it, and give the command again"
        ) from error
