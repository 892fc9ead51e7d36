"""The command line, mostly with fake commands: exit codes, messages, what wins over what."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from cyclopts import Parameter

from fluxentropy import __version__
from fluxentropy.cli import app as cli
from fluxentropy.config.options import SWITCH
from fluxentropy.config.results import Result
from fluxentropy.config.yaml import key_of, to_plain
from fluxentropy.errors import RunError, UsageError

HEAVY = {"torch", "numpy", "pyarrow", "transformers", "datasets", "polars", "duckdb", "scipy", "matplotlib", "sklearn"}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Nested options."""

    lr: float = 0.1
    steps: int = 7
    betas: tuple[float, ...] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a fake command, with every kind of field."""

    data: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = field(kw_only=False)
    """Where the data is."""
    out: Path
    """Where the result goes."""
    max_tokens: int = 512
    """How long."""
    limit: int | None = 5
    fast: Annotated[bool, SWITCH] = False
    text: bool = True
    zoo: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    optim: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens {self.max_tokens}: use 1 or more")


TRAIN = cli.Command(name="train", target="fake_target:train", options=TrainConfig, help="Trains.", examples="train it")
ZOO = dataclasses.replace(TRAIN, name="zoo")  # a command whose name is also a field


@dataclass(frozen=True, kw_only=True)
class Said(Result):
    said: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    code: int = 0

    @property
    def exit_code(self) -> int:
        return self.code

    def lines(self) -> list[str]:
        return list(self.said)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.data)


Target = Callable[[Any], Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run(*argv, target=function)` runs the command line with `function` behind its commands."""

    def call(*argv: str, target: Target = lambda config: Said(data=to_plain(config))) -> int:
        module = types.ModuleType("fake_target")
        module.train = target  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_target", module)
        return cli.main(argv, commands=[TRAIN, ZOO])

    return call


@pytest.fixture
def resolve(run: Callable[..., int]) -> Callable[..., TrainConfig]:
    """`resolve(*argv)` is the configuration that the command gets."""

    def call(*argv: str) -> TrainConfig:
        seen: list[TrainConfig] = []

        def target(config: TrainConfig) -> Result:
            seen.append(config)
            return Said()

        assert run(*argv, target=target) == 0
        return seen[0]

    return call


def fails(target_error: BaseException) -> Target:
    def target(config: Any) -> Result:
        raise target_error

    return target


# --- flags and YAML ---------------------------------------------------------------------------------------------------


