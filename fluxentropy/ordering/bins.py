"""Bins on disk: what `bins.json` says, read once and checked, and the files and rows of each bin.

bins = Bins.load("bins/web")
bins.by, bins.edges, bins.counts    'entropy_mean', [2.1, 2.9], [400, 400, 400]
bins[2].files, bins[-1].rows        the shards of bin 2; the rows of the last bin
bins[0].dataset()                   a `datasets.Dataset` of the lowest scores
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.ordering.edges import UNSCORED, Binning
from fluxentropy.ordering.shards import FORMAT, FORMATS, bin_folder, bins_top, read_manifest
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import read_json

if TYPE_CHECKING:
    from datasets import Dataset


INDEX = "bins.json"


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin; `number` is UNSCORED for the rows without a score, whose tokens are not counted.

    `tokens` is None there, and where the rows came without their numbers of tokens.
    """

    number: int
    folder: Path
    rows: int
    tokens: int | None
    span: str  # of its scores, in words

    @property
    def files(self) -> list[Path]:
        """Its shards, in the order of its rows. Errors: `RunError` where one is missing."""
        files = [self.folder / file["name"] for file in (read_manifest(self.folder) or {}).get("files", ())]
        lost = next((file for file in files if not file.is_file()), None if files else self.folder)
        if lost is not None:
            raise RunError(f"{lost} is missing: `fluxentropy verify DIR --repair` makes it again")
        return files

    def dataset(self, **options: Any) -> Dataset:
        """Its rows in their order, memory-mapped: `datasets` unpacks them once into its cache.

        `options` are those of `datasets.load_dataset`, such as `cache_dir`, or `streaming=True`.
        """
        from datasets import Dataset, load_dataset

        if not self.rows and not options.get("streaming"):  # which `load_dataset` refuses
            with pa.memory_map(str(self.files[0])) as source:
                return Dataset(pa.ipc.open_file(source).read_all())
        return load_dataset("arrow", data_files=[str(file) for file in self.files], split="train", **options)


@dataclass(frozen=True, kw_only=True)
class Bins(Sequence[Bin]):
    """The bins in the folder `path`, lowest scores first; those of a grid along the second score first."""

    path: Path
    top: str  # of the bins' folders in `path`
    binning: Binning
    facts: Mapping[str, Any]  # all of bins.json

    @classmethod
    def load(cls, path: str | Path) -> Bins:
        """The finished bins in the folder `path`, or of the `bins.json` at `path`.

        Errors: `SourceError` where there are none; `RunError` where they are not finished, or not as they were written.
        """
        folder = Path(path).parent if Path(path).name == INDEX else Path(path)
        if RunRecord.read(folder).facts.get("complete") is False:
            raise RunError(f"{folder} is not finished: give the command that writes it once more")
        found = cls.read(folder)
        if found is None:
            raise SourceError(f"{folder / INDEX}: no such file; `fluxentropy bin RUN --out {folder}` writes it")
        return found

    @classmethod
    def read(cls, path: Path) -> Bins | None:
        """The bins in `path`, finished or not; None where there is no record of them. Errors: `RunError`."""
        facts = read_json(path / INDEX)
        return None if facts is None else cls.of(path, facts)

    @classmethod
    def of(cls, path: Path, facts: Any) -> Bins:
        """The bins in `path` of which `facts` speak. Errors: `RunError` says what is wrong with these."""
        try:
            binning = Binning.of(facts)
            sizes = {"counts": [int(size) for size in facts["counts"]]}
            sizes["tokens"] = [0 if size is None else int(size) for size in facts["tokens"]]
        except (ValueError, KeyError, TypeError, UsageError) as error:
            said = error if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            raise RunError(
                f"{path / INDEX}: it is not as it was written ({said}): remove it, and the same command makes it again"
            ) from error
        for name, found in sizes.items():
            if len(found) != binning.bins:
                raise RunError(f"{path / INDEX}: it has edges of {binning.bins} bins, and {name} of {len(found)}")
        return cls(path=path, top=bins_top(path), binning=binning, facts=facts)

    @property
    def by(self) -> str | list[str]:
        """The score, or the two of a grid."""
        found: str | list[str] = self.facts["by"]
        return found

    @property
    def edges(self) -> list[Any] | dict[str, list[float]]:
        """The edges, one less than there are bins; of a grid, those of each score; within a column, of each value."""
        found = self.facts["edges"]
        return dict(found) if isinstance(found, dict) else list(found)

    @property
    def within(self) -> str | None:
        """The column inside of whose values the bins are; None where the edges are the same for all rows."""
        return self.facts.get("within")

    @property
    def counts(self) -> list[int]:
        """The rows of each bin."""
        return list(self.facts["counts"])

    @property
    def tokens(self) -> list[int] | list[None]:
        """The scored tokens of each bin; None where the rows came without their numbers of tokens."""
        return list(self.facts["tokens"])

    @property
    def grid(self) -> tuple[int, ...] | None:
        """How many bins each of two scores has; None where there is one score."""
        return tuple(axis.bins for axis in self.binning.axes) if len(self.binning.axes) > 1 else None

    @property
    def label(self) -> str:
        """What the bins are by, in words."""
        return " and ".join(self.binning.columns) + (f" within {self.within}" if self.within else "")

    @property
    def older(self) -> bool:
        """Whether a former version made them, whose hashes of rows this one does not know."""
        return self.facts.get("format") not in (FORMAT, FORMATS[INDEX])

    @property
    def unscored(self) -> Bin | None:
        """The rows without a score; None where every row has one."""
        rows = self.facts.get("unscored")
        return Bin(number=UNSCORED, folder=self._folder(UNSCORED), rows=rows, tokens=None, span="") if rows else None

    @property
    def parts(self) -> list[Bin]:
        """All bins, and then `unscored`, if any."""
        return [*self, *([self.unscored] if self.unscored else [])]

    def __len__(self) -> int:
        return self.binning.bins

    @overload
    def __getitem__(self, number: int) -> Bin: ...
    @overload
    def __getitem__(self, number: slice) -> list[Bin]: ...
    def __getitem__(self, number: int | slice) -> Bin | list[Bin]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"bin {number} of {self.path}: there are {len(self)}, from 0 to {len(self) - 1}")
        number %= len(self)
        rows, tokens = self.facts["counts"][number], self.facts["tokens"][number]
        return Bin(number=number, folder=self._folder(number), rows=rows, tokens=tokens, span=self._span(number))

    def _folder(self, number: int) -> Path:
        return self.path / bin_folder(number, len(self), self.top)

    def _span(self, number: int) -> str:
        found: list[str] = []
        for axis in reversed(self.binning.axes):
            number, place = divmod(number, axis.bins)
            low = [f"> {axis.edges[place - 1]:.6g}"] if place else []
            high = [f"<= {axis.edges[place]:.6g}"] if place < len(axis.edges) else []
            found[:0] = [f"{axis.by} {' and '.join(low + high)}"] if axis.edges else []
        return ", ".join(found)

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = [(str(one.number), one.span, f"{one.rows:,}", count_text(one.tokens)) for one in self]
        if self.unscored:
            rows.append(("unscored", "no score", f"{self.unscored.rows:,}", ""))
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        head = "".join(f"<th>{name}</th>" for name in ("bin", "scores", "rows", "tokens"))
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><caption>{html.escape(str(self.path))}</caption><tr>{head}</tr>{body}</table>"


def count_text(count: int | None) -> str:
    """A number in words.

    >>> count_text(1234), count_text(None)
    ('1,234', 'unknown')
    """
    return "unknown" if count is None else f"{count:,}"
