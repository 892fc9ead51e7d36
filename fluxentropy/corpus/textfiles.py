"""Text files -> records: JSON Lines, CSV, TSV and plain text, line by line, with what is wrong in each line.

A record is `(row, fields, status, size)`: the row's number in the file from 0, which counts rejected rows too; a dict
of its fields; what had to be mended, or None; and its length in bytes or characters. A line that cannot be used comes
as a `Rejected` in its place.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from fluxentropy.corpus.sources import COMPRESSIONS
from fluxentropy.errors import SourceError

EXCERPT = 200  # characters of a rejected line that are shown
MAX_DEPTH = 200  # of nested JSON, which Python reads by calling itself
MAX_DIGITS = 4300  # of an integer, Python's own limit
CELL_LIMIT = 2**28  # characters of a CSV cell; an opening quote without its end stops here
TEXT_LIMIT = 2**30  # bytes of a plain text file, which is one text
SURROGATE = re.compile("[\ud800-\udfff]")
Record = tuple[int, dict[str, Any], str | None, int]


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that cannot be used: the file's name, the line from 1, the row from 0, why, and how the line begins."""

    source_file: str
    line: int
    source_row: int
    reason: str
    excerpt: str


@contextmanager
def reading(path: Path | str, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn what reading `path` may raise into a `SourceError` that names it; `where` tells how far it came."""
    try:
        yield
    except (OSError, EOFError, MemoryError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        if "Frame requires too much memory" in reason:  # what zstd says of a window of more than 2^27 bytes
            reason = (
                "its zstd window is larger than 128 MiB, as `zstd --long=31` and `--ultra` make it: pack it anew "
                f"without, or unpack it with `zstd -d --long=31 {path}`"
            )
        raise SourceError(f"{path}: cannot be read{where()}: {reason}") from error


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of `path`, decompressed as they are read. A compressed file that is cut off raises `OSError`."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return open(path, "rb", buffering=2**20)
    return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression=compression), 2**20))


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text file: where it is, its stable name, its format (`jsonl`, `csv`, `tsv` or `txt`), the text's field."""

    path: Path
    name: str
    format: str
    text_field: str | None

    @property
    def cells(self) -> bool:
        """Whether all values are strings, whatever they look like."""
        return self.format in ("csv", "tsv")

    def records(self, blind: int = 0) -> Iterator[Record | Rejected]:
        """All records, or those after the first `blind`, which are not looked at (only where none is rejected).

        Errors: `SourceError` names the file and the last row before the fault.
        """
        row = -1
        with reading(self.path, lambda: f" after row {row}" if row >= 0 else ""), open_bytes(self.path) as stream:
            for record in _RECORDS[self.format](self, stream, blind):
                row = record.source_row if isinstance(record, Rejected) else record[0]
                yield record


# --- JSON Lines -------------------------------------------------------------------------------------------------------


def _json_records(file: TextFile, stream: BinaryIO, blind: int) -> Iterator[Record | Rejected]:
    """The records of JSON Lines. Blank lines count as rows, but give none.

    Bytes that are not UTF-8 and lone surrogates (`"\\\\ud800"`) become U+FFFD in all strings of the row, whose status
    is then `invalid_utf8` or `lone_surrogates`. The first `blind` lines that are not blank are passed over unread.
    """
    for number, raw in enumerate(stream):
        status = None
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line, status = raw.decode(errors="replace"), "invalid_utf8"
        if number == 0:
            line = line.removeprefix("\ufeff")
        if not line or line.isspace():
            continue
        if blind:
            blind -= 1
            continue
        try:
            fields = _parse(line)
            if "\\ud" in line or "\\uD" in line:
                fields, mended = _mend(fields)
                status = status or ("lone_surrogates" if mended else None)
            _check(fields, file.text_field)
            if line.count("[") + line.count("{") > MAX_DEPTH and _depth(fields) > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        except json.JSONDecodeError as error:
            column = min(error.pos, len(line.rstrip())) + 1
            reason = f"not valid JSON ({error.msg.removesuffix(' at')} at column {column})"
        except RecursionError:
            reason = f"nested deeper than {MAX_DEPTH} levels"
        except ValueError as error:
            reason = str(error)
        else:
            yield number, fields, status, len(raw)
            continue
        yield Rejected(source_file=file.name, line=number + 1, source_row=number, reason=reason, excerpt=_excerpt(line))


def _check(fields: Any, text_field: str | None) -> None:
    if type(fields) is not dict:
        hint = "; the file is a JSON array: write one object a line" if type(fields) is list else ""
        raise ValueError(f"not a JSON object but {kind_of(fields)}{hint}")
    text = fields.get(text_field)
    if type(text) is not str and text is not None:
        raise ValueError(f"the text field {text_field!r} is not a string but {kind_of(text)}")


def kind_of(value: Any) -> str:
    """What JSON calls a value.

    >>> kind_of([1]), kind_of(True), kind_of(None)
    ('an array', 'a boolean', 'null')
    """
    return _KINDS.get(type(value), "null")


_KINDS = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the integer {digits[:24]}… has {len(digits):,} digits: write it as a string")
    return int(digits)


_parse = json.JSONDecoder(parse_int=_integer).decode


def _mend(value: Any) -> tuple[Any, bool]:
    """Replace lone surrogates in all strings; also tells whether there were any.

    >>> _mend({"a": ["x\\ud800y", 1]})
    ({'a': ['x\ufffdy', 1]}, True)
    """
    if isinstance(value, str):
        text, count = SURROGATE.subn("\ufffd", value)
        return text, count > 0
    if isinstance(value, list):
        items = [_mend(item) for item in value]
        return [item for item, _ in items], any(mended for _, mended in items)
    if isinstance(value, dict):
        keys, values = _mend(list(value)), _mend(list(value.values()))
        return dict(zip(keys[0], values[0], strict=True)), keys[1] or values[1]
    return value, False


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _excerpt(line: str) -> str:
    return SURROGATE.sub("\ufffd", line[:EXCERPT]).rstrip("\r\n")


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a CSV file; keeps the size and the start of those taken since `begin`, and whether any was bad."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        self.size, self.head, self.invalid = 0, "", False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.size += len(line)
        self.head = self.head or line[:EXCERPT]
        if not line.isascii() and not self.invalid:
            self.invalid = SURROGATE.search(line) is not None
        return line


def _csv_records(file: TextFile, stream: BinaryIO, blind: int) -> Iterator[Record | Rejected]:
    """The records of CSV with a header line; all values are strings.

    An empty cell is null, in the text field an empty text. Blank lines are no rows. Bytes that are not UTF-8 become
    U+FFFD. Raises `SourceError` for a header that names a column twice. Raises the process-wide limit of `csv` for
    the length of a cell.
    """
    csv.field_size_limit(max(csv.field_size_limit(), CELL_LIMIT))
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _csv_rows(file, _Lines(text), blind)


def _csv_rows(file: TextFile, lines: _Lines, blind: int) -> Iterator[Record | Rejected]:
    reader = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",", strict=True)
    header: list[str] | None = None
    row = -1
    while True:
        lines.begin()
        line = reader.line_num + 1
        reason = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, reason = [], f"not valid CSV ({error})"
        if not cells and reason is None:
            continue
        if lines.invalid:
            cells = [cell.encode(errors="surrogateescape").decode(errors="replace") for cell in cells]
        if header is None:
            header = _header(cells, file.path, line, reason)
            continue
        row += 1
        if blind:
            blind -= 1
            continue
        if reason is None and len(cells) != len(header):
            reason = f"{len(cells)} cells where the header has {len(header)}"
        if reason is not None:
            excerpt = _excerpt(lines.head)
            yield Rejected(source_file=file.name, line=line, source_row=row, reason=reason, excerpt=excerpt)
            continue
        fields: dict[str, Any] = dict(zip(header, [cell or None for cell in cells], strict=True))
        if file.text_field in fields:
            fields[file.text_field] = fields[file.text_field] or ""
        yield row, fields, "invalid_utf8" if lines.invalid else None, lines.size


def _header(cells: list[str], path: Path, line: int, reason: str | None) -> list[str]:
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if reason or twice is not None:
        raise SourceError(f"{path}:{line}: {reason or f'the header names the column {twice!r} twice'}")
    return cells


# --- plain text -------------------------------------------------------------------------------------------------------


def _txt_records(file: TextFile, stream: BinaryIO, blind: int) -> Iterator[Record | Rejected]:
    """One record: the whole file as it is, line ends included, without a byte order mark."""
    raw = stream.read(TEXT_LIMIT + 1)
    if len(raw) > TEXT_LIMIT:
        raise SourceError(f"{file.path}: longer than 1 GiB: a .txt file is one text; for one a line use .jsonl")
    try:
        text, status = raw.decode(), None
    except UnicodeDecodeError:
        text, status = raw.decode(errors="replace"), "invalid_utf8"
    if not blind:
        yield 0, {file.text_field or "": text.removeprefix("\ufeff")}, status, len(raw)


_RECORDS = {"jsonl": _json_records, "csv": _csv_records, "tsv": _csv_records, "txt": _txt_records}