def test_defaults_and_flags(resolve: Callable[..., TrainConfig]) -> None:
    assert resolve("train", "a", "b", "--out", "o") == TrainConfig(data=("a", "b"), out=Path("o"))
    assert resolve(
        "train", "--no-text", "a", "--fast", "--limit=2", "b", "--out", "o", "--optim.betas", "0.5", "--weights.x", "3"
    ) == TrainConfig(
        data=("a", "b"),
        out=Path("o"),
        text=False,
        fast=True,
        limit=2,
        optim=Optimizer(betas=(0.5,)),
        weights={"x": 3.0},
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "FILE", "--max-tokens", "3", "x"],
        ["--max-tokens", "3", "x", "--config", "FILE"],
        ["x", "--config=FILE", "--max-tokens=3"],
    ],
)
def test_flags_win_over_yaml_in_any_order(
    resolve: Callable[..., TrainConfig], tmp_path: Path, argv: Sequence[str]
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: [a, b]\nout: o\nmax_tokens: 9\nlimit: null\nzoo: z.yaml\n")
    config = resolve("train", *(argument.replace("FILE", str(file)) for argument in argv))
    assert config == TrainConfig(data=("x",), out=Path("o"), max_tokens=3, limit=None, zoo=Path("z.yaml"))


def test_required_options_may_come_from_yaml(resolve: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: a\nout: o\nlimit: 3\ntext: no\n")
    assert resolve("train", "--config", str(file)) == TrainConfig(data=("a",), out=Path("o"), limit=3, text=False)
    assert resolve("train", "--config", str(file), "--limit", "none").limit is None


def test_a_field_may_be_named_like_a_command(resolve: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: a\nout: o\nzoo: z.yaml\n")
    assert resolve("zoo", "--config", str(file)).zoo == Path("z.yaml")


def test_a_flag_leaves_the_yaml_siblings_of_a_nested_key(resolve: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: a\nout: o\noptim:\n  lr: 3e-4\n  betas: [0.5, 0.6]\n")
    config = resolve("train", "--optim.steps", "100", "--config", str(file))
    assert config.optim == Optimizer(lr=3e-4, steps=100, betas=(0.5, 0.6))


def test_stdin_as_a_source(resolve: Callable[..., TrainConfig]) -> None:
    assert resolve("train", "--limit", "2", "-", "--out", "o").data == ("-",)


def test_print_config_round_trip(
    run: Callable[..., int],
    resolve: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["train", "a", "b", "--out", "o", "--limit", "none", "--optim.lr", "1e-5", "--weights.x", "2", "--no-text"]
    assert run(*argv, "--print-config", target=fails(AssertionError("must not run"))) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert resolve("train", "--config", str(file)) == resolve(*argv)
    assert yaml.safe_load(printed) == to_plain(resolve(*argv))
    capsys.readouterr()
    assert run(*argv, "--print-config", "--json") == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(printed)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["trian"], ['"trian"', "Did you mean", "train"]),
        (["train", "a", "--out", "o", "--max-tokns", "3"], ["--max-tokns", "Did you mean --max-tokens?"]),
        (["train", "a", "--out", "o", "--optim.step=3"], ["--optim.step.", "Did you mean --optim.steps?"]),
        (["train", "--otu", "o", "a"], ["--otu", "Did you mean --out?"]),
        (["train", "--out", "o"], ["DATA is missing", "--config"]),
        (["train", "a"], ["--out is missing", "--config"]),
        (["train", "a", "--out"], ["--out", "requires an argument"]),
        (["train", "a", "--out", "o", "--max-tokens", "many"], ["--max-tokens", '"many"']),
        (["train", "a", "--out", "o", "--max-tokens", "3.7"], ["--max-tokens 3.7", "whole number"]),
        (["train", "a", "--out", "o", "--limit", "3.7"], ["--limit 3.7", "whole number"]),
        (["train", "a", "--out", "o", "--max-tokens", "0"], ["--max-tokens 0", "1 or more"]),
        (["train", "a", "--out", "o", "--out", "p"], ["--out", "multiple times"]),
        (["train", "a", "--out", "o", "--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["train", "a", "--out", "o", "--config", "."], ["--config .", "directory"]),
    ],
)
def test_usage_errors(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], argv: Sequence[str], parts: Sequence[str]
) -> None:
    assert run(*argv, target=fails(AssertionError("must not run"))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_yaml_errors_name_the_file(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: a\nout: o\nmax-tokens: 3\n")
    assert run("train", "--config", str(file)) == 2
    assert capsys.readouterr().err == f"error: {file}: unknown key max-tokens: did you mean max_tokens?\n"


# --- running ----------------------------------------------------------------------------------------------------------


def test_result_goes_to_stdout_and_chatter_to_stderr(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def target(config: Any) -> Result:
        print("a library prints")
        return Said(said=["one", "two"], data={"rate": float("nan"), "out": config.out, "n": (1, 2)}, code=1)

    assert run("train", "a", "--out", "o", target=target) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("one\ntwo\n", "a library prints\n")
    assert run("train", "a", "--out", "o", "--json", target=target) == 1
    assert json.loads(capsys.readouterr().out) == {"rate": None, "out": "o", "n": [1, 2]}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunError("runs/web is held by process 12"), 1, "error: runs/web is held by process 12"),
        (UsageError("no such column"), 2, "error: no such column"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
        (
            ZeroDivisionError("two\nlines"),
            1,
            "unexpected error: ZeroDivisionError: two lines; set FLUXENTROPY_DEBUG=1 to see where it comes from",
        ),
        (
            BrokenPipeError("a worker died"),
            1,
            "unexpected error: BrokenPipeError: a worker died; set FLUXENTROPY_DEBUG",
        ),
    ],
)
def test_exit_codes(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.delenv("FLUXENTROPY_DEBUG", raising=False)
    assert run("train", "a", "--out", "o", target=fails(error)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith(message)

    assert run("train", "a", "--out", "o", "--json", target=fails(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert json.loads(captured.out) == {"error": captured.err.rstrip("\n").removeprefix("error: "), "exit_code": code}

    monkeypatch.setenv("FLUXENTROPY_DEBUG", "1")
    assert run("train", "a", "--out", "o", target=fails(error)) == code
    assert "Traceback" in capsys.readouterr().err


def test_usage_errors_as_json(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 2
    assert "DATA is missing" in captured.err


def test_sigterm_unwinds(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    unwound = []

    def target(config: Any) -> Result:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            unwound.append(True)
        return Said(said=["not stopped"])

    before = signal.getsignal(signal.SIGTERM)
    assert run("train", "a", "--out", "o", target=target) == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "terminated; run the same command again to go on\n"


def test_libraries_are_quiet_and_we_are_not(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.delenv("FLUXENTROPY_DEBUG", raising=False)

    def target(config: Any) -> Result:
        warnings.warn_explicit("advice", UserWarning, "x.py", 1, module="transformers.modeling")
        logging.getLogger("another").warning("more advice")
        warnings.warn_explicit("2 texts were cut", UserWarning, "y.py", 1, module="fluxentropy.scoring.score")
        return Said()

    assert run("train", "a", "--out", "o", target=target) == 0
    assert capsys.readouterr().err == "warning: 2 texts were cut\n"


# --- the real command line --------------------------------------------------------------------------------------------


def python(code: str, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, timeout=60, **options
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["score", "--help"], ["--version"], ["score", "--modle", "x"]])
def test_help_and_mistakes_load_nothing_heavy(argv: Sequence[str]) -> None:
    code = "import sys; from fluxentropy.cli.app import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n')"
    done = python(code, *argv)
    assert done.returncode == 0
    loaded = set(done.stdout.split())
    assert not HEAVY & loaded
    assert ("fluxentropy.scoring.options" in loaded) == (argv[:1] == ["score"])  # when the command is called


def test_the_package_alone_loads_next_to_nothing() -> None:
    loaded = set(python("import fluxentropy, sys; print(*sys.modules)").stdout.split())
    assert "fluxentropy" in loaded
    assert not {"cyclopts", "yaml", "inspect", "dataclasses", *HEAVY} & loaded


def test_help_names_commands_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    for command in cli.COMMANDS:
        assert command.help[:40] in bare
        assert f"fluxentropy {command.name}" in bare
    assert "http" not in bare
    assert all(len(line) <= 80 for line in cli.EXAMPLES.splitlines())


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_help_of_a_command(
    command: cli.Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    for name in [
        *(key_of(option.name) for option in dataclasses.fields(command.config)),
        "config",
        "print_config",
        "json",
    ]:
        assert f"--{name.replace('_', '-')}" in text
    assert command.examples.splitlines()[0] in text
    assert len(command.examples.splitlines()) >= 2


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_examples_in_the_help_parse(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    for example in [*command.examples.splitlines(), *cli.EXAMPLES.splitlines()]:
        argv = shlex.split(example.partition("|")[2] or example.partition(">")[0], comments=True)
        if argv[:1] == ["fluxentropy"] and "--config" not in argv:
            switch = [] if "--print-config" in argv else ["--print-config"]
            assert cli.main([*argv[1:], *switch]) == 0, capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--show-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("score", "tokens", "sort", "demo", "max-tokens"):
        assert word in script


def test_install_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "completion"
    assert cli.main(["--install-completion", "--shell", "fish", "--output", str(file)]) == 0
    assert "score" in file.read_text()


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fluxentropy", "score"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: SOURCES is missing")


def test_a_closed_stdout_is_no_failure() -> None:
    code = "import sys; from fluxentropy.cli.app import main; sys.exit(main(['demo', '--print-config']))"
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["grpo", "--controller.name", "bonus"], "write --controller '{\"name\": ...}'"),
        (["grpo", "--task.options.min_terms=2"], "--task.options.min_terms: --task.options is one mapping"),
        (["compare", "--bins", "b", "--arms.up.schedule.name", "pool"], "--arms is one mapping"),
    ],
)
def test_keys_of_a_mapping_are_no_flags(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*argv, "--out", "x"]) == 2
    assert said in capsys.readouterr().err
