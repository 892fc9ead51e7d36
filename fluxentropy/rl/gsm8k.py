"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168) in its own format: JSON Lines of question and answer, `#### 72` last.

A response is right where the number that it gives (`numberanswers`) is that of the solution, exactly: in its last
`#### ...` or boxed expression, else the last one of the text.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fluxentropy.errors import SourceError, UsageError
from fluxentropy.rl.numberanswers import MARK, answer_of, number_of
from fluxentropy.rl.tasks import Problem, TaskChoice, shown
from fluxentropy.shuffling import keys, permuted
from fluxentropy.store import fingerprint_file, fingerprint_json

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
