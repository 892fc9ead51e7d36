"""What a command hands back, and how a command is called from Python."""

from __future__ import annotations

import dataclasses
import functools
import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from fluxentropy.config.yaml import check_mapping, from_plain, key_of, to_plain
from fluxentropy.errors import UsageError

R = TypeVar("R", bound="Result")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a command: fields of numbers, names and paths. The library never prints; the command line does.

    `lines()` is what a person reads on stdout, `to_dict()` the one JSON object of `--json`. Fields that only the lines
    need have `repr=False`, and are not in it.
    """

    @property
    def exit_code(self) -> int:
        """Of the command line: 1 where something failed."""
        return 0

    def lines(self) -> list[str]:
        """What the command line prints."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields, with paths as text."""
        return {f.name: to_plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.repr}

    def _repr_html_(self) -> str:
        rows = [{"": name, type(self).__name__: value} for name, value in self.to_dict().items()]
        return html_table(rows)


def command(run: Callable[..., R]) -> Callable[..., R]:
    """A command, a function of its options object, that also takes the options themselves.

        sort(SortConfig(run="runs/web", out=Path("s.parquet")))
        sort("runs/web", out="s.parquet")

    Options have the names of the YAML keys (`from` is `from_`, a word of Python); paths may be texts, sections
    mappings. One that has `as_options()`, as a `Scorer` has, stands for several. Errors: UsageError for unknown names
    and wrong types, as for YAML.
    """
    parameter, *others = inspect.signature(run).parameters.values()
    hints = get_type_hints(run)
    cls, apart = hints[parameter.name], {other.name for other in others}
    places = [f for f in dataclasses.fields(cls) if not f.kw_only]
    many = bool(places) and str(places[-1].type).startswith(("tuple", "typing.Annotated[tuple", "Annotated[tuple"))

    @functools.wraps(run)
    def call(*given: Any, **options: Any) -> R:
        rest = {name: options.pop(name) for name in apart & set(options)}  # what no file can hold
        if len(given) == 1 and isinstance(given[0], cls) and not options:
            return run(given[0], **rest)
        if many and given:
            first = given[0] if len(given) == 1 and not isinstance(given[0], str) else given
            options = {places[-1].name: list(first) if isinstance(first, Sequence) else [first], **options}
        elif len(given) > len(places):
            raise UsageError(f"{run.__name__}() takes {len(places)} values without a name, here are {len(given)}")
        else:
            options = {**{f.name: value for f, value in zip(places, given, strict=False)}, **options}
        for value in list(options.values()):
            if hasattr(value, "as_options"):
                known = {f.name for f in dataclasses.fields(cls)}
                made = {name: item for name, item in value.as_options().items() if name in known}
                options = {**made, **{name: item for name, item in options.items() if item is not value}}
        plain = {key_of(name): value for name, value in to_plain(options).items()}
        check_mapping(plain, cls, f"{run.__name__}()", "")
        missing = [f.name for f in dataclasses.fields(cls) if _needed(f) and key_of(f.name) not in plain]
        if missing:
            raise UsageError(f"{run.__name__}(): {missing[0]} is missing")
        return run(from_plain(cls, plain), **rest)

    shown, kinds = [], inspect.Parameter
    types = get_type_hints(cls)
    for f in [*places, *(f for f in dataclasses.fields(cls) if f.kw_only)]:
        stands = (kinds.VAR_POSITIONAL if many else kinds.POSITIONAL_OR_KEYWORD) if f in places else kinds.KEYWORD_ONLY
        default: Any = kinds.empty if _needed(f) or (many and f in places) else f.default
        if default is dataclasses.MISSING:
            default = f.default_factory() if callable(f.default_factory) else kinds.empty
        shown.append(kinds(f.name, stands, default=default, annotation=types[f.name]))
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*shown, *others], return_annotation=hints.get("return", kinds.empty)
    )
    return call


def _needed(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for a notebook: everything escaped, floats to four digits, at most 60 rows.

    >>> html_table([{"a": 0.123456, "b": None}])
    '<table><tr><th>a</th><th>b</th></tr><tr><td>0.1235</td><td></td></tr></table>'
    """

    def cell(value: Any) -> str:
        shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<td>{html.escape(shown if len(shown) <= 200 else shown[:199] + '…')}</td>"

    names = list(dict.fromkeys(name for row in rows[:60] for name in row))
    lines = ["".join(cell(row.get(name)) for name in names) for row in rows[:60]]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    more = f"<p>and {len(rows) - 60:,} more</p>" if len(rows) > 60 else ""
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in [head, *lines]) + "</table>" + more
