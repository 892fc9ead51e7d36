"""Run directories of `score` -> the scores of their models, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import RunError, UsageError
from fluxentropy.registry import ALL_NAMES
from fluxentropy.scorematrix import ScoreMatrix
from fluxentropy.store import difference, read_json
from fluxentropy.tablefiles import run_parts
from fluxentropy.yamlfile import did_you_mean

CONSENSUS = "consensus"  # the folder of what all models say together: never one of the models
UNCOMPARED = ("bos_added", "tokenizer")  # policies that a tokenizer decides by itself


def run_folders(path: Path) -> list[Path]:
    """`path` itself where it is a run directory, else the runs in it, in the order of the zoo that wrote them."""
    if (path / "scores").is_dir():
        return [path]
    inside = {folder.parent.name: folder.parent for folder in sorted(path.glob("*/scores"))}
    inside.pop(CONSENSUS, None)
    if not inside:
        raise RunError(
            f"{path} is no run directory and holds none: `fluxentropy score` and `fluxentropy zoo` write them"
        )
    ordered = (read_json(path / "manifest.json") or {}).get("models", [])
    return [inside[name] for name in sorted(inside, key=lambda name: (name not in ordered, _place(name, ordered)))]


def _place(name: str, ordered: Sequence[str]) -> tuple[int, str]:
    return (ordered.index(name) if name in ordered else 0), name


def read_runs(runs: Sequence[Path], by: str) -> ScoreMatrix:
    """The column `by` of several runs. Texts are matched by id; what a run does not hold is NaN and counted.

    Runs that hold the same ids in the same order, as those of a zoo do, are matched row by row, so that ids may repeat.
    """
    parts = [run_parts(run) for run in runs]
    manifests = [_manifest(run) for run in runs]
    names = _names(runs, manifests)
    _check_policies(dict(zip(names, manifests, strict=True)))
    columns = [_read_column(files, by, run) for files, run in zip(parts, runs, strict=True)]
    ids, rows = _match([ids for ids, _ in columns], names)
    scores = np.full((ids, len(runs)), np.nan)
    for model, (_, values) in enumerate(columns):
        scores[rows[model], model] = values
    present = np.zeros((len(runs), ids), dtype=bool)
    for model, places in enumerate(rows):
        present[model, places] = True
    owner = present.argmax(axis=0)  # the first run that holds each text describes it
    return ScoreMatrix(
        models=tuple(names),
        scores=scores,
        measure=by,
        inputs={
            name: manifest["identity"]["model"]["fingerprint"] for name, manifest in zip(names, manifests, strict=True)
        },
        absent={name: int(ids - present[model].sum()) for model, name in enumerate(names)},
        texts=lambda: _texts(parts, rows, owner),
    )


def _manifest(run: Path) -> dict[str, Any]:
    manifest = read_json(run / "manifest.json") or {}
    if "policies" not in manifest:
        raise RunError(f"{run} is not a run of `fluxentropy score`: its manifest names no policies")
    return manifest


def _names(runs: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each run: its model's, or its folder's where a model has several runs."""
    for names in (
        [manifest["identity"]["model"]["name"] for manifest in manifests],
        [run.resolve().name for run in runs],
        [str(run) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    repeated = next(name for name, times in Counter(map(str, runs)).items() if times > 1)
    raise UsageError(f"{repeated} is given twice")


def _check_policies(manifests: dict[str, dict[str, Any]]) -> None:
    """Refuse to compare scores that were made by different rules, or of different versions of a file."""
    (first, there), *others = manifests.items()
    for name, here in others:
        for what in ("policies", "sources"):
            old, new = _comparable(there, what), _comparable(here, what)
            if what == "sources":  # a file that only one of them has read is no contradiction
                old, new = ({file: part[file] for file in old.keys() & new.keys()} for part in (old, new))
            if text := difference(old, new):
                text = text.replace(" there and ", f" in {first} and ").removesuffix(" here") + f" in {name}"
                raise RunError(f"runs of different {what} cannot be compared: {text}")


def _comparable(manifest: dict[str, Any], what: str) -> dict[str, Any]:
    if what == "sources":
        return dict(manifest["identity"]["sources"])
    rules = {key: value for key, value in manifest["policies"].items() if key not in UNCOMPARED}
    identity = manifest["identity"]
    return {**rules, "stride": identity.get("stride"), "text_field": identity.get("text_field")}


def _read_column(files: Sequence[Path], by: str, run: Path) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids and scores of a run; a text that was not scored is NaN."""
    schema = pq.read_schema(files[0])
    if by not in schema.names:
        raise UsageError(f"--by {by}: no such column in {run}{did_you_mean(by, schema.names)}")
    kind = schema.field(by).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UsageError(f"--by {by}: the values in {run} are of type {kind}, not numbers")
    table = pa.concat_tables(pq.read_table(file, columns=["id", by]) for file in files)
    values = table[by].cast(pa.float64()).to_numpy()
    return table["id"], np.where(np.isfinite(values), values, np.nan)


def _match(ids: Sequence[pa.ChunkedArray], names: Sequence[str]) -> tuple[int, list[np.ndarray]]:
    """How many texts there are in all, and for each run the row of the matrix that each of its texts has."""
    if all(column.equals(ids[0]) for column in ids[1:]):
        return len(ids[0]), [np.arange(len(ids[0]))] * len(ids)
    codes = pa.chunked_array(
        [chunk for column in ids for chunk in column.cast(pa.large_string()).chunks]
    ).dictionary_encode()
    flat = codes.combine_chunks()
    places = flat.indices.to_numpy(zero_copy_only=False)
    rows = np.split(places, np.cumsum([len(column) for column in ids])[:-1])
    for name, row in zip(names, rows, strict=True):
        repeated = len(row) - len(np.unique(row))
        if repeated:
            value, times = Counter(row.tolist()).most_common(1)[0]
            raise RunError(
                f"{repeated} texts of {name} share an id with another one ({flat.dictionary[value]} stands there "
                f"{times} times), so they cannot be matched with other runs: score with an --id-field that is unique"
            )
    return len(flat.dictionary), rows


def _texts(
    parts: Sequence[Sequence[Path]], rows: Sequence[np.ndarray], owner: np.ndarray
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """What describes each text: the columns that are no scores, and that all runs have."""
    schemas = [pq.read_schema(files[0]) for files in parts]
    shared = [
        field.name
        for field in schemas[0]
        if (field.name not in ALL_NAMES or field.name in ("n_tokens", "n_bytes"))
        and all(field.name in schema.names and schema.field(field.name).type == field.type for schema in schemas)
    ]
    for model, files in enumerate(parts):
        start = 0
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=4096, columns=shared):
                    places = rows[model][start : start + len(batch)]
                    start += len(batch)
                    mine = owner[places] == model
                    if mine.any():
                        yield pa.Table.from_batches([batch]).select(shared).filter(pa.array(mine)), places[mine]
