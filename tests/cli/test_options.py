"""What each command's options accept, and what the message says where they do not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.cli.commands import DemoConfig
from fluxentropy.config.options import parse_bytes
from fluxentropy.config.yaml import from_plain, read_yaml, to_yaml
from fluxentropy.errors import UsageError
from fluxentropy.evaluation import DiagnoseConfig
from fluxentropy.ordering.options import BinConfig, SortConfig
from fluxentropy.report import TokensConfig
from fluxentropy.scoring.options import ScoreConfig

SCORE: dict[str, Any] = {"sources": ("a.jsonl",), "model": "gpt2", "out": Path("run")}
TOKENS: dict[str, Any] = {"sources": ("a.jsonl",), "model": "gpt2", "out": Path("a.html")}
SORT: dict[str, Any] = {"run": "run", "out": Path("a.parquet")}
DIAGNOSE: dict[str, Any] = {"table": "a.csv", "target": "correct", "out": Path("diagnosis")}


@pytest.mark.parametrize(
    ("cls", "good", "bad", "message"),
    [
        (ScoreConfig, SCORE, {"sources": ()}, "no source"),
        (ScoreConfig, SCORE, {"model": ""}, "--model is empty"),
        (ScoreConfig, SCORE, {"max_tokens": 0}, "--max-tokens 0: use 1 or more"),
        (ScoreConfig, SCORE, {"limit": 0}, "--limit 0: use 1 or more"),
        (ScoreConfig, SCORE, {"batch_tokens": -1}, "--batch-tokens -1: use 1 or more"),
        (ScoreConfig, SCORE, {"part_tokens": 0}, "--part-tokens 0: use 1 or more"),
        (ScoreConfig, SCORE, {"stride": 3}, "--stride 3 with --window first: add --window sliding"),
        (ScoreConfig, SCORE, {"stride": 0, "window": "sliding"}, "--stride 0: use 1 or more"),
        (ScoreConfig, SCORE, {"stride": 513, "window": "sliding"}, "--stride 513 .* --max-tokens 512"),
        (ScoreConfig, SCORE, {"max_tokens": 1, "window": "sliding"}, "--max-tokens 1: windows need at least 2"),
        (TokensConfig, TOKENS, {"out": Path("a.csv")}, "--out a.csv: use a name that ends in .html"),
        (TokensConfig, TOKENS, {"limit": 0}, "--limit 0: use 1 or more"),
        (TokensConfig, TOKENS, {"top_k": -1}, "--top-k -1: use 0 or more"),
        (TokensConfig, TOKENS, {"sources": ()}, "no source"),
        (TokensConfig, TOKENS, {"max_tokens": 0}, "--max-tokens 0"),
        (SortConfig, SORT, {"out": Path("a.csv")}, "--out a.csv: use a name that ends in .parquet or .jsonl"),
        (SortConfig, SORT, {"limit": 0}, "--limit 0: use 1 or more"),
        (SortConfig, SORT, {"memory": "lots"}, "--memory lots: write a number with a unit"),
        (DiagnoseConfig, DIAGNOSE, {"bootstrap": -1}, "--bootstrap -1: use 0 or more"),
        (DiagnoseConfig, DIAGNOSE, {"folds": 1}, "--folds 1: use 2 or more"),
        (DiagnoseConfig, DIAGNOSE, {"seed": -1}, "--seed -1: use 0 or more"),
        (DemoConfig, {}, {"passages": 0}, "--passages 0: use 1 or more"),
    ],
)
def test_checks(cls: type, good: dict[str, Any], bad: dict[str, Any], message: str) -> None:
    cls(**good)
    with pytest.raises(UsageError, match=message):
        cls(**good | bad)


@pytest.mark.parametrize("stride", [1, 512])
def test_stride_bounds(stride: int) -> None:
    assert ScoreConfig(**SCORE, window="sliding", stride=stride).stride == stride


@pytest.mark.parametrize(
    "config",
    [
        ScoreConfig(**SCORE),
        ScoreConfig(**SCORE | {"sources": ("a", "été: #1")}, zoo=Path("z.yaml"), revision="123", text=False, limit=7),
        TokensConfig(**TOKENS, id_field="null"),
        SortConfig(**SORT, by="no"),
        DiagnoseConfig(**DIAGNOSE, metrics=("a", "b"), pairs=("a+b",)),
        DemoConfig(),
    ],
)
def test_yaml_round_trip(config: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    data = read_yaml(file, type(config))
    assert list(data) == [field.name for field in dataclasses.fields(config)]
    hints = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name, value in data.items():
        if isinstance(value, list):
            data[name] = tuple(value)
        if "Path" in hints[name] and value is not None:
            data[name] = Path(value)
    assert type(config)(**data) == config
    assert to_yaml(type(config)(**data)) == to_yaml(config)


def test_lists_are_separated_by_commas() -> None:
    config = DiagnoseConfig(**DIAGNOSE, metrics=("a, b", "c"), pairs=("a+b,",))
    assert (config.metrics, config.pairs) == (("a", "b", "c"), ("a+b",))
    assert DiagnoseConfig(**DIAGNOSE, metrics=("",)).metrics is None


def test_every_field_is_documented() -> None:
    import inspect

    for cls in (ScoreConfig, TokensConfig, SortConfig, DiagnoseConfig, DemoConfig):
        source = "".join(inspect.getsource(base) for base in cls.__mro__[:-1])
        for field in dataclasses.fields(cls):
            assert re.search(rf'^    {field.name}: .*\n    """\S', source, re.MULTILINE), field.name


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1GB", 10**9), ("1 gib", 2**30), ("1.5KB", 1500), ("10B", 10), ("2TiB", 2**41), ("500MB", 500 * 10**6)],
)
def test_parse_bytes(size: str, expected: int) -> None:
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "1", "GB", "-1GB", "1 parsec", "0GB", "1e3MB"])
def test_parse_bytes_refuses(size: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_bytes(size)


def test_edges_from_python_and_yaml_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "bin.yaml"
    file.write_text("edges: [1, 2.5]\n")
    plain = {**read_yaml(file, BinConfig), "run": "r", "out": "o"}
    assert from_plain(BinConfig, plain).numbers("edges") == [1.0, 2.5]
    assert BinConfig("r", quantiles=(10, 50), out=Path("o")).numbers("quantiles") == [10.0, 50.0]
