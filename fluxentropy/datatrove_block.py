"""The scores as a block of a datatrove pipeline: documents in, the same documents with scores in their metadata out.

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from fluxentropy.datatrove_block import EntropyScorer, run_tasks

    pipeline = [ParquetReader("web"), EntropyScorer("smollm2-135m-instruct"), ParquetWriter("scored")]
    run_tasks(LocalPipelineExecutor(pipeline, tasks=64, workers=2, logging_dir="logs"))

`run_tasks` stands for the executor's own `run`, for which a task is done if its number once was: of another number of
tasks, other files or another model it would make a mixture, with rows lost and rows twice. The readers of datatrove
pass over texts that are empty or null; datatrove_tables.py has one that does not.

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

from fluxentropy.adapters import WINDOW, make_scorer
from fluxentropy.errors import RunError, UsageError
from fluxentropy.options import ScoringOptions
from fluxentropy.scores import SCORE_NAMES
from fluxentropy.store import difference, fingerprint_file

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError("fluxentropy.datatrove_block needs datatrove: pip install 'fluxentropy[datatrove]'") from error

if TYPE_CHECKING:
    from datatrove.data import Document
    from datatrove.executor.base import PipelineExecutor
    from datatrove.io import DataFolder

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
