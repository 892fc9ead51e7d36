"""Real text that every Python installation carries, for the demo: nothing is downloaded, no module is run to get it.

Five kinds: Python's help topics, docstrings and source code of the standard library, its character tables, and the
descriptions of the installed packages. They range from prose to tables, so their entropies spread widely.
"""

from __future__ import annotations

import ast
import os
import random
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Literal, TypedDict

MIN_CHARS, MAX_CHARS = 200, 1500
APART = 200  # the first passages, whose documents are kept out of training
TARGET_CHARS = (MIN_CHARS, 400, 800, 1200)  # passages of one document aim at these lengths in turn

SKIPPED = {  # folders of the standard library: tests, vendored or installed packages, other sources' text
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "test", "tests", "turtledemo",
}  # fmt: skip

DECORATION = re.compile(r"!\[|<(a|img|p|div|h\d|!--)\b|\.\. (image|figure|_)|:target:|^\[[^\]]+\]:", re.MULTILINE)
Kind = Literal["documentation", "docstring", "source code", "package description", "character table"]
Document = list[tuple[str, str]]  # the candidate passages of one document: (id, text)


class Passage(TypedDict):
    """One text: `id` is unique and says where the text comes from, `source` is its kind."""

    id: str
    source: Kind
    text: str


def passages(n: int = 200, *, seed: int = 0) -> list[Passage]:
    """`n` distinct passages of 200 to 1,500 characters; fewer only where the installation carries fewer.

    The kinds take turns, so the first few are as mixed as all of them. The same installation, `n` and `seed` give the
    same passages in the same order.

    >>> [passage["source"] for passage in passages(3)]
    ['documentation', 'docstring', 'source code']
    """
    rng = random.Random(seed)
    library = Path(sysconfig.get_path("stdlib"))
    files = _shuffled(rng, _module_files(library))
    tables = _shuffled(rng, sorted(f"encodings/{path.name}" for path in (library / "encodings").glob("*.py")))
    streams: dict[Kind, Iterator[tuple[str, str]]] = {
        "documentation": _pick(_topics(rng)),
        "docstring": _pick(_docstrings(library, name) for name in files),
        "source code": _pick(_cut(name, _read(library / name)) for name in files),
        "package description": _pick(_descriptions(rng)),
        "character table": islice(_pick(_table(library, name) for name in tables), n // 100),
    }
    found: dict[str, Passage] = {}  # by text
    while streams and len(found) < n:
        for kind in list(streams):
            fresh = next((item for item in streams[kind] if item[1] not in found), None)
            if fresh is None:
                del streams[kind]
            else:
                found[fresh[1]] = Passage(id=f"{kind}/{fresh[0]}", source=kind, text=fresh[1])
    return list(found.values())[:n]


def other_passages(n: int = 1500, *, apart_from: int = APART, seed: int = 0) -> list[Passage]:
    """Those of `n` passages that share no document with the first `apart_from` of them: text to train on.

    A document is a module with its docstrings, a topic of `help()`, or a package; so no scored text is trained on.
    """
    taken = {document(passage) for passage in passages(apart_from, seed=seed)}
    return [passage for passage in passages(n, seed=seed) if document(passage) not in taken]


def document(passage: Passage) -> str:
    """What a passage is taken from.

    >>> document(Passage(id="docstring/lzma.py:319", source="docstring", text=""))
    'lzma.py'
    """
    return re.split("[#:]", passage["id"].partition("/")[2])[0]


# --- documents --------------------------------------------------------------------------------------------------------


def _module_files(library: Path) -> list[str]:
    """The public modules of the standard library, as sorted paths below it."""
    names = []
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = set(subfolders) - SKIPPED
        names += [
            Path(folder, file).relative_to(library).as_posix() for file in files if re.match(r"[^_].*\.py$", file)
        ]
    return sorted(set(names) - {"antigravity.py", "this.py"})


def _topics(rng: random.Random) -> Iterator[Document]:
    """The topics of `help()`, such as the operators or the import system."""
    from pydoc_data.topics import topics

    for name in _shuffled(rng, sorted(topics)):
        yield _cut(name, topics[name])


def _docstrings(library: Path, name: str) -> Document:
    """The docstrings of a module, its classes and functions; parsed, not imported."""
    found = []
    for node in ast.walk(ast.parse(_read(library / name))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and MIN_CHARS <= len(text) <= MAX_CHARS:
                found.append((f"{name}:{node.lineno}", text.strip()))
    return found


def _table(library: Path, name: str) -> Document:
    """Part of the table of a one-byte character set, past the 128 ASCII rows that all share; [] for other encodings."""
    rows = _read(library / name).partition("### Decoding Table")[2].splitlines()
    return _cut(name, "\n".join(rows[130:]))[:1]


def _descriptions(rng: random.Random) -> Iterator[Document]:
    """The long descriptions of installed packages, without badges and link lists."""
    texts = {}
    for distribution in metadata.distributions():
        about = distribution.metadata.json
        texts[str(about.get("name", "")).lower()] = str(about.get("description", ""))
    texts.pop("fluxentropy", None)
    for name in _shuffled(rng, sorted(texts)):
        paragraphs = [part for part in re.split(r"\n\s*\n", texts[name]) if not DECORATION.search(part)]
        yield _cut(name, "\n\n".join(paragraphs))


# --- cutting and choosing ---------------------------------------------------------------------------------------------


def _cut(name: str, text: str) -> Document:
    """Cut a document at blank lines into passages of varying length within the limits; ids are `name#number`.

    >>> [(label, len(part)) for label, part in _cut("doc", "\\n\\n".join("x" * 150 for _ in range(5)))]
    [('doc#0', 302), ('doc#1', 454)]
    """
    found: Document = []
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        longer = f"{passage}\n\n{paragraph}".strip("\n")
        if len(longer) > MAX_CHARS:
            longer = longer[: max(longer.rfind("\n", MIN_CHARS, MAX_CHARS), 0) or MAX_CHARS]  # end at a line
        passage = longer.rstrip()
        if len(passage) >= TARGET_CHARS[len(found) % len(TARGET_CHARS)]:
            found.append((f"{name}#{len(found)}", passage))
            passage = ""
    return found


def _pick(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    """At most two passages of each document, away from its head, where licences and titles stand."""
    for document in documents:
        yield from document[len(document) // 4 :: max(1, len(document) // 2)][:2]


def _read(path: Path) -> str:
    with tokenize.open(path) as file:  # heeds coding lines
        return file.read()


def _shuffled(rng: random.Random, names: list[str]) -> list[str]:
    return rng.sample(names, len(names))
