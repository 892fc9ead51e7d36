"""A command called from Python gets the same options as from a file, and the same refusals."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.config.results import Result, command, html_table
from fluxentropy.errors import UsageError
from fluxentropy.ordering.options import BinConfig, SortConfig


@dataclass(frozen=True, kw_only=True)
class Section:
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: tuple[str, ...] = field(kw_only=False)
    out: Path
    optim: Section = field(default_factory=Section)
    limit: int | None = None
    model: str | None = None
    max_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class Given(Result):
    config: Any


@command
def run(config: Options) -> Given:
    """Run."""
    return Given(config=config)


@command
def train(config: Options, *, task: object = None) -> Given:
    return Given(config=(config.limit, task))


@command
def sort(config: SortConfig) -> Given:
    return Given(config=config)


class Opened:
    def as_options(self) -> dict[str, Any]:
        return {"model": "m", "max_tokens": 8, "other": 1}


def test_options_may_be_given_by_name_as_an_object_or_as_texts_and_mappings() -> None:
    want = Options(("a", "b"), out=Path("o"), optim=Section(lr=1.0), limit=3)
    for given in (
        run("a", "b", out="o", optim={"lr": 1.0}, limit=3),
        run(["a", "b"], out=Path("o"), optim=Section(lr=1.0), limit=3),
        run(sources=["a", "b"], out="o", optim={"lr": 1.0}, limit=3),
        run(want),
    ):
        assert given.config == want
    assert run(Path("a"), out="o").config.sources == ("a",)
    assert run("a", out="o", model=Opened(), max_tokens=4).config == Options(
        ("a",), out=Path("o"), model="m", max_tokens=4
    )
    assert (
        train("a", out="o", limit=2, task=Opened).config
        == train(Options(("a",), out=Path("o"), limit=2), task=Opened).config
    )
    assert sort("runs/web", out="s.parquet").config == SortConfig("runs/web", out=Path("s.parquet"))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (("a",), {"out": "o", "limt": 3}, r"run\(\): unknown key limt: did you mean limit\?"),
        (("a",), {"out": "o", "limit": "3"}, r"run\(\): limit: '3' is not a whole number or null"),
        (("a",), {"out": "o", "optim": {"l": 1}}, r"run\(\): unknown key optim.l"),
        (("a",), {}, r"run\(\): out is missing"),
        ((), {"out": "o"}, r"run\(\): sources is missing"),
        ((3,), {"out": "o"}, r"sources: \[3\] is not a list, each text"),
    ],
)
def test_what_is_unknown_missing_or_of_a_wrong_type_is_named(
    given: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(*given, **options)
    with pytest.raises(UsageError, match="takes 1 values without a name, here are 2"):
        sort("a", "b", out="s.parquet")


def test_the_signature_shows_the_options() -> None:
    assert str(inspect.signature(run)).startswith("(*sources: tuple[str, ...], out: pathlib.Path, optim: ")
    assert str(inspect.signature(sort)).startswith("(run: str, *, by: str = 'entropy_mean'")
    assert inspect.signature(run).return_annotation is Given
    assert run.__doc__ == "Run."
    assert command(_bin).__name__ == "_bin"


def _bin(config: BinConfig) -> Given:
    return Given(config=config)


def test_a_result_shows_itself_with_everything_escaped() -> None:
    shown = Given(config={"<b>": Path("a&b")})._repr_html_()
    assert "&lt;b&gt;" in shown and "a&amp;b" in shown and "<b>" not in shown
    assert html_table([{"n": n} for n in range(100)]).endswith("<p>and 40 more</p>")
