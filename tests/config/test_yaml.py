"""Reading YAML against a dataclass: what is refused, and how the message helps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from fluxentropy.config.yaml import from_plain, read_yaml, to_plain, to_yaml
from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 1
    limit: int | None = None
    fast: bool = False
    name: str = "x"
    out: Path = Path("out")
    mode: Literal["a", "b"] = "a"
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def read(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    file = tmp_path / "f.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file, Outer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("steps: 3\nlimit: null\nname: '3'\n", {"steps": 3, "limit": None, "name": "3"}),
        ("inner: {lr: 3e-4}", {"inner": {"lr": 3e-4}}),
        ("inner: {lr: -1E5}", {"inner": {"lr": -1e5}}),
        ("inner: {lr: 1, names: a}", {"inner": {"lr": 1, "names": "a"}}),
        ("maybe: {names: [a, b]}", {"maybe": {"names": ["a", "b"]}}),
        ("maybe: null", {"maybe": None}),
        ("weights: {a: 1, b: .5}", {"weights": {"a": 1, "b": 0.5}}),
        ("inner: &x {lr: 1}\nmaybe: {<<: *x}", {"inner": {"lr": 1}, "maybe": {"lr": 1}}),
    ],
)
def test_read(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key stepz: did you mean steps?"),
        ("inner: {lrr: 3}", "unknown key inner.lrr: did you mean lr?"),
        ("3: 4", "unknown key 3: use one of steps, limit"),
        ("steps: many", "steps: 'many' is not a whole number"),
        ("steps: 3.0", "steps: 3.0 is not a whole number"),
        ("steps: true", "steps: True is not a whole number"),
        ("steps: null", "steps: None is not a whole number"),
        ("limit: x", "limit: 'x' is not a whole number or null"),
        ("fast: 1", "fast: 1 is not true or false"),
        ("name: 3", "name: 3 is not text (put it in quotes)"),
        ("out: [a]", "out: ['a'] is not a path"),
        ("mode: c", "mode: 'c' is not one of a, b"),
        ("weights: {a: x}", "weights: {'a': 'x'} is not a mapping"),
        ("inner: 3", "inner: 3 is not a mapping"),
        ("inner: {lr: fast}", "inner.lr: 'fast' is not a number"),
        ("inner: {names: [a, 3]}", "inner.names: ['a', 3] is not a list, each text"),
        ("maybe: {lr: x}", "maybe.lr: 'x' is not a number"),
        ("- a\n- b", "expected a mapping"),
        ("just text", "expected a mapping"),
        ("steps: 3\nname: [a,\nfast: }", "f.yaml, line 3: not valid YAML"),
        ("steps: 3\nsteps: 4", "f.yaml, line 2: not valid YAML: key steps is given twice"),
        ("inner:\n  lr: 1\n  lr: 2", "f.yaml, line 3: not valid YAML: key lr is given twice"),
        ("? [a, b]\n: 3", "f.yaml, line 1: not valid YAML"),
        ("name: 2024-13-45", "f.yaml: not valid YAML: month"),
        ("name: !!python/object:os.system x", "f.yaml, line 1: not valid YAML"),
        ("name: \x01", "f.yaml: not valid YAML"),
        (b"name: \xff", "not a text file in UTF-8"),
    ],
)
def test_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert "f.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(tmp_path / "none.yaml", Outer)
    with pytest.raises(UsageError, match="directory"):
        read_yaml(tmp_path, Outer)


def test_to_yaml_round_trip(tmp_path: Path) -> None:
    config = Outer(
        weights={"b": 1e-7, "a": 2.0},
        inner=Inner(lr=1e-5, names=("no", "3", "12e4567", "3e-4", "é", "1e3x")),
        out=Path("a/b"),
    )
    text = to_yaml(config)
    assert read(tmp_path, text) == to_plain(config)
    assert from_plain(Outer, to_plain(config)) == config
    assert to_yaml(config) == text
    assert text.index("steps") < text.index("limit") < text.index("inner")


def test_from_plain_takes_what_yaml_may_hold() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Many:
        ends: tuple[float, ...] | None = None
        groups: int | tuple[int | str, ...] | None = None
        out: Path | None = None
        inner: Inner | None = None

    assert from_plain(Many, {"ends": 0.5, "groups": 4, "out": "a/b"}) == Many(ends=(0.5,), groups=4, out=Path("a/b"))
    assert from_plain(Many, {"groups": "0-1", "ends": None}) == Many(groups=("0-1",))
    found = from_plain(Many, {"inner": {"names": "a"}, "groups": [0, "1-2"]})
    assert found == Many(inner=Inner(names=("a",)), groups=(0, "1-2"))
