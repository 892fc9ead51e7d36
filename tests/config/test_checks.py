"""What each kind of check accepts and refuses, and what the message says."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from cyclopts import App, Parameter

from fluxentropy.config.checks import (
    BELOW_ONE,
    Between,
    Check,
    Min,
    NotNegative,
    Options,
    Positive,
    Separated,
    Some,
    Suffix,
)
from fluxentropy.config.options import SIZE
from fluxentropy.errors import UsageError

NAN, INF = math.nan, math.inf

KINDS: dict[str, tuple[Check, list[Any], list[Any], str]] = {
    "min": (Min(2), [2, 3, 10**9, None], [1, 0, -5], "--some-name {}: use 2 or more"),
    "positive": (Positive(), [1e-300, 1, None], [0, -1.5, INF, NAN], "--some-name {}: use a positive number"),
    "positive share": (Positive("share"), [0.5], [0.0], "--some-name {}: use a positive share"),
    "not negative": (NotNegative(), [0, 2.5, None], [-1e-9, INF, NAN], "--some-name {}: use 0 or a positive number"),
    "between": (Between(0, 1), [0, 0.5, 1, None], [-0.1, 1.1, NAN], "--some-name {}: use a number from 0 to 1"),
    "below one": (BELOW_ONE, [0, 0.99], [1, -0.1, NAN], "--some-name {}: use a number from 0 to below 1"),
    "suffix": (
        Suffix(".html", ".htm"),
        [Path("a.html"), "b.htm", None],
        [Path("a.csv"), Path("html"), ""],
        "--some-name {}: use a name that ends in .html or .htm",
    ),
    "some": (Some("name one"), ["a", ("a",), None], ["", ()], "--some-name is empty: name one"),
    "some, said": (Some("name one", opening="no run: "), [("a",)], [()], "no run: name one"),
    "size": (
        SIZE,
        ["1GB", "1.5 mib", None],
        ["", "lots", "0GB", "1", "-1GB", "{flag}"],
        "--some-name {}: write a number with a unit, such as 500MB, 1GB or 2GiB",
    ),
    "own": (Check(lambda value: value % 2 == 0, "use an even number"), [2], [3], "--some-name {}: use an even number"),
}


def one(check: Check | Separated, value: Any, base: type = Options) -> Any:
    """The value of an option `some_name` with that check."""
    made = dataclasses.make_dataclass("Made", [("some_name", Annotated[Any, check])], bases=(base,), frozen=True)
    return made(value).some_name


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    check, good, bad, message = KINDS[kind]
    for value in good:
        assert one(check, value) is value
    for value in bad:
        with pytest.raises(UsageError) as caught:
            one(check, value)
        assert str(caught.value) == message.format(value)


@pytest.mark.parametrize(
    ("check", "given", "expected"),
    [
        (Separated(), ("a, b", "c"), ("a", "b", "c")),
        (Separated(), (), ()),
        (Separated(), (" , ",), ()),
        (Separated(), (10, 2.5), ("10", "2.5")),
        (Separated(), None, None),
        (Separated(None), ("",), None),
        (Separated(None), ["a,b"], ("a", "b")),
    ],
)
def test_separated(check: Separated, given: Any, expected: Any) -> None:
    assert one(check, given) == expected


@dataclass(frozen=True, kw_only=True)
class Section(Options, prefix="--part.of."):
    n_rows: Annotated[int, Min(1)] = 1
    way: Literal["up", "down", "both"] = "up"


@dataclass(frozen=True, kw_only=True)
class Left(Options):
    width: Annotated[float, Between(0, 1)] = 0.5
    rows: Annotated[int | None, Parameter(help="rows"), Min(1)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width == 1 and self.rows == 1:
            raise UsageError("both are 1")


@dataclass(frozen=True, kw_only=True)
class Right(Options, digits="g"):
    """Both."""

    names: Annotated[tuple[str, ...], Separated()] = ()


@dataclass(frozen=True, kw_only=True)
class Both(Left, Right):
    """Both."""

    rows: int | None = 7  # narrower or with another default: what a base asks still holds
    section: Section = field(default_factory=Section)


@pytest.mark.parametrize(
    ("cls", "bad", "message"),
    [
        (Section, {"n_rows": 0}, "--part.of.n-rows 0: use 1 or more"),
        (Section, {"way": "left"}, "--part.of.way left: use up, down or both"),
        (Left, {"width": -1.0}, "--width -1.0: use a number from 0 to 1"),
        (Left, {"width": 1, "rows": 1}, "both are 1"),
        (Both, {"width": -1.0}, "--width -1: use a number from 0 to 1"),
        (Both, {"rows": 0}, "--rows 0: use 1 or more"),
        (Both, {"width": 1, "rows": 1}, "both are 1"),
    ],
)
def test_classes(cls: type, bad: dict[str, Any], message: str) -> None:
    cls()
    with pytest.raises(UsageError) as caught:
        cls(**bad)
    assert str(caught.value) == message


def test_a_configuration_file_section_has_bare_names() -> None:
    class Bare(Options, prefix=""):
        pass

    with pytest.raises(UsageError, match="^some_name 0: use 1 or more"):
        one(Min(1), 0, Bare)


def test_the_command_line_sees_the_type_and_not_the_check() -> None:
    app = App(result_action="return_value")

    @app.default
    def run(config: Annotated[Both, Parameter(name="*")] = Both()) -> Both:
        return config

    argv = ["--rows", "4", "--names", "a,b", "--names", "c", "--section.n-rows", "2", "--section.way", "down"]
    expected = Both(rows=4, names=("a", "b", "c"), section=Section(n_rows=2, way="down"))
    assert app(argv, exit_on_error=False) == expected
    with pytest.raises(UsageError, match="--part.of.n-rows 0: use 1 or more"):
        app(["--section.n-rows", "0"], exit_on_error=False, print_error=False)
