"""The command line: names of commands -> "module:function", and nothing else about them.

A command is a function that takes its configuration and returns an `Outcome`. Its module is imported when the command
runs and not before, so that help and mistakes answer at once. What is printed, and the exit code, is decided here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, Token, UnknownOptionError
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from fluxentropy import __version__
from fluxentropy.errors import FluxentropyError, UsageError
from fluxentropy.outcome import Outcome
from fluxentropy.process import (
    DEBUG,
    Terminated,
    debugging,
    keep_freed_memory,
    quiet_libraries,
    sigterm_raises,
    to_json,
    write_line,
)
from fluxentropy.yamlfile import read_yaml, to_plain, to_yaml


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its name, where its function is, what configures it, and its help."""

    name: str
    target: str
    """module:function"""
    options: str | type
    """The dataclass that configures it, or its module:name"""
    help: str
    examples: str
    file: str | None = None
    """Whose options its --config file holds, where that is another command: those that both have count."""

    @property
    def config(self) -> type:
        return _named(self.options) if isinstance(self.options, str) else self.options


def _named(target: str) -> Any:
    """What "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = (
    Command(
        name="demo",
        target="fluxentropy.demo:demo",
        options="fluxentropy.config:DemoConfig",
        help="Run the whole pipeline on text that every Python installation carries.",
        examples="""\
fluxentropy demo
fluxentropy demo --out demo-small --passages 50""",
    ),
    Command(
        name="score",
        target="fluxentropy.scoring:score",
        options="fluxentropy.config:ScoreConfig",
        help="Score texts with a language model: entropy, varentropy and surprisal of each text, as Parquet.",
        examples="""\
