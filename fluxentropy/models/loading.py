"""A zoo entry -> a decoder with its tokenizer, ready on a device."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.adapters import adapter_folder, base_entry, cast_weights, download_adapter, merge_adapter
from fluxentropy.models.files import (
    CONVERSION,
    TOKENIZERS,
    count_parameters,
    gguf_fingerprint,
    how_to_get,
    hub_folder,
    integer_weights,
    missing_files,
)
from fluxentropy.models.gguf import converted, first_line, gguf_tokenizer, quiet_transformers
from fluxentropy.models.weights import (
    check_folder,
    check_integers,
    check_memory,
    is_out_of_memory,
    load_checked,
    loader_for,
)
from fluxentropy.models.zoo import DTYPES, ZooEntry, near_names
from fluxentropy.runs.files import fingerprint_file, fingerprint_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


FINGERPRINTED = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.model", "*.txt")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A model with its tokenizer. `fingerprint` identifies both, `notes` say what was decided and why.

    The weights are loaded when `model` is first asked for; a CPU may never ask (`models.paths`). `dtype` is the
    precision that was asked for: int8 has its weights loaded in float32.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    load: Callable[[], PreTrainedModel] = field(repr=False)
    load_config: Callable[[], PreTrainedConfig] = field(repr=False)
    folder: Path | None = None  # that holds these weights, where it is known
    notes: list[str] = field(default_factory=list)  # loading may add to them

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, fingerprint: str) -> Decoder:
        """The decoder of a model that is in memory."""
        return cls(
            name=name,
            tokenizer=tokenizer,
            device=model.device,
            dtype=model.dtype,
            fingerprint=fingerprint,
            load=lambda: model,
            load_config=lambda: model.config,
        )

    @cached_property
    def model(self) -> PreTrainedModel:
        """The loaded model, in evaluation mode on its device. Errors: ModelError, as `load_decoder`."""
        return self.load()

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration. (That of transformers 5.23 loads a third of torch: half a start.)"""
        return self.load_config()

    @cached_property
    def window(self) -> int | None:
        """The longest input the model was built for, in tokens; None where its configuration sets no limit."""
        from fluxentropy.models.forward import dynamic_factor

        config = self.config.get_text_config()
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            value = getattr(config, key, None)
            if isinstance(value, int) and value > 0:
                return int(value * dynamic_factor(config))
        return None


