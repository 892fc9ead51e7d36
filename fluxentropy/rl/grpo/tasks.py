"""A verifiable task: problems by number, and the reward of a response. Problems that are held out are never trained on.

    task = open_task("chain_sum", options={"min_digits": 2}, template="{expression} =")
    problem = task.train(7)                      # always the same
    task.score(problem, "42")                    # 1.0, or 0.0, or something between

A task is any object with these three methods; those by name are the data sets of reasoning-gym and GSM8K.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import FluxentropyError, RunError, SourceError, UsageError
from fluxentropy.runs.files import fingerprint_file, fingerprint_json
from fluxentropy.schedules.orders import keys, permuted

# --- tasks ------------------------------------------------------------------------------------------------------------


GSM8K = "gsm8k"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is asked, the answer as text, where there is one that a model can be shown, and what the checker needs."""

    prompt: str
    answer: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Problems and their checker.

    Attributes:
        name: for messages.
        held_out: problems that are none of those of `train`, as texts.
        fingerprint: says which problems these are.
    """

    name: str
    held_out: tuple[Problem, ...]
    fingerprint: str

    def train(self, number: int) -> Problem:
        """Problem `number` >= 0 of an endless row."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """The reward of a response, 1 for a right one. What it raises is a reward of 0: see `Scores`."""
        ...


class Scores:
    """The rewards of a task's checker; `errors` counts responses on which it raised, whose reward is 0.

    Errors: RunError names the prompt and the response whose reward is not finite.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.errors = task, 0

    def __call__(self, problem: Problem, response: str) -> float:
        try:
            reward = float(self.task.score(problem, response))
        except FluxentropyError:
            raise
        except Exception as error:  # the checkers of others expect some answers and not others
            self.errors += 1
            if self.errors == 1:
                said = f"{type(error).__name__}: {error}"
                log.warning(f"the checker of {self.task.name} fails on the response {response!r} ({said}): reward 0")
            return 0.0
        if not math.isfinite(reward):
            raise RunError(
                f"the reward of the response {response!r} to the prompt {problem.prompt!r} is {reward}: look at task "
                f"{self.task.name}"
            )
        return reward


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """Which task: what the section `task` of a configuration says, and how many problems are held out."""

    name: str
    data: str | None = None
    template: str = "{question}"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    held_out: int = 200


def open_task(choice: TaskChoice) -> Task:
    """The task of that name. Errors: UsageError names an unknown one and what can be used."""
    if choice.name == GSM8K:
        return GSM8KTask(choice)

    return GymTask(choice)


def shown(choice: TaskChoice, fields: Mapping[str, Any]) -> str:
    """The problem as a model sees it: the template with its fields filled in.

    >>> shown(TaskChoice(name="chain_sum", template="{expression} ="), {"expression": "1 + 2"})
    '1 + 2 ='
    """
    try:
        return choice.template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(
            f"--task.template {choice.template!r}: {error} is no field of {choice.name}: use {known}"
        ) from (error)


# --- answers that are numbers -----------------------------------------------------------------------------------------
#
# Where the response says what its answer is, in the rest of a line after `####` or in `\boxed{...}` (the last of these
# counts), that part has to be one number; else the last number of the text is the answer. A number is
#
#     18   -18   - 18   1,800   18.50   .5   18e3   3/4   2 1/2   2\frac{1}{2}   2½   18k   18 thousand, million,
#     billion
#
# with a currency before it and a unit after it: 18 $, 18 % and 18 kg are all 18. What stands in an expression (20 - 2),
# a time (18:30), a date, a range, a version or a name (x18, 18x) is no number; `=` ends what is before it.


MARK = "####"
LONGEST = 60  # digits of a number, and of its exponent's value
PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"

QUANTITY = re.compile(
    rf"(?P<whole>[0-9]+)(?:[ \t]+and)?[ \t]+(?P<top>[0-9]+)[ \t]*/[ \t]*(?P<bottom>[0-9]+)"
    rf"|(?P<number>{PLAIN})(?:[eE](?P<power>[+-]?[0-9]+))?(?:[ \t]*/[ \t]*(?P<over>{PLAIN}))?"
)

