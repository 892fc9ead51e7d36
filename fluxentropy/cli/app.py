"""The command line: names of commands -> "module:function", and nothing else about them.

A command is a function that takes its configuration and returns a `Result`. Its module is imported when the command
runs and not before, so that help and mistakes answer at once. What is printed, and the exit code, is decided here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, Token, UnknownOptionError
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from fluxentropy.cli.commands import COMMANDS, DESCRIPTION, EXAMPLES, Command, named
from fluxentropy.config.results import Result
from fluxentropy.config.yaml import key_of, read_yaml, to_plain, to_yaml
from fluxentropy.errors import FluxentropyError, UsageError
from fluxentropy.runs.files import plain, versions
from fluxentropy.runs.progress import DEBUG, debugging

# --- signals, quiet libraries, stdout ---------------------------------------------------------------------------------


QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


class Terminated(BaseException):
    """SIGTERM arrived. Like `KeyboardInterrupt`, nothing but `main` may catch it."""


def write_line(line: str) -> None:
    """Print `line` on stdout. That its reader, such as `head`, had enough is no failure."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_json(value: Any) -> str:
    """`value` as JSON on one line; NaN and infinity, which JSON has not, become null."""
    return json.dumps(plain(value), ensure_ascii=False, default=str)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries say away from the user. This package's own log and warnings show on stderr."""
    if debugging():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    silent = logging.NullHandler()  # without any handler, logging prints warnings by itself
    logging.getLogger().addHandler(silent)
    ours, spoken = logging.getLogger("fluxentropy"), logging.StreamHandler(sys.stderr)
    ours.addHandler(spoken)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"fluxentropy\b")
            warnings.showwarning = _show_warning
            yield
    finally:
        logging.getLogger().removeHandler(silent)
        ours.removeHandler(spoken)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the system and asking for it again.

    Every layer of a forward pass frees buffers of some megabytes and allocates as many: without this, the page faults
    cost a sixth of the scorer's speed in float32 (docs/LOG.md). Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_TRIM_THRESHOLD and so on of malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(top_pad, 2**26)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc accepts


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"warning: {message}\n")


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the program like Ctrl-C does, so that files are closed and removed."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python allows no signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


# --- the parser -------------------------------------------------------------------------------------------------------


@Parameter(name="*", group=Group("Command line", sort_key=9), negative=(), show_default=False)
@dataclass(frozen=True, kw_only=True)
class Switches:
    """What every command takes."""

    config: Path | None = None
    """YAML file with options of this command (max_tokens: 512); flags win over it."""
    print_config: bool = False
    """Print the resolved options as YAML, a file for --config, and stop."""
    json: bool = False
    """Print the result as one JSON object."""


def build_app(commands: Sequence[Command] = COMMANDS, argv: Sequence[str] | None = None) -> App:
    """The command line of `commands`; calling it with arguments runs one and returns the exit code.

    With `argv`, only the commands that occur there know their options: the help of all is no work then.
    """
    called = None if argv is None or any("completion" in word for word in argv) else argv
    app = App(
        name="fluxentropy",
        help=DESCRIPTION,
        help_epilogue=EXAMPLES,
        help_format="plaintext",
        version=versions()["fluxentropy"],
        default_parameter=Parameter(negative_iterable=()),
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    setup = Group("Shell and help", sort_key=9)
    for flag in ("--help", "--version"):
        app[flag].group = setup
    app.register_install_completion_command(group=setup, help="Install completion for your shell.")
    app.command(_completion_printer(app), name="--show-completion", group=setup)
    for place, command in enumerate(commands):
        app.command(
            _runner(command) if called is None or command.name in called else _not_called,
            name=command.name,
            help=command.help,
            help_epilogue="Examples:\n  " + command.examples.replace("\n", "\n  "),
            config=_complete_from_yaml(command),
            sort_key=place,
        )
    return app


def _not_called() -> int:
    raise AssertionError("a command that the command line does not name")


def _runner(command: Command) -> Callable[..., int]:
    """The function that cyclopts sees: its options are the fields of the command's dataclass, flat."""

    def run(config: Any, *, switches: Switches = Switches()) -> int:
        return _run(command, config, switches)

    run.__annotations__ = {"config": Annotated[command.config, Parameter(name="*")], "switches": Switches}
    if all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(command.config)):
        run.__defaults__ = (command.config(),)
    return run