fluxentropy score web.jsonl --model smollm2-135m-instruct --out runs/web
fluxentropy score web.jsonl --model gpt2 --scores minkpp,entropy_slope,zlib_ratio --out runs/more
fluxentropy score data/*.parquet --model gpt2 --window sliding --out runs/long
zcat web.jsonl.gz | fluxentropy score - --model ./my-model --out runs/piped""",
    ),
    Command(
        name="count",
        target="fluxentropy.counting:count",
        options="fluxentropy.config:CountConfig",
        help="Count how often each token of a model occurs in a corpus, for the scores that ask for it.",
        examples="""\
fluxentropy count web.jsonl --model smollm2-135m-instruct --out counts.parquet
fluxentropy score web.jsonl --model smollm2-135m-instruct --scores all --token-counts counts.parquet --out runs/web""",
    ),
    Command(
        name="tokens",
        target="fluxentropy.tokens:tokens",
        options="fluxentropy.config:TokensConfig",
        help="Show a few texts token by token: a heatmap as HTML, and the numbers as CSV.",
        examples="""\
fluxentropy tokens web.jsonl --model smollm2-135m-instruct --out tokens.html
fluxentropy tokens notes.txt --model gpt2 --limit 2 --top-k 10 --out n.html""",
    ),
    Command(
        name="sort",
        target="fluxentropy.sorting:sort",
        options="fluxentropy.config:SortConfig",
        help="Sort a scored corpus of any size by one of its scores.",
        examples="""\
fluxentropy sort runs/web --out sorted.parquet
fluxentropy sort runs/web --by surprisal_mean --descending --out hard.jsonl
fluxentropy sort runs/web --by "entropy_mean - 0.5*varentropy_mean" --out mixed.parquet""",
    ),
    Command(
        name="bin",
        target="fluxentropy.binning:bin_corpus",
        options="fluxentropy.config:BinConfig",
        help="Cut a scored corpus into bins of Arrow shards, at exact edges.",
        examples="""\
fluxentropy bin runs/web --by entropy_mean --bins 8 --out bins/web
fluxentropy bin runs/web --quantiles 10,25,50,75,90 --workers 4 --out bins/q
fluxentropy bin runs/web --by entropy_mean,varentropy_mean --grid 4x4 --out b
fluxentropy bin runs/small --by learnability --scores runs/large --bins 8 --out l""",
    ),
    Command(
        name="schedule",
        target="fluxentropy.scheduling:schedule",
        options="fluxentropy.config:PlanConfig",
        help="Show what a schedule will draw from each bin, before any training.",
        examples="""\
fluxentropy schedule --bins bins/web --schedule.name increasing
fluxentropy schedule --config configs/pretrain/debug.yaml --bins bins/web --out plans/debug
fluxentropy schedule --bins bins/web --schedule.name pool --tokens 100000000""",
        file="fluxentropy.config:PretrainConfig",
    ),
    Command(
        name="pretrain",
        target="fluxentropy.pretrain:pretrain",
        options="fluxentropy.config:PretrainConfig",
        help="Train a GPT on a binned corpus under a schedule, resumable to the exact step.",
        examples="""\
fluxentropy pretrain --config configs/pretrain/debug.yaml --bins bins/web --out runs/debug
fluxentropy pretrain --config configs/pretrain/debug.yaml --bins bins/web --schedule.name increasing --out runs/up
fluxentropy pretrain --config configs/pretrain/124m.yaml --bins bins/web --devices 8 --out runs/124m""",
    ),
    Command(
        name="compare",
        target="fluxentropy.compare:compare",
        options="fluxentropy.config:CompareConfig",
        help="Compare schedules: several trainings of each, with controls, and what their differences say.",
        examples="""\
fluxentropy compare --config configs/compare/small.yaml --bins bins/web --out comparisons/small
fluxentropy compare --config configs/compare/debug.yaml --bins bins/web --workers 2 --out comparisons/debug
fluxentropy compare --config configs/compare/small.yaml --bins bins/web --seeds 8 --out comparisons/small""",
    ),
    Command(
        name="grpo",
        target="fluxentropy.rl.grpo:grpo",
        options="fluxentropy.config:GRPOConfig",
        help="Train a policy on a task with a checker by GRPO, tracking its entropy.",
        examples="""\
fluxentropy grpo --config configs/grpo/chain_sum.yaml --out runs/sums
fluxentropy grpo --config configs/grpo/chain_sum.yaml --kl.beta 0.01 --inner-epochs 2 --out runs/sums-kl
fluxentropy grpo --task.name gsm8k --task.data data/gsm8k --policy.model gpt2 --policy.lora.rank 8 --out runs/gsm""",
    ),
    Command(
        name="grpo-compare",
        target="fluxentropy.rl.grpocompare:grpo_compare",
        options="fluxentropy.config:GRPOCompareConfig",
        help="Compare controllers of the entropy: several runs of grpo of each, and what their differences say.",
        examples="""\
fluxentropy grpo-compare --config configs/grpo/controllers.yaml --workers 2 --out comparisons/controllers
fluxentropy grpo-compare --config configs/grpo/controllers.yaml --seeds 5 --out comparisons/controllers""",
    ),
    Command(
        name="grpo-study",
        target="fluxentropy.rl.grpostudy:grpo_study",
        options="fluxentropy.config:GRPOStudyConfig",
        help="Say from probed runs of grpo what moves the entropy, and how well it is predicted.",
        examples="""\
fluxentropy grpo-study runs/sums --out studies/sums
fluxentropy grpo-study runs/lr-1e-4 runs/lr-1e-3 --tolerance 0.2 --out studies/rates
fluxentropy grpo-study comparisons/controllers --unit token --out studies/controllers""",
    ),
    Command(
        name="ledger",
        target="fluxentropy.seen:ledger",
        options="fluxentropy.config:LedgerConfig",
        help="Say how often and when a training has seen each document.",
        examples="""\
fluxentropy ledger runs/debug
fluxentropy ledger runs/debug --out seen.parquet""",
    ),
    Command(
        name="verify",
        target="fluxentropy.verify:verify",
        options="fluxentropy.config:VerifyConfig",
        help="Prove that a run has lost no row and no byte; name what is damaged.",
        examples="""\
fluxentropy verify bins/web
fluxentropy verify runs/web --workers 4 --json
fluxentropy verify bins/web --repair""",
    ),
    Command(
        name="zoo",
        target="fluxentropy.zoo:zoo",
        options="fluxentropy.config:ZooConfig",
        help="Score texts with every model of a zoo, then compare them.",
        examples="""\
fluxentropy zoo web.jsonl --zoo offline --out zoo/web
fluxentropy zoo data/*.parquet --zoo my-models.yaml --limit 10000 --out zoo/sample""",
    ),
    Command(
        name="agree",
        target="fluxentropy.agree:agree",
        options="fluxentropy.config:AgreeConfig",
        help="Say how far models agree on texts: rank correlations, distances, PCA.",
        examples="""\
fluxentropy agree runs/small runs/large --out agreement
fluxentropy agree zoo/web --by surprisal_mean --baseline gpt2 --out agreement
fluxentropy agree table.csv --out agreement""",
    ),
    Command(
        name="hellaswag",
        target="fluxentropy.hellaswag:hellaswag",
        options="fluxentropy.config:HellaswagConfig",
        help="Answer HellaSwag, or another multiple-choice set, and score each context.",
        examples="""\
fluxentropy hellaswag --model smollm2-135m-instruct --out runs/hellaswag
fluxentropy hellaswag --model gpt2 --data val.jsonl.gz --limit 300 --out runs/h
fluxentropy hellaswag --model gpt2 --task piqa --out runs/piqa""",
    ),
    Command(
        name="diagnose",
        target="fluxentropy.diagnose:diagnose",
        options="fluxentropy.config:DiagnoseConfig",
        help="Say whether metrics predict a yes-or-no outcome: logistic regressions, tests, plots.",
        examples="""\
fluxentropy diagnose items.parquet --target correct --out diagnosis
fluxentropy diagnose answers.csv --target correct --metrics entropy,varentropy,sqrt_varentropy --out diagnosis
fluxentropy diagnose answers.csv --target correct --balance --seed 1 --out balanced""",
    ),
    Command(
        name="report",
        target="fluxentropy.report:report",
        options="fluxentropy.config:ReportConfig",
        help="Put what the other commands wrote on one HTML page, to read, send or print.",
        examples="""\
fluxentropy report demo
fluxentropy report runs/web bins/web comparison --out web.html --title Web""",
    ),
    Command(
        name="models",
        target="fluxentropy.model_listing:models",
        options="fluxentropy.config:ModelsConfig",
        help="List the models of the zoo: source, size, licence, what is here.",
        examples="""\
fluxentropy models
fluxentropy models --zoo my-models.yaml --json""",
    ),
)

DESCRIPTION = """\
fluxentropy measures how uncertain language models are about each text of a corpus (entropy, varentropy, surprisal), \
sorts the corpus by it, and compares the models."""

EXAMPLES = """\
Examples:
  # everything once, on a small text
  fluxentropy demo
  # score a corpus; the same command again resumes a run that was stopped
  fluxentropy score web.jsonl --model smollm2-135m-instruct --out runs/web
  # the corpus in the order of a score, lowest first
  fluxentropy sort runs/web --by entropy_mean --out sorted.parquet
  # how often tokens occur; more scores from the same pass; an order that mixes
  fluxentropy count web.jsonl --model gpt2 --out counts.parquet
  fluxentropy score web.jsonl --model gpt2 --scores minkpp --out runs/more
  fluxentropy sort runs/more --by "z(minkpp) + z(entropy_mean)" --out m.parquet
  # the same with several models: how far do they agree?
  fluxentropy models
  fluxentropy zoo web.jsonl --zoo offline --out zoo/web
  fluxentropy agree zoo/web --by surprisal_mean --out agreement
  # do entropy and varentropy predict which answers are right?
  fluxentropy hellaswag --model smollm2-135m-instruct --out runs/hellaswag
  fluxentropy diagnose runs/hellaswag --target correct_norm --out diagnosis
  # eight bins of equal counts, as Arrow shards to train on
  fluxentropy bin runs/web --by entropy_mean --bins 8 --out bins/web
  # what a schedule will draw from each bin, before any training
  fluxentropy schedule --bins bins/web --schedule.name periodic
  # as blocks of tokens; what a schedule will draw; a small GPT; what it saw
  fluxentropy bin runs/web --bins 8 --tokenize bytes --out bins/web
  fluxentropy schedule --bins bins/web --schedule.name increasing
  fluxentropy pretrain --config small.yaml --bins bins/web --out runs/small
  fluxentropy ledger runs/small
  # which schedule is better? with controls and honest statistics
  fluxentropy compare --config compare.yaml --bins bins/web --out comparison
  # reinforcement learning on sums, with the entropy of the policy
  fluxentropy grpo --config configs/grpo/chain_sum.yaml --out runs/sums
  # which controller of the entropy is better?
  fluxentropy grpo-compare --config controllers.yaml --out compared
  # what moves the entropy, and how well is it predicted? from probed runs
  fluxentropy grpo-study runs/sums --out studies/sums
  # nothing lost, nothing damaged? --repair makes again what is
  fluxentropy verify bins/web --repair
  # look at single tokens
  fluxentropy tokens web.jsonl --model smollm2-135m-instruct --out tokens.html
  # all of it on one page
  fluxentropy report runs/web bins/web comparison --out report.html
  # write the options to a file, and run from it; flags win over the file
  fluxentropy score web.jsonl --model gpt2 --out runs/b --print-config > b.yaml
  fluxentropy score --config b.yaml --limit 100

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted."""


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
        version=__version__,
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
            given = read_yaml(path, _named(command.file) if command.file else command.config)
            if command.file:  # such as the file of a training: what it is to write is no matter here
                known = {option.name for option in fields(command.config)} - {"out"}
                given = {name: value for name, value in given.items() if name in known}
            Dict({names[-1]: _mappings_as_text(given, command.config)}, source=str(path))(app, names, arguments)

    return fill


def _mappings_as_text(given: dict[str, Any], config: type) -> dict[str, Any]:
    """What YAML says, where a mapping of anything is one value, as JSON: see `options.JSON`."""
    hints, found = get_type_hints(config), dict(given)
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
        outcome: Outcome = _named(command.target)(config)
    for line in [to_json(outcome.data)] if switches.json else outcome.lines:
        write_line(line)
    return outcome.exit_code
