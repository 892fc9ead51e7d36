"""The scores as a block of a datatrove pipeline: documents in, the same documents with scores in their metadata out.

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from fluxentropy.scoring.datatrove import EntropyScorer, run_tasks

    pipeline = [ParquetReader("web"), EntropyScorer("smollm2-135m-instruct"), ParquetWriter("scored")]
    run_tasks(LocalPipelineExecutor(pipeline, tasks=64, workers=2, logging_dir="logs"))

`run_tasks` stands for the executor's own `run`, for which a task is done if its number once was: of another number of
tasks, other files or another model it would make a mixture, with rows lost and rows twice. The readers of datatrove
pass over texts that are empty or null; scoring/datatrove.py has one that does not.

A block is pickled and copied to each task, so it holds its options alone; a task loads the model when it has its first
document.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.corpus.readers import is_text
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.runs.directory import difference
from fluxentropy.runs.files import atomic_path, fingerprint_file
from fluxentropy.runs.tables import without_dictionary
from fluxentropy.scoring.dataset import WINDOW, make_scorer
from fluxentropy.scoring.options import ScoringOptions
from fluxentropy.scoring.scores import SCORE_NAMES

try:
    from datatrove.data import Document
    from datatrove.io import get_datafolder
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError("fluxentropy.scoring.datatrove needs datatrove: pip install 'fluxentropy[datatrove]'") from error

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor
    from datatrove.io import DataFolder
    from fsspec.implementations.dirfs import DirFileSystem


# --- the block --------------------------------------------------------------------------------------------------------


INPUT_STATUS, NULL_TEXT = "fluxentropy_input_status", "null_text"  # in a document's metadata: what its text was
RECORD = "fluxentropy.json"  # in the logging folder: which run its finished tasks are of


class EntropyScorer(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Adds the scores of a document's text to its metadata: `entropy_mean`, all other score columns, and `status`.

    A score that a text does not have is None, and `status` says why. The scores are those of `score_stream` with a
    window of `batch_size`. The step's statistics count tokens and documents by status, and sum up mean entropies.

    Args:
        model: zoo name, Hub id, folder or .gguf file
        prefix: stands before each name, so that several models can score the same documents
        batch_size: documents that are tokenised, sorted by length and scored together
        device, dtype, offline, max_tokens, window, stride, batch_tokens: as for `fluxentropy score`; the device
            "auto" is the first GPU that a task sees

    Errors: UsageError when a document's metadata has one of the names already, and for options that make no sense or
    do not fit the model; ModelError when the model cannot be loaded.
    """

    name = "🎲 Entropy"
    type = "🔢 - SCORER"

    def __init__(
        self,
        model: str,
        *,
        prefix: str = "",
        batch_size: int = WINDOW,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        max_tokens: int = 512,
        window: Literal["first", "sliding"] = "first",
        stride: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: use 1 or more")
        if window not in ("first", "sliding"):
            raise UsageError(f"window {window!r}: use first or sliding")
        ScoringOptions(max_tokens=max_tokens, window=window, stride=stride, batch_tokens=batch_tokens)  # checks them
        self.model, self.prefix, self.batch_size = model, prefix, batch_size
        self.options = {
            "device": device,
            "dtype": dtype,
            "offline": offline,
            "max_tokens": max_tokens,
            "window": window,
            "stride": stride,
            "batch_tokens": batch_tokens,
        }

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        """Yield the documents in order, with their scores."""
        documents = iter(data or ())
        scorer = None
        while batch := list(itertools.islice(documents, self.batch_size)):
            self._check_names(batch)
            with self.track_time("batch"):
                scorer = scorer or make_scorer(self.model, **self.options)
                scores = scorer.score([document.text or "" for document in batch])
            for document, found in zip(batch, scores, strict=True):
                if document.text is None or document.metadata.get(INPUT_STATUS) == NULL_TEXT:
                    found = dataclasses.replace(found, status=NULL_TEXT)
                document.metadata |= {self.prefix + name: value for name, value in dataclasses.asdict(found).items()}
                self.stat_update("tokens", value=found.n_tokens)
                self.stat_update(f"status_{found.status}")
                if found.entropy_mean is not None:
                    self.stat_update("entropy_mean", value=found.entropy_mean)
                if document.text is not None:
                    self.update_doc_stats(document)
                yield document

    def identity(self) -> dict[str, Any]:
        """What decides the scores, the model's fingerprint among it; the model is loaded for it, and let go."""
        scorer = make_scorer(self.model, **self.options)
        found = scorer.decoder
        kind = {"device": found.device.type, "dtype": str(found.dtype), "path": scorer.path.name}
        return {"model": self.model, "fingerprint": found.fingerprint, **self.options, **kind, "prefix": self.prefix}

    def _check_names(self, batch: list[Document]) -> None:
        names = {self.prefix + name for name in SCORE_NAMES}
        for document in batch:
            if taken := sorted(names & document.metadata.keys()):
                raise UsageError(
                    f"document {document.id!r} has {taken[0]!r} in its metadata already: "
                    f"remove it, or give {type(self).__name__} another prefix"
                )


def run_tasks(executor: PipelineExecutor) -> Any:
    """Run what is not done of an executor, if it is the run that its logging folder has begun; what its `run` returns.

    The folder remembers the number of tasks, the readers' files by their content, the options of all blocks, and the
    model. A task is made again whose file a `TableWriter` has lost.

    Errors: RunError names the first difference from the run that was begun there.
    """
    logs, tasks = executor.logging_dir, executor.world_size
    identity = json.loads(json.dumps({"tasks": tasks, "blocks": _blocks(executor.pipeline)}))
    begun = _begun(logs)
    if text := difference(begun or identity, identity):
        raise RunError(
            f"{logs.path} holds another run: {text}. What is done of it would not be done again: give the command as "
            f"before, or choose other folders for the logs and for what the tasks write"
        )
    writers = [step for step in executor.pipeline if hasattr(step, "has") and hasattr(step, "check")]
    for writer in writers:
        writer.check(tasks)
    if begun is None:
        with logs.open(RECORD, "w") as file:
            json.dump(identity, file, indent=1)
    for rank in range(tasks):
        done = f"completions/{rank:05d}"
        if not all(writer.has(rank) for writer in writers) and logs.isfile(done):
            logs.rm(done)
    return executor.run()


def _begun(logs: DataFolder) -> dict[str, Any] | None:
    """The run of which the logging folder holds finished tasks, or has begun; None where it is new.

    Errors: RunError where it was begun by the executor's own `run`, which does not say what its tasks were given.
    """
    if logs.isfile(RECORD):
        with logs.open(RECORD) as file:
            found: dict[str, Any] = json.load(file)
        return found
    if done := logs.list_files("completions"):
        tasks = "?"
        if logs.isfile("executor.json"):
            with logs.open("executor.json") as file:
                tasks = json.load(file).get("world_size", tasks)
        raise RunError(
            f"{logs.path} holds {len(done)} finished tasks of {tasks}, and not what they were given: remove it and "
            f"what they wrote, or choose other folders"
        )
    return None


def _blocks(pipeline: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """What decides what each block does, as far as it can be seen: its options that are plain values, and its files."""
    found: dict[str, dict[str, Any]] = {}
    for place, step in enumerate(pipeline, 1):
        if not isinstance(step, PipelineStep):
            found[f"{place} {getattr(step, '__qualname__', type(step).__name__)}"] = {}
            continue
        if hasattr(step, "identity"):
            facts = step.identity()
        else:
            plain = (str, int, float, bool, type(None))
            facts = {name: value for name, value in vars(step).items() if name[0] != "_" and isinstance(value, plain)}
            folder = getattr(step, "data_folder", None)
            if folder is not None and hasattr(step, "read_file"):
                names = folder.list_files(recursive=step.recursive, glob_pattern=step.glob_pattern)
                facts["files"] = {name: file_facts(folder, name) for name in names}
        found[f"{place} {step}"] = facts
    return found


def file_facts(folder: DataFolder, name: str) -> str:
    """What tells a file from a later one of its name: here its content, elsewhere what the place says of it."""
    path = Path(folder.resolve_paths(name))
    if path.is_file():
        return fingerprint_file(path)
    facts = folder.info(name)
    said = {key: str(facts[key]) for key in ("size", "etag", "ETag", "blob_id", "md5Hash") if facts.get(key)}
    return json.dumps(said, sort_keys=True)


# --- tables in datatrove runs -----------------------------------------------------------------------------------------
#
#     web/a.parquet   task 0   TableReader -> … -> TableWriter   scored/00000.parquet
#     web/b.parquet   task 1                                     scored/00001.parquet
#     web/c.parquet   task 0
#
# datatrove's own reader passes over texts that are empty or null, and its writer leaves a readable file where a task
# failed. Here each row becomes a document, and each task, also one without rows, one file, whole or none.


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
