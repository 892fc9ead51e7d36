"""The demo's text: varied, distinct, within its limits, the same every time, and had without running a module."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections import Counter
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from fluxentropy.cli import passages as demo_text
from fluxentropy.cli.passages import MAX_CHARS, MIN_CHARS, SKIPPED, document, other_passages, passages

LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_200_distinct_passages_within_the_limits() -> None:
    found = passages()
    assert len(found) == 200
    assert all(MIN_CHARS <= len(passage["text"]) <= MAX_CHARS for passage in found)
    assert len({passage["id"] for passage in found}) == len({passage["text"] for passage in found}) == 200
    lengths = sorted(len(passage["text"]) for passage in found)
    assert lengths[20] < 300 and lengths[-20] > 1200  # short and long ones


def test_the_kinds_take_turns() -> None:
    counts = Counter(passage["source"] for passage in passages())
    assert counts.pop("character table") == 2
    assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1
    assert len({passage["source"] for passage in passages(5)}) == 4  # too few for a table


@pytest.mark.parametrize("kind", ["documentation", "source code", "docstring"])
def test_every_text_stands_where_its_id_says(kind: str) -> None:
    for passage in passages():
        if passage["source"] == kind:
            name = passage["id"].removeprefix(f"{kind}/")
            if kind == "documentation":
                assert passage["text"] in topics[name.rpartition("#")[0]].replace("\n\n\n", "\n\n")
            elif kind == "docstring":
                path, _, line = name.rpartition(":")
                nodes = ast.walk(ast.parse((LIBRARY / path).read_bytes()))
                (node,) = (node for node in nodes if getattr(node, "lineno", 0) == int(line) and hasattr(node, "body"))
                assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                assert ast.get_docstring(node) == passage["text"]
            else:
                words = (LIBRARY / name.rpartition("#")[0]).read_text(encoding="utf-8", errors="replace").split()
                assert " ".join(passage["text"].split()) in " ".join(words)


def test_the_same_seed_gives_the_same_text_in_another_process() -> None:
    code = "from fluxentropy.cli.passages import passages; print(passages())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, text=True,
            capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert passages(seed=1) != passages(seed=2)
    assert passages(20) == passages(20, seed=0)


def test_other_passages_are_of_other_documents() -> None:
    others, scored = other_passages(400), passages()
    assert len(others) > 100
    assert not {document(one) for one in others} & {document(one) for one in scored}
    assert not any(one["text"] in other["text"] for one in scored for other in others)  # such as a docstring in code


def test_no_module_with_side_effects_is_run_or_quoted() -> None:
    code = "import sys; from fluxentropy.cli.passages import passages; passages(400); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert not {"antigravity", "curses", "distutils", "this", "tkinter", "turtle", "webbrowser"} & set(
        run.stdout.split()
    )
    folders = {part for passage in passages(400) for part in passage["id"].split("#")[0].split("/")[:-1]}
    assert folders & SKIPPED == {"encodings"}  # the character tables


def test_an_installation_with_little_text_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def f():\n" + "".join(f"    x{i} = {i} * 17 + 4711\n" for i in range(12))
    (tmp_path / "one.py").write_text(body)
    (tmp_path / "two.py").write_text(body)  # the same text twice counts once
    monkeypatch.setattr(demo_text.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(metadata, "distributions", lambda: [])
    by_kind = Counter(passage["source"] for passage in passages(1000))
    assert by_kind.keys() == {"documentation", "source code"}
    assert by_kind["source code"] == 1