SIGN = re.compile(r"[-−–][ \t]*[$€£¥]?[ \t]*\Z")
HYPHEN = re.compile(r"\w[-−–]\Z|[^\W\d_]{2,}[ \t]+[-−–][ \t]+[$€£¥]?\Z")  # of a word, not of a number
GLUED = re.compile(r"[0-9][.,:/][$]?\Z|[0-9][ \t]+\Z|[\w^\\]\Z")  # then the number is only the end of something
OPERATOR = re.compile(r"[ \t]*[^\W\d_]*[ \t)%°]*[-−–+*/×·÷^][ \t($€£¥]*\Z")  # between two numbers: an expression
AROUND = 80  # characters that are looked at on each side of a number
SCALES = {"k": 3, "K": 3, "M": 6, "B": 9, "bn": 9, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
UNITS = frozenset("mghsdlLCFc")  # one letter; any other is a variable
COMMANDS = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox|boldsymbol)\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")


def answer_of(response: str) -> Fraction | None:
    r"""The number that a response gives, None where it gives none.

    >>> answer_of("So it is \\boxed{2\\frac{1}{2}} cups."), answer_of("He has 3 and gives 1, so 3 - 1 = 2 are left.")
    (Fraction(5, 2), Fraction(2, 1))
    >>> [answer_of(text) for text in ("18:30", "20 - 2", "#### 17 or 18", "none")]
    [None, None, None, None]
    """
    stated = _stated(response)
    return number_of(stated) if stated is not None else _last(_plain(response), alone=False)


def number_of(text: str) -> Fraction | None:
    """The one number of a text, such as what stands after the mark; None where it holds none, or several."""
    return _last(re.split("[=≈]", _plain(text))[-1], alone=True)


def _stated(response: str) -> str | None:
    """What the response says its answer is: the last of what is marked and boxed, None where nothing is."""
    box = max(response.rfind(name) for name in (r"\boxed", r"\fbox"))
    mark = response.rfind(MARK)
    if box < 0 and mark < 0:
        return None
    if mark > box:
        return next(iter(response[mark + len(MARK) :].strip().splitlines()), "")
    rest = response[box:].split("d" if response[box:].startswith(r"\boxed") else "x", 1)[1].lstrip()
    if not rest.startswith("{"):
        return rest.split("\n")[0]
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place]
    return ""  # its end was cut


def _plain(text: str) -> str:
    """Without markup: LaTeX's fractions, spaces, signs and text, and fractions of one character, in plain letters."""
    text = text.replace("{,}", ",").replace(r"^{\circ}", "°").replace(r"^\circ", "°").replace("**", "")
    while (shorter := COMMANDS.sub(r"\1", text)) != text:
        text = shorter
    text = FRACTION.sub(lambda m: f" {m[1] or m[3] or ''}/{m[2] or m[4] or ''} ", text)
    text = re.sub(r"\\[$%#&_{}]", lambda m: m[0][1], text)
    text = re.sub(r"\\(?:[!,;: ()\[\]]|left|right|quad|degree)", " ", text).replace("~", " ").replace("\\\n", "\n")
    return "".join(f" {_ratio(c)} " if unicodedata.category(c) == "No" and "/" in _ratio(c) else c for c in text)


def _ratio(character: str) -> str:
    """A fraction of one character as `1/2`; for others, such as ², something without a stroke."""
    return str(Fraction(unicodedata.numeric(character, 0.0)).limit_denominator(1000))


