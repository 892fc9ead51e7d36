"""A GGUF file's metadata and table of tensors, and a split file joined."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxentropy.errors import ModelError

SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of struct
STRING, ARRAY = 8, 9
FLOAT32 = 0  # the type of a tensor
MAGIC = int.from_bytes(b"GGUF", "little")


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """What a GGUF file says of its model: its metadata, arrays as lists, and its tensors."""

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: frozenset[str]
    small: dict[str, tuple[float, ...]]
    """The values of vectors in float32 that are no part of a layer."""


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file of version 2 or 3, of whose tensors nothing else is read.

    (The reader of the package `gguf` takes half a minute where a vocabulary has 262,144 tokens.)

    Errors: ModelError for what is no such file or a damaged one, one file of several, or a file that holds no model but
    an adapter.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, tensors, small = _header(_Cursor(data, 0))
    except (struct.error, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise ModelError(f"GGUF file {path} cannot be read: {error or type(error).__name__}") from error
    if (count := metadata.get("split.count", 0)) > 1:
        raise ModelError(
            f"GGUF file {path} is file {metadata.get('split.no', 0) + 1} of {count}: keep their names "
            f"(NAME-00001-of-{count:05}.gguf) and give the first"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelError(f"GGUF file {path} holds no model: its general.type is {kind!r}")
    architecture = str(metadata.get("general.architecture", ""))
    return GGUFFile(path=path, architecture=architecture, metadata=metadata, tensors=tensors, small=small)


class _Cursor:
    """A place in the bytes of a file, little-endian."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        form = f"<{count}{kind}"
        found = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def number(self, kind: str) -> Any:
        return self.numbers(kind)[0]

    def text(self) -> str:
        size = self.number("Q")
        raw = self.data[self.place : self.place + size]
        if len(raw) < size:
            raise ValueError("the file ends within its header")
        self.place += size
        return raw.decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        return [self.value(inner) for _ in range(count)]


def _header(at: _Cursor) -> tuple[dict[str, Any], frozenset[str], dict[str, tuple[float, ...]]]:
    magic, version, n_tensors, n_keys = at.number("I"), at.number("I"), at.number("Q"), at.number("Q")
    if magic != MAGIC:
        raise ValueError("it is not a GGUF file")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is not known")
    metadata = {}
    for _ in range(n_keys):
        key = at.text()
        metadata[key] = at.value(at.number("I"))
    table = {}
    for _ in range(n_tensors):
        name = at.text()
        table[name] = (at.numbers("Q", at.number("I")), at.number("I"), at.number("Q"))
    alignment = metadata.get("general.alignment", 32)
    start = -(-at.place // alignment) * alignment
    small = {
        name: _Cursor(at.data, start + offset).numbers("f", shape[0])
        for name, (shape, kind, offset) in table.items()
        if len(shape) == 1 and kind == FLOAT32 and not name.startswith("blk.")
    }
    return metadata, frozenset(table), small


# --- one model in several files ---------------------------------------------------------------------------------------


def split_files(path: Path) -> list[Path]:
    """All files of the model that a GGUF file belongs to, by its name; the file alone where it is whole.

    >>> [path.name for path in split_files(Path("big-00002-of-00003.gguf"))]
    ['big-00001-of-00003.gguf', 'big-00002-of-00003.gguf', 'big-00003-of-00003.gguf']
    """
    found = SPLIT.fullmatch(path.name)
    if not found:
        return [path]
    stem, count = found["stem"], int(found["count"])
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def join_gguf(files: Sequence[Path], whole: Path) -> None:
    """Write one GGUF file with the metadata of the first file and the tensors of all.

    Errors: ModelError names a file that is not the part that its name says, or tensors that are not there.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [_part(GGUFReader(file), file, number, len(files)) for number, file in enumerate(files)]
    first = readers[0]
    writer = GGUFWriter(whole, first.fields["general.architecture"].contents())
    writer.data_alignment = first.alignment  # which the metadata name, where it is not the usual one
    for name, field in first.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        if kind != GGUFValueType.ARRAY or field.contents():  # an empty array cannot be written, and says nothing
            writer.add_key_value(name, field.contents(), kind, inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    expected = first.fields["split.tensors.count"].contents() if "split.tensors.count" in first.fields else None
    if expected not in (None, len(tensors)):
        raise ModelError(
            f"GGUF files {files[0]} and following hold {len(tensors)} tensors of {expected}: get them again"
        )
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _part(reader: Any, file: Path, number: int, count: int) -> Any:
    said = [reader.fields[key].contents() if key in reader.fields else None for key in ("split.no", "split.count")]
    if said != [number, count]:
        raise ModelError(
            f"GGUF file {file}: its metadata says part {said[0]} of {said[1]} (from 0), its name otherwise"
        )
    return reader
