"""The run directory: begun, resumed or refused, with its parts, its configuration and its manifest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxentropy.errors import RunError
from fluxentropy.runs.files import (
    atomic_path,
    fingerprint_json,
    json_text,
    read_json,
    sha256_file,
    write_json,
    write_text,
)

# --- run directories --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the `manifest.json` of a folder says; a folder without one has a record that says nothing."""

    path: Path
    """The folder."""
    facts: Mapping[str, Any]
    """All that is in the file."""

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Errors: RunError where the file is damaged."""
        return cls(path=folder, facts=read_json(folder / MANIFEST) or {})

    @property
    def complete(self) -> bool:
        """Whether the run is finished; one that is being cleared or resumed is not."""
        return self.facts.get("complete") is True

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the bytes of the result, as nested JSON."""
        return self.facts.get("identity") or {}


class RunDirectory:
    """A directory that holds one run and nothing else: its identity, its parts, and a lock while someone writes.

        with RunDirectory(out, overwrite=False) as run:  # locked; another command's directory is refused
            run.begin(identity, config_yaml)             # another run's directory is refused
            for number in range(n):
                if number not in run.done(): ...

    Errors: RunError when the directory is not a run directory, is another run's, or is held by another process.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        folder: str = "scores",
        suffix: str = ".parquet",
        owned: Sequence[str] = (),
        shared: bool = False,
    ) -> None:
        """`owned` are patterns of what else a run of this kind puts into its folder.

        `shared` lets several processes make parts of the run at once; one that is not shared then completes it.
        """
        self.path = path
        self.shared = shared
        self.owned = tuple(owned)
        self.overwrite = overwrite
        self.parts = path / folder
        self.suffix = suffix
        self.identity: Any = None
        self._lock: int | None = None

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return RunRecord.read(self.path).complete

    def __enter__(self) -> RunDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            with self._one_at_a_time():
                self._refuse_foreign()
                manifest = None if self.overwrite else read_json(self.manifest)
                if manifest is None or manifest.get("clearing"):
                    self.clear()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def begin(self, identity: Mapping[str, Any], config_yaml: str, *, last: bool = False) -> None:
        """Say which run this is: `identity` is everything that decides the bytes of the result, as nested JSON.

        What `config.resolved.yaml` says of a complete run stays, unless it shall be that of the `last` command.

        Errors: RunError names the first difference from the run that the directory holds.
        """
        self.identity = json.loads(json.dumps(identity))
        with self._one_at_a_time():
            manifest, records = read_json(self.manifest) or {}, self._records()
            if found := difference(manifest.get("identity", self.identity), self.identity):
                raise RunError(
                    f"{self.path} holds another run: {found}. Choose another --out, or start afresh with --overwrite"
                )
            complete, config = manifest.get("complete") is True, self.path / CONFIG
            said = config.read_text(encoding="utf-8") if config.exists() else None
            if not (said is not None and complete) or (last and not _same_but_place(said or "", config_yaml)):
                if said != config_yaml:
                    write_text(config, config_yaml)
                records |= {"config_sha256": sha256_file(config)}
            if not manifest:
                write_json(self.manifest, {"complete": False, "identity": self.identity})
            self._record(records | {"identity_sha256": fingerprint_json(self.identity)})

    def done(self) -> dict[int, dict[str, Any]]:
        """The manifests of the parts that are whole, by number, in order; missing and cut parts are left out."""
        found: dict[int, dict[str, Any]] = {}
        for number in sorted(part_numbers(self.parts)):
            file, record = part_paths(self.parts, number, self.suffix)
            facts = read_json(record)
            if facts is not None and file.is_file() and file.stat().st_size == facts.get("bytes"):
                found[number] = facts
        return found

    @contextlib.contextmanager
    def part(self, number: int, facts: dict[str, Any], *, hashed: bool = True) -> Iterator[Path]:
        """Yield a path to write part `number` to; afterwards its manifest is written with `facts`, size and SHA-256.

        `facts` may be filled in until the block ends. A part that is not `hashed` is not to stay.
        """
        file, record = part_paths(self.parts, number, self.suffix)
        record.unlink(missing_ok=True)
        with atomic_path(file) as aside:
            yield aside
            facts |= {"bytes": aside.stat().st_size, **({"sha256": sha256_file(aside)} if hashed else {})}
        write_json(record, facts)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run complete and record `facts`."""
        manifest = {"complete": True, "identity": self.identity, **facts}
        self._record(self._records() | {"manifest_sha256": hashlib.sha256(json_text(manifest).encode()).hexdigest()})
        write_json(self.manifest, manifest)

    def _records(self) -> dict[str, Any]:
        return read_json(self.path / RECORDS) or {}

    def _record(self, records: dict[str, Any]) -> None:
        if records != self._records():
            write_json(self.path / RECORDS, records)

    def clear(self) -> None:
        """Remove a former run, or what an interrupted start or clearing left.

        A manifest says so until all else is gone: a kill in between leaves neither a run that looks whole nor files
        that look foreign.
        """
        if self.manifest.exists():
            write_json(self.manifest, {"complete": False, "clearing": True})
        for path in [
            *(self.path / name for name in (*RUN_FILES, self.parts.name)),
            *(path for name in self.owned for path in self.path.glob(name)),
            self.manifest,
        ]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 100, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise RunError(f"{self.path} is being written by {holder}: wait for it, or choose another --out") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
        self._lock = handle

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Of the processes that share the directory."""
        if not self.shared:
            yield
            return
        with open(self.path / ".starting", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _refuse_foreign(self) -> None:
        if self.manifest.exists():
            return
        ours = {*RUN_FILES, self.parts.name}
        foreign = [path.name for path in self.path.iterdir() if path.name not in ours and not path.name.startswith(".")]
        if foreign:
            raise RunError(f"{self.path} is not a run directory (it holds {min(foreign)}): choose another --out")


CONFIG = "config.resolved.yaml"
RECORDS = ".records.json"  # SHA-256 of the run's identity, of CONFIG and of the manifest: what proves these
MANIFEST = "manifest.json"
RUN_FILES = (CONFIG, RECORDS, "rejected.jsonl", "input")


def _same_but_place(old: str, new: str) -> bool:
    """Whether two configurations differ in nothing but where the run is written."""
    return all(line.startswith(("out: ", "overwrite: ")) for line in {*old.splitlines()} ^ {*new.splitlines()})


def part_paths(folder: Path, number: int, suffix: str = ".parquet") -> tuple[Path, Path]:
    """The file of a part and its manifest.

    >>> [path.name for path in part_paths(Path("run/scores"), 3)]
    ['part-00003.parquet', '.part-00003.json']
    """
    stem = f"part-{number:05d}"
    return folder / f"{stem}{suffix}", folder / f".{stem}.json"


def part_numbers(folder: Path) -> set[int]:
    """The numbers of the parts in `folder` that have a manifest."""
    names = (re.fullmatch(r"\.part-(\d{5,})\.json", path.name) for path in folder.glob(".part-*.json"))
    return {int(match[1]) for match in names if match}


def difference(old: Any, new: Any, name: str = "") -> str:
    """The first difference between two JSON values in words, empty where they are equal.

    >>> difference({"model": {"name": "a"}}, {"model": {"name": "b"}})
    "model.name is 'a' there and 'b' here"
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            if text := difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")):
                return text
        return ""
    return "" if old == new else f"{name} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
