"""The doors: every public name is there, and nothing heavy is imported before it is used."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fluxentropy
from fluxentropy.cli.commands import COMMANDS
from fluxentropy.errors import UsageError

HEAVY = ("torch", "transformers", "datasets", "lightning", "matplotlib", "scipy", "sklearn", "statsmodels", "pyarrow")
LIGHT = ("runs", "config", "corpus", "ordering", "schedules")  # these load neither torch nor transformers
PACKAGES = [
    name
    for _, name, is_package in pkgutil.walk_packages(fluxentropy.__path__, "fluxentropy.")
    if is_package and ".configs" not in name and ".templates" not in name
]


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded when a new Python has run `code`."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["fluxentropy", *PACKAGES])
def test_every_name_of_a_door_is_there(package: str) -> None:
    room = importlib.import_module(package)
    assert room.__doc__
    files = {path.stem for path in Path(str(room.__file__)).parent.glob("*.py")}
    assert not files & set(dir(room)) - set(vars(room)), "a file of this name would hide the function"
    for name in dir(room):
        assert getattr(room, name) is not None or name in (
            "__file__",
            "__spec__",
            "__path__",
            "__loader__",
            "__cached__",
        )
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_this'"):
        _ = room.nothing_like_this


def test_the_public_door_has_everything_that_is_promised() -> None:
    promised = [
        "Bins",
        "GPT",
        "Sampler",
        "Scorer",
        "agreement",
        "rl",
        "schedules",
        "score_dataset",
        "score_stream",
        "token_stats",
    ]
    commands = [command.name.replace("-", "_") for command in COMMANDS]
    assert set(promised) | set(commands) <= set(dir(fluxentropy))
    assert callable(fluxentropy.schedules.make)
    assert fluxentropy.rl.EntropyProbe.__name__ == "EntropyProbe"
    assert fluxentropy.rl.EntropyProbeCallback.__name__ == "EntropyProbeCallback"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_a_function_that_names_what_is_wrong(command: object) -> None:
    function = getattr(fluxentropy, command.name.replace("-", "_"))  # type: ignore[attr-defined]
    assert callable(function)
    with pytest.raises(UsageError, match="unknown key no_such_option"):
        function(no_such_option=1)


def test_a_commands_signature_shows_its_options() -> None:
    assert {"by", "out", "limit"} <= set(inspect.signature(fluxentropy.sort).parameters)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import fluxentropy; dir(fluxentropy); fluxentropy.rl; fluxentropy.schedules") & set(HEAVY)


def test_light_rooms_load_neither_torch_nor_transformers() -> None:
    root = Path(fluxentropy.__file__).parent
    files = [path for room in LIGHT for path in sorted((root / room).rglob("*.py")) if path.name != "__init__.py"]
    names = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in files]
    assert len(names) > 30
    assert not loaded_by("import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)") & {
        "torch",
        "transformers",
    }
