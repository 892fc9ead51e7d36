"""The built wheel works outside the checkout: its command, default zoo and configurations travel in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fluxentropy
from fluxentropy.config import yaml as resources
from fluxentropy.config.yaml import config_path
from fluxentropy.errors import FluxentropyError
from tests.conftest import SLOW_FILES, room_and_name

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([*map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "-qq", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "-qq", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_carries_the_package_the_configurations_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        about = message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fluxentropy").rglob("*.py")}
    expected |= {f"fluxentropy/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    expected |= {"fluxentropy/py.typed", f"{info}/licenses/LICENSE"}
    expected |= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "fluxentropy" / "report" / "templates").iterdir()
    }
    assert {"fluxentropy/configs/zoo/offline.yaml", "fluxentropy/report/templates/parts.html"} <= expected
    assert expected <= names
    assert {name.split("/")[0] for name in names} == {"fluxentropy", info}  # no tests, no benchmarks
    assert dict(entry_points["console_scripts"]) == {"fluxentropy": "fluxentropy.cli.app:main"}
    assert about["Version"] == fluxentropy.__version__
    assert about["License-Expression"] == "Apache-2.0"


def test_the_installed_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    python = (sys.executable, "-P")
    code = "import fluxentropy, pathlib; print(pathlib.Path(fluxentropy.__file__).parent)"
    assert run(*python, "-c", code, cwd=tmp_path, env=env).strip() == str(installed / "fluxentropy")
    help_text = run(*python, "-m", "fluxentropy", "--help", cwd=tmp_path, env=env)
    assert "score" in help_text and "sort" in help_text
    script = run(installed / "bin" / "fluxentropy", "--version", cwd=tmp_path, env=env)
    assert script.strip() == fluxentropy.__version__
    code = "from fluxentropy.config.yaml import config_path; print(config_path('zoo'))"
    zoo = Path(run(*python, "-c", code, cwd=tmp_path, env=env).strip())
    assert zoo == installed / "fluxentropy" / "configs" / "zoo"
    assert (zoo / "offline.yaml").read_bytes() == (ROOT / "configs" / "zoo" / "offline.yaml").read_bytes()


def test_a_checkout_uses_its_own_configurations() -> None:
    assert config_path("zoo") == ROOT / "configs" / "zoo"


def test_an_unknown_kind_names_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FluxentropyError, match=r"kind 'zoos' in .*configs: there are \[.*'zoo'"):
        config_path("zoos")
    (tmp_path / "site" / "fluxentropy").mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "site" / "fluxentropy" / "resources.py"))
    with pytest.raises(FluxentropyError, match=r"kind 'zoo' in .*: there are \[\]"):
        config_path("zoo")


def test_every_pin_and_dependency_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    needs = {canonicalize_name(need.name): need for group in groups for need in map(Requirement, group)}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}
    zoo = yaml.safe_load((ROOT / "configs" / "zoo" / "offline.yaml").read_text())["models"]
    wheels = {canonicalize_name(entry["wheel"]) for entry in zoo.values()}
    assert pins.keys() == needs.keys() | wheels | {"tokenizers"}
    assert {name: pins[name] for name, need in needs.items() if pins[name] not in need.specifier} == {}


def test_the_files_that_are_called_slow_are_there() -> None:
    there = {room_and_name(path) for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(SLOW_FILES) - there == set()
