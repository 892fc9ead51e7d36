"""The data sets of reasoning-gym as tasks: `pip install 'fluxentropy[rl]'`.

Item i of a data set follows from its seed and i. The first ones are held out, without repetition; those of training
come after, and one whose text is held out is replaced by the next that is not.
"""

from __future__ import annotations

from typing import Any

from fluxentropy.errors import UsageError
from fluxentropy.rl.tasks import GSM8K, Problem, TaskChoice, shown
from fluxentropy.store import fingerprint_json
from fluxentropy.yamlfile import did_you_mean

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
