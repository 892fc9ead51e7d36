"""Files that appear whole or not at all, their fingerprints, JSON, and the versions that a manifest records."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxentropy.errors import RunError

# --- JSON -------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` with arrays as lists, and null for NaN and infinities, which JSON has not.

    >>> import numpy as np
    >>> plain({"a": np.array([1.5, np.nan]), "b": (np.int64(2), True), 3: float("inf")})
    {'a': [1.5, None], 'b': [2, True], '3': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers; numpy itself need not be loaded for this
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- versions ---------------------------------------------------------------------------------------------------------


RECORDED = ("torch", "transformers", "tokenizers", "pyarrow")


def versions(names: Sequence[str] = RECORDED) -> dict[str, str]:
    """Installed versions of the distributions `names`, with this package's and Python's."""
    found = {"python": platform.python_version()}
    for name in ("fluxentropy", *names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


# --- files that appear whole or not at all ----------------------------------------------------------------------------


FULL_HASH_LIMIT = 256 * 2**20  # bytes; larger files are fingerprinted by evenly spaced samples
SAMPLE_BLOCKS, SAMPLE_BYTES = 256, 64 * 2**10


# --- whole files ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write beside `path`; on success it is fsynced and renamed over `path`, on failure removed.

    Without `durable` nothing is fsynced: the file is whole for every process, until the power is cut.

    The name written aside starts with a dot, so that readers of the folder never pick up a half-written file, and
    keeps the suffix, so that writers which look at suffixes work. It does not contain the process id: what a killed
    process leaves behind is overwritten by the next one.

    Errors: `RunError` names the path when the target cannot be written or the disk is full.
    """
    path = Path(path)
    aside = path.with_name(f".aside-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if durable:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
        if durable:
            fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `atomic_path` for a folder: filled aside, fsynced, renamed to `path`, which must not exist yet.

    If another process put the same folder in place meanwhile, its copy stays and this one is dropped.
    """
    path = Path(path)
    aside = path.with_name(f".aside-{os.getpid()}-{path.name}")
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if not path.exists():
            aside.rename(path)
            fsync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (POSIX only keeps a rename across a crash after this)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write `value` as JSON with sorted keys, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """`value` as `write_json` writes it."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file. `RunError` names a damaged one."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, or start afresh with --overwrite") from error


# --- fingerprints -----------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """SHA-256 of all bytes of `path`, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_file(path: Path) -> str:
    """A fingerprint of a file's content: `sha256:…` of all of it, or `sampled:…` for files over 256 MiB.

    The sampled form hashes the size and 256 evenly spaced blocks of 64 KiB, the first and the last included.
    It does not depend on the file's name or times.
    """
    size = path.stat().st_size
    if size <= FULL_HASH_LIMIT:
        return "sha256:" + sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for block in range(SAMPLE_BLOCKS):
            file.seek((size - SAMPLE_BYTES) * block // (SAMPLE_BLOCKS - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return "sampled:" + digest.hexdigest()


def fingerprint_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