def _last(text: str, *, alone: bool) -> Fraction | None:
    """The last number of a plain text; with `alone` it must be the only one."""
    found = list(QUANTITY.finditer(text))
    if not found or (alone and len(found) > 1):
        return None
    last = found[-1]
    between = text[found[-2].end() : last.start()] if len(found) > 1 else ""
    if len(found) > 1 and len(between) <= AROUND and OPERATOR.match(between):
        return None
    before, after = text[max(last.start() - AROUND, 0) : last.start()], text[last.end() : last.end() + AROUND]
    sign, hyphen = SIGN.search(before), HYPHEN.search(before)
    if not hyphen and (GLUED.search(before) or (sign and re.search(r"[0-9)]\s*\Z", before[: sign.start()]))):
        return None
    scale, value = _scale(after), _value(last)
    if scale is None or value is None:
        return None
    return (-value if sign and not hyphen else value) * 10**scale


def _scale(after: str) -> int | None:
    """The power of ten that what follows a number says; None where it makes an expression or a name of it."""
    word = re.match(r"[^\W\d_]+", after)
    if word is None:
        if re.match(r"[ \t]*(?:\^|\\|[*×·÷/+][ \t]*[\w\\(])|[_(\[]|[ \t]+[-−–][ \t]*[a-zA-Z\\]\b", after):
            return None
        word = re.match(r"[ \t]+(thousand|million|billion|trillion)\b", after)
        return SCALES[word[1]] if word else 0
    if word[0] in SCALES:
        return SCALES[word[0]]
    return 0 if len(word[0]) > 1 or word[0] in UNITS else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match without its sign; None for one that is too long, and for a denominator of 0."""
    if len(match[0]) > LONGEST or abs(int(match["power"] or 0)) > LONGEST:
        return None
    if match["whole"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        return int(match["whole"]) + Fraction(top, bottom) if bottom else None
    over = Fraction((match["over"] or "1").replace(",", ""))
    number = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    return number / over if over else None


# --- GSM8K ------------------------------------------------------------------------------------------------------------
#
# A response is right where the number that it gives (`numberanswers`) is that of the solution, exactly: in its last
# `#### ...` or boxed expression, else the last one of the text.


FILES = ("train.jsonl", "train.jsonl.gz"), ("test.jsonl", "test.jsonl.gz")


class GSM8KTask:
    """Problems of the training file in a shuffled order, again and again; those of the test file are held out.

    `data` is the folder of both files, or one file: then its last problems are held out.
    Errors: UsageError, SourceError name the file, and the line, that cannot be used.
    """

    def __init__(self, choice: TaskChoice) -> None:
        self.name, self._choice = choice.name, choice
        if choice.options:
            raise UsageError(f"--task.options {dict(choice.options)}: {choice.name} has none")
        if choice.data is None:
            raise UsageError("task gsm8k: give --task.data, the folder of train.jsonl and test.jsonl (or .jsonl.gz)")
        files = _files(Path(choice.data))
        problems = self._read(files[0])
        if len(files) > 1:
            held = self._read(files[1])[: choice.held_out]
        else:
            held = problems[len(problems) - choice.held_out :] if choice.held_out < len(problems) else []
            problems = problems[: len(problems) - len(held)]
        texts = {problem.prompt for problem in held}
        self._problems = [problem for problem in problems if problem.prompt not in texts]
        self.held_out = tuple(held)
        if not self._problems or len(held) < choice.held_out:
            raise UsageError(f"--task.data {choice.data}: too few problems to hold out {choice.held_out} of them")
        self.fingerprint = fingerprint_json([choice.template, *map(fingerprint_file, files)])

    def train(self, number: int) -> Problem:
        """A permutation of all problems for each round."""
        size = len(self._problems)
        round_, place = divmod(number, size)
        order = permuted(np.array([place]), np.array([size]), keys(self._choice.seed, round_))
        return self._problems[int(order[0])]

    def score(self, problem: Problem, response: str) -> float:
        """1 for the right number, else 0."""
        return float(answer_of(response) == number_of(problem.answer))

    def _read(self, path: Path) -> list[Problem]:
        found = []
        for number, line in enumerate(_lines(path), start=1):
            try:
                record = json.loads(line)
                question, solution = str(record["question"]), str(record["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise SourceError(f"{path}, line {number}: no JSON object with question and answer") from error
            if MARK not in solution:
                raise SourceError(f"{path}, line {number}: the answer has no {MARK} before its number")
            prompt = shown(self._choice, {"question": question})
            answer = solution.rsplit(MARK, 1)[-1].strip().replace(",", "")
            if number_of(answer) is None:
                raise SourceError(f"{path}, line {number}: the answer {answer!r} after {MARK} is not one number")
            found.append(Problem(prompt=prompt, answer=answer, data={"solution": solution}))
        return found


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [next((path / name for name in names if (path / name).is_file()), None) for names in FILES]
    if None in found:
        raise UsageError(
            f"--task.data {path} holds no train.jsonl and test.jsonl, nor with .gz: name the folder of both"
        )
    return [file for file in found if file is not None]


# --- reasoning-gym ----------------------------------------------------------------------------------------------------
#
# Item i of a data set follows from its seed and i. The first ones are held out, without repetition; those of training
# come after, and one whose text is held out is replaced by the next that is not.


TRIES = 1000  # items looked at for one problem
STRIDE = 1_000_003  # a seed away: item i of seed s is item i - 1 of seed s + 1


class GymTask:
    """A data set of reasoning-gym by its name. Errors: UsageError names what it does not know."""

    def __init__(self, choice: TaskChoice) -> None:
        self.name, self._choice = choice.name, choice
        self._items = _open(choice)
        self.held_out, self._first = self._hold_out(choice.held_out)
        self._texts = frozenset(problem.prompt for problem in self.held_out)
        self.fingerprint = fingerprint_json(
            [[problem.prompt, problem.answer] for problem in (*self.held_out, *map(self.train, range(8)))]
        )

    def train(self, number: int) -> Problem:
        """The problem of item `number` after those held out, or one in place of it."""
        for retry in range(TRIES):
            problem = self._problem(self._first + number + retry * STRIDE)
            if problem.prompt not in self._texts:
                return problem
        raise UsageError(
            f"task {self.name}: {TRIES} problems in a row are held out: hold out fewer (--eval-problems), or let "
            f"--task.options give more different ones"
        )

    def score(self, problem: Problem, response: str) -> float:
        """What the data set's own checker gives. It raises what it likes on answers that it did not expect."""
        return float(self._items.score_answer(response.strip(), problem.data["item"]))

    def _problem(self, number: int) -> Problem:
        item = self._items[number]
        if item["answer"] is None:
            raise UsageError(
                f"task {self.name}: its problems have no answer in reasoning-gym, so that none can be shown in a "
                f"warm-up or compared with: choose another --task.name"
            )
        fields = {"question": item["question"], **item.get("metadata", {})}
        return Problem(prompt=shown(self._choice, fields), answer=str(item["answer"]), data={"item": item})

    def _hold_out(self, count: int) -> tuple[tuple[Problem, ...], int]:
        """Different problems, and the first item that was not looked at."""
        found: dict[str, Problem] = {}
        number = 0
        while len(found) < count:
            if number >= count + TRIES:
                raise UsageError(
                    f"task {self.name} has only {len(found)} different problems among {number}: lower --eval-problems "
                    f"{count}, or change --task.options"
                )
            problem = self._problem(number)
            found.setdefault(problem.prompt, problem)
            number += 1
        return tuple(found.values()), number


def _open(choice: TaskChoice) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(f"task {choice.name!r} needs reasoning-gym: pip install 'fluxentropy[rl]'") from error
    if choice.name not in DATASETS:
        raise UsageError(f"task {choice.name!r} is unknown{did_you_mean(choice.name, [GSM8K, *sorted(DATASETS)])}")
    if choice.data is not None:
        raise UsageError(f"--task.data {choice.data} with the task {choice.name}, which makes its problems itself")
    try:
        return reasoning_gym.create_dataset(
            choice.name, **{"size": 2**40, **choice.options, "seed": choice.seed * STRIDE}
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"--task.options {dict(choice.options)} of {choice.name}: {error}") from error