def load_decoder(entry: ZooEntry, *, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Decoder:
    """Load the model and its tokenizer onto a device, in evaluation mode.

    `auto` takes CUDA, then MPS, then the CPU; and bf16 on GPUs that have it, else fp32 (an entry's own dtype wins over
    auto). What is on this machine already is used as it is: a Hub model is downloaded once, a GGUF file converted once.

    Errors: ModelError names the model and what is missing, wrong, or too large for the device; UsageError an unknown
    device.
    """
    decoder = find_decoder(entry, device=device, dtype=dtype, offline=offline)
    _ = decoder.model
    return decoder


def find_decoder(entry: ZooEntry, *, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Decoder:
    """Like `load_decoder`, the weights not loaded yet where all files are here."""
    import torch

    place, place_note = _choose_device(device)
    kind, kind_note = _choose_dtype(entry.dtype if dtype == "auto" else dtype, place)
    if adapter := adapter_folder(entry):
        return _load_adapted(entry, adapter, place, kind, (place_note, kind_note), offline)
    found = _find(entry, offline)
    known = count_parameters(found.folder) if found.folder else None
    width = torch.float32 if kind == torch.int8 else kind  # as it is read
    check_memory(entry.name, max(known or 0, entry.parameters or 0) or None, width, place)
    if found.source == entry.hub and not offline and (adapter := download_adapter(entry)):
        return _load_adapted(entry, adapter, place, kind, (place_note, kind_note), offline)
    tokenizer = _load_tokenizer(entry, found, offline)
    notes = [text for text in (place_note, kind_note, found.note) if text]

    def load() -> PreTrainedModel:
        model, note = _load_model(entry, found, kind, offline)
        notes.extend([note] if note else [])
        _check_decoder(entry.name, model, tokenizer)
        model.eval().requires_grad_(False)
        _move(entry.name, model, place)
        return model

    loaded = {"model": load()} if found.source == entry.hub else {}  # downloaded now; then its commit is known
    decoder = Decoder(
        name=entry.name,
        tokenizer=tokenizer,
        device=place,
        dtype=kind,
        fingerprint=found.fingerprint or _hub_fingerprint(entry),
        load=load,
        load_config=lambda: _load_config(entry, found, offline),
        folder=None if entry.trust_remote_code else found.folder or hub_folder(entry),
        notes=notes,
    )
    decoder.__dict__.update(loaded)
    return decoder


def _move(name: str, model: PreTrainedModel, place: torch.device) -> None:
    try:
        model.to(place)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ModelError(f"model {name!r} does not fit on {place}: {first_line(error)}") from error


def _load_adapted(
    entry: ZooEntry, folder: Path, place: torch.device, dtype: torch.dtype, notes: tuple[str, str], offline: bool
) -> Decoder:
    """A base model with an adapter merged into its weights in float32, which are then rounded to `dtype`."""
    import torch
    from transformers import AutoTokenizer

    from fluxentropy.models.forward import probe_rows

    if missing := missing_files(folder):
        raise ModelError(f"folder {folder} holds no adapter: it has no {', '.join(missing)}")
    base = load_decoder(base_entry(entry, folder), device="cpu", dtype="fp32", offline=offline)
    model = merge_adapter(entry.name, base.model, folder, probe_rows(base.model)[1])
    tokenizer = base.tokenizer
    if any(path.is_file() for pattern in TOKENIZERS for path in folder.glob(pattern)):
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if dtype not in (torch.float32, torch.int8):
        cast_weights(model, dtype)
    model.eval().requires_grad_(False)
    _move(entry.name, model, place)
    prints = {"adapter": fingerprint_folder(folder), "base": base.fingerprint}
    note = f"adapter {folder} merged in float32 into its base {base.name}"
    merged = Decoder.of(model, tokenizer, name=entry.name, fingerprint="sha256:" + fingerprint_json(prints))
    return dataclasses.replace(merged, dtype=dtype, notes=[*notes, *base.notes[2:], note])


def fingerprint_folder(folder: Path) -> str:
    """A fingerprint of a model folder: the names and contents of its weights, configuration and tokenizer files."""
    names = {path for pattern in FINGERPRINTED for path in folder.glob(pattern)}
    return "sha256:" + fingerprint_json({path.name: fingerprint_file(path) for path in sorted(names)})


# --- where and how ----------------------------------------------------------------------------------------------------


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
        if dtype == "bf16" and place.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            note += "; this processor has no bf16 units: fp32 is faster here"
        return getattr(torch, DTYPES[dtype]), note
    if place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "dtype bf16: this GPU computes in it"
    return torch.float32, f"dtype fp32: exact, the default on {place.type}"


# --- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An entry's files."""

    folder: Path | None  # that they are in, as far as they are here
    source: str  # what to hand to `from_pretrained`: the folder, or a Hub id where some are missing
    fingerprint: str = ""  # of a Hub model: its commit, known after loading
    note: str = ""


def _find(entry: ZooEntry, offline: bool) -> _Found:
    """The entry's files; a GGUF file is converted if it never was, a Hub model is not downloaded yet."""
    if entry.hub:
        return _find_on_hub(entry, entry.hub, offline)
    if entry.folder:
        folder = Path(entry.folder).expanduser()
        if missing := missing_files(folder):
            raise ModelError(f"folder {folder} holds no model: it has no {', '.join(missing)}")
        check_folder(entry.name, folder, own_code=entry.trust_remote_code)
        return _Found(folder=folder, source=str(folder), fingerprint=fingerprint_folder(folder))
    folder = converted(entry)
    note = f"GGUF weights dequantised to fp32, kept in {folder}"
    fingerprint = f"{gguf_fingerprint(entry)}/v{CONVERSION}"  # another conversion may give other numbers
    return _Found(folder=folder, source=str(folder), fingerprint=fingerprint, note=note)


def _find_on_hub(entry: ZooEntry, hub: str, offline: bool) -> _Found:
    """A Hub model, as a folder of the Hub's cache where all its files are there: then the Hub is not asked for them.

    (Even with `local_files_only`, transformers asks the Hub which commit a branch is at.)
    """
    from huggingface_hub import constants

    offline = offline or constants.HF_HUB_OFFLINE
    folder = hub_folder(entry)
    missing = missing_files(folder)
    if offline and missing:
        raise ModelError(
            f"model {entry.name!r}: the Hub's cache {constants.HF_HUB_CACHE} has no {', '.join(missing)} of "
            f"{entry.source}: run `{how_to_get(entry)}`, or allow downloads (no --offline, no HF_HUB_OFFLINE)"
            f"{near_names(entry.name)}"
        )
    if folder:
        check_folder(entry.name, folder, own_code=entry.trust_remote_code)
    if folder and not missing and (offline or not entry.trust_remote_code):  # its code may be elsewhere on the Hub
        return _Found(folder=folder, source=str(folder), note="cached files only" if offline else "")
    return _Found(folder=folder, source=hub)


def _hub_fingerprint(entry: ZooEntry) -> str:
    """A Hub model's id and commit: the Hub's cache keeps its files in a folder that is named like the commit."""
    folder = hub_folder(entry)
    return f"{entry.hub}@{folder.name if folder else entry.revision or 'main'}"


def _load_tokenizer(entry: ZooEntry, found: _Found, offline: bool) -> PreTrainedTokenizerBase:
    with _clear_errors(entry), quiet_transformers():
        if entry.hub or entry.folder:
            from transformers import AutoTokenizer  # looks at the folder of every kind of model

            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                found.source, **_options(entry, found, offline)
            )
            return tokenizer
        return gguf_tokenizer(entry)


def _load_config(entry: ZooEntry, found: _Found, offline: bool) -> PreTrainedConfig:
    from transformers import AutoConfig

    with _clear_errors(entry), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(found.source, **_options(entry, found, offline))
        return config


def _load_model(entry: ZooEntry, found: _Found, dtype: torch.dtype, offline: bool) -> tuple[PreTrainedModel, str]:
    import torch

    config = _load_config(entry, found, offline)
    dtype = torch.float32 if dtype == torch.int8 else dtype
    with _clear_errors(entry), quiet_transformers():
        loader = loader_for(entry.name, config, own_code=entry.trust_remote_code)
        options = _options(entry, found, offline)
        model, note = load_checked(loader, found.source, name=entry.name, dtype=dtype, **options)
        if getattr(model, "hf_quantizer", None) is None and (folder := found.folder or hub_folder(entry)):
            check_integers(f"model {entry.name!r}", integer_weights(folder))
    return model, note


def _options(entry: ZooEntry, found: _Found, offline: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": entry.trust_remote_code, "local_files_only": offline}
    if found.source == entry.hub:
        options["revision"] = entry.revision or "main"
    return options


@contextlib.contextmanager
def _clear_errors(entry: ZooEntry) -> Iterator[None]:
    """What transformers, safetensors and a model's own code raise, as a ModelError that names the model."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(f"model {entry.name!r} does not fit in memory: {first_line(error)}") from error
        hint = near_names(entry.name)
        if "gated" in str(error):
            terms = entry.terms or f"https://huggingface.co/{entry.hub}"
            hint = f": accept its licence on the Hub ({terms}) and run `hf auth login`"
        if isinstance(error, pickle.UnpicklingError):
            raise ModelError(
                f"model {entry.name!r} cannot be loaded: its .bin file holds more than weights, or is damaged, and "
                f"objects that run code are not opened: convert it to safetensors"
            ) from error
        raise ModelError(f"model {entry.name!r} cannot be loaded: {first_line(error)}{hint}") from error


def _check_decoder(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if model.config.is_encoder_decoder:
        raise ModelError(f"model {name!r} ({model.config.model_type}) is an encoder-decoder: scoring needs a decoder")
    if not tokenizer.get_vocab():
        raise ModelError(f"model {name!r}: its tokenizer has an empty vocabulary")
    if model.get_output_embeddings() is None:
        raise ModelError(f"model {name!r} ({model.config.model_type}) has no output projection over a vocabulary")
