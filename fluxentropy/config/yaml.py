"""YAML <-> dataclasses: what `--config` reads and what run directories and `--print-config` write."""

from __future__ import annotations

import dataclasses
import difflib
import keyword
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fluxentropy.errors import FluxentropyError, UsageError

# --- YAML -------------------------------------------------------------------------------------------------------------


# Numbers like 3e-4, which YAML 1.1, and so PyYAML, takes for text: tag, pattern and first characters.
SCIENTIFIC = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def to_yaml(config: Any) -> str:
    """The dataclass `config` as YAML, defaults included, in the order of its fields.

    Paths become strings and tuples lists; `--config` reads it back to the same configuration.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver(*SCIENTIFIC)  # a text that looks like such a number gets quotes
    return yaml.dump(to_plain(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def to_plain(value: Any) -> Any:
    """`value` with dataclasses as dicts, tuples as lists and paths as strings: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {key_of(f.name): to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def key_of(name: str) -> str:
    """The key of a field: its name, without the underscore that a field has where the key is a word of Python.

    >>> key_of("from_"), key_of("n_layer")
    ('from', 'n_layer')
    """
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def from_plain(cls: type, given: Mapping[str, Any]) -> Any:
    """The dataclass `cls` of what `to_plain` made, or YAML holds: mappings become sections, lists tuples, texts paths.

    One value alone may stand for a list of it.
    """
    hints, names = get_type_hints(cls), {key_of(f.name): f.name for f in dataclasses.fields(cls)}
    found = {}
    for key, value in given.items():
        name = names.get(key, key)
        kinds = get_args(hints[name]) if get_origin(hints[name]) in (Union, types.UnionType) else (hints[name],)
        section = next((k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)), None)
        if section is not None and isinstance(value, Mapping):
            value = from_plain(section, value)
        elif isinstance(value, list):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        elif isinstance(value, str) and Path in kinds:
            value = Path(value)
        elif any(get_origin(kind) is tuple for kind in kinds):
            alone = any(_fits(value, kind) for kind in kinds if get_origin(kind) is not tuple)
            value = value if alone or isinstance(value, tuple) else (value,)
        found[name] = value
    return cls(**found)


def read_yaml(path: Path, cls: type) -> dict[str, Any]:
    """The mapping in `path`, with every key and type checked against the fields of the dataclass `cls`.

    It may name only some of the fields. `UsageError` names the file, and the line or the key.
    """
    import yaml

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except OSError as error:
        raise UsageError(f"--config {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: not a text file in UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{path}{line}: not valid YAML: {problem}") from error
    if data is None:  # an empty file, or one of comments only
        data = {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a mapping such as `max_tokens: 512`, found a {type(data).__name__}")
    check_mapping(data, cls, path, "")
    return data


def _loader() -> type:
    """PyYAML's safe loader, with numbers like 3e-4, and without repeated keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"key {key.value} is given twice"
                        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    Loader.add_implicit_resolver(*SCIENTIFIC)
    return Loader


def check_mapping(data: dict[Any, Any], cls: type, path: Path | str, prefix: str) -> None:
    """Check keys and types of `data` against `cls`; `prefix` is where it stands in the file, such as `optim.`."""
    hints = {key_of(name): hint for name, hint in get_type_hints(cls).items()}
    for key, value in data.items():
        if key not in hints:
            raise UsageError(f"{path}: unknown key {prefix}{key}{did_you_mean(str(key), hints)}")
        hint = hints[key]
        nested = next((h for h in (hint, *get_args(hint)) if dataclasses.is_dataclass(h)), None)
        if isinstance(nested, type) and isinstance(value, dict):
            check_mapping(value, nested, path, f"{prefix}{key}.")
        elif not _fits(value, hint):
            raise UsageError(f"{path}: {prefix}{key}: {value!r} is not {_describe(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML can stand for a field of type `hint`; `True` is no number, and a number no text."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list):
        items = value if isinstance(value, list) else [value]
        return all(_fits(item, arguments[0]) for item in items)
    if hint is Any:
        return True
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    """`hint` in words.

    >>> _describe(int | None)
    'a whole number or null'
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"a list, each {_describe(arguments[0])}"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text (put it in quotes)",
        Path: "a path",
        types.NoneType: "null",
    }
    return words.get(hint, "a mapping")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?` with the nearest of the `known` words, or all of them where none is near.

    >>> did_you_mean("max-tokens", ["max_tokens", "model"])
    ': did you mean max_tokens?'
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else f": use one of {', '.join(known)}"


# --- the configurations of the package --------------------------------------------------------------------------------


def config_path(kind: str) -> Path:
    """The folder of the configurations of one kind: `config_path("zoo") / "offline.yaml"`.

    The wheel carries `configs/` inside the package; a checkout, or an editable install of one, has it beside the
    package.

    Errors: `FluxentropyError` when the installation carries no such kind.

    >>> (config_path("zoo") / "offline.yaml").is_file()
    True
    """
    package = Path(__file__).resolve().parent.parent
    root = next((parent / "configs" for parent in (package, package.parent) if (parent / "configs").is_dir()), None)
    if root is None or not (root / kind).is_dir():
        kinds = sorted(path.name for path in root.iterdir() if path.is_dir()) if root else []
        raise FluxentropyError(f"no configurations of kind {kind!r} in {root or package}: there are {kinds}")
    return root / kind
