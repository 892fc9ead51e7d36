"""A GGUF file's metadata and tensors as the `gguf` package reads them, and a split file joined."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxentropy.errors import ModelError

SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, kw_only=True, eq=False)
class GGUFFile:
    """What a GGUF file says of its model. Shapes are in the order of torch; arrays of the tokenizer are left out."""

    path: Path
    architecture: str
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    reader: Any

    def values(self, tensor: str) -> list[float]:
        """The numbers of a small float32 tensor."""
        return [float(x) for found in self.reader.tensors if found.name == tensor for x in found.data.ravel()]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file; the package `gguf` raises many kinds of errors where it is damaged.

    Errors: ModelError for one file of several, or a file that holds no model but an adapter.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not _is_long(name)}
    if (count := metadata.get("split.count", 0)) > 1:
        raise ModelError(
            f"GGUF file {path} is file {metadata.get('split.no', 0) + 1} of {count}: keep their names "
            f"(NAME-00001-of-{count:05}.gguf) and give the first"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelError(f"GGUF file {path} holds no model: its general.type is {kind!r}")
    return GGUFFile(
        path=path,
        architecture=str(metadata.get("general.architecture", "")),
        metadata=metadata,
        shapes={tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors},
        reader=reader,
    )


def _is_long(name: str) -> bool:
    return name.startswith("tokenizer.") and not name.endswith("_token_id")


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