def _complete_from_yaml(command: Command) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    """What cyclopts calls after reading the flags: it fills what they left open from the file of `--config`."""

    def fill(app: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
        _check_flags(arguments)
        tokens = arguments["--config"].tokens
        if tokens:
            path = Path(tokens[-1].value)
            given = read_yaml(path, named(command.file) if command.file else command.config)
            if command.file:  # such as the file of a training: what it is to write is no matter here
                known = {key_of(option.name) for option in fields(command.config)} - {"out"}
                given = {name: value for name, value in given.items() if name in known}
            Dict({names[-1]: _mappings_as_text(given, command.config)}, source=str(path))(app, names, arguments)

    return fill


def _mappings_as_text(given: dict[str, Any], config: type) -> dict[str, Any]:
    """What YAML says, where a mapping of anything is one value, as JSON: see `options.JSON`."""
    hints = {key_of(name): hint for name, hint in get_type_hints(config).items()}
    found = dict(given)
    for name, value in given.items():
        if hints[name] == dict[str, Any]:
            found[name] = json.dumps(value)
        elif is_dataclass(hints[name]) and isinstance(value, dict):
            found[name] = _mappings_as_text(value, hints[name])
    return found


def _check_mappings(argv: Sequence[str], commands: Sequence[Command]) -> None:
    """Refuse --controller.name where --controller is one mapping: cyclopts fails on it."""
    config = next((command.config for command in commands if argv and command.name == argv[0]), None)
    dotted = [arg.partition("=")[0] for arg in argv if arg.startswith("--") and "." in arg]
    for mapping in _mappings(config) if config and dotted else ():
        for flag in dotted:
            if flag.startswith(f"{mapping}."):
                key = flag.removeprefix(f"{mapping}.")
                raise UsageError(f"{flag}: {mapping} is one mapping: write {mapping} '{{\"{key}\": ...}}'")


def _mappings(config: type, prefix: str = "--") -> Iterator[str]:
    """The flags whose value is a mapping of anything."""
    for name, hint in get_type_hints(config).items():
        flag = prefix + name.replace("_", "-")
        if hint == dict[str, Any]:
            yield flag
        elif is_dataclass(hint):
            yield from _mappings(hint, f"{flag}.")  # type: ignore[arg-type]


def _check_flags(arguments: ArgumentCollection) -> None:
    """Refuse what cyclopts lets pass: 3.7 for a whole number, and unknown flags where `-` may stand for stdin."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.resolved_hint is int and "." in token.value:
                raise UsageError(f"{token.keyword} {token.value}: use a whole number")
            if argument.parameter.allow_leading_hyphen and token.value.startswith("-") and token.value != "-":
                unknown = Token(keyword=token.value.partition("=")[0], source="cli")
                raise UnknownOptionError(token=unknown, argument_collection=arguments)


def _completion_printer(app: App) -> Callable[..., None]:
    def show(shell: Literal["bash", "zsh", "fish"] = "bash") -> None:
        """Print the completion script of a shell: bash, zsh or fish."""
        write_line(app.generate_completion(shell=shell))

    return show


# --- running ----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, *, commands: Sequence[Command] = COMMANDS) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code.

    A failure is one line on stderr; with `--json` also `{"error": ..., "exit_code": ...}` on stdout.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with sigterm_raises():
            _check_mappings(argv, commands)
            return build_app(commands, argv)(argv, exit_on_error=False, print_error=False) or 0
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if debugging():
            traceback.print_exc()
        message, code = _explain(error)
        print(message, file=sys.stderr)
        if "--json" in argv:
            write_line(to_json({"error": message.removeprefix("error: "), "exit_code": code}))
        return code


def _explain(error: BaseException) -> tuple[str, int]:
    """What to say about `error`, and the exit code."""
    match error:
        case KeyboardInterrupt():
            return "interrupted; run the same command again to go on", 130
        case Terminated():
            return "terminated; run the same command again to go on", 143
        case MissingArgumentError(argument=argument, keyword=None) if argument and argument.field_info.required:
            flag = argument.name.lstrip("-").upper() if argument.field_info.is_positional else argument.name
            return f"error: {flag} is missing: give it on the command line or in a --config file", 2
        case CycloptsError():
            return f"error: {error}", 2
        case FluxentropyError():
            return f"error: {error}", error.exit_code
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"unexpected error: {said}; set {DEBUG}=1 to see where it comes from", 1


def _run(command: Command, config: Any, switches: Switches) -> int:
    """Run one command and print what it hands back."""
    if switches.print_config:
        write_line(to_json(to_plain(config)) if switches.json else to_yaml(config).rstrip())
        return 0
    keep_freed_memory()
    with quiet_libraries(), contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        result: Result = named(command.target)(config)
    for line in [to_json(result.to_dict())] if switches.json else result.lines():
        write_line(line)
    return result.exit_code
