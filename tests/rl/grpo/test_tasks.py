"""Tasks: problems by number, none of those held out, and checkers that know right answers from wrong ones."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.errors import FluxentropyError, RunError, SourceError, UsageError
from fluxentropy.rl.grpo.tasks import Problem, Scores, Task, TaskChoice, answer_of, number_of, open_task

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))
DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def sums(**options: Any) -> Task:
    pytest.importorskip("reasoning_gym")
    arguments = {"template": "{expression} =", "options": DIGITS, "held_out": 30, **options}
    return open_task(TaskChoice(name="chain_sum", **arguments))


def test_chain_sum_asks_sums_and_knows_the_answer() -> None:
    task = sums()
    for number in range(40):
        problem = task.train(number)
        one, sign, two, equals = problem.prompt.split()
        assert equals == "=" and int(problem.answer) == int(one) + (int(two) if sign == "+" else -int(two))
        assert task.score(problem, f" {problem.answer}") == 1
        assert task.score(problem, str(int(problem.answer) + 1)) < 1 and task.score(problem, "") == 0
    assert sums().train(7) == task.train(7)
    assert sums(template="{question}").train(0).prompt.startswith("State the final answer")
    assert [sums(seed=1).train(n).prompt for n in range(9)] != [task.train(n).prompt for n in range(9)]


def test_problems_held_out_are_different_and_never_trained_on() -> None:
    """There are only 200 sums of two digits: without care they would come again and again."""
    task = sums(held_out=150)
    held = {problem.prompt for problem in task.held_out}
    assert len(held) == len(task.held_out) == 150
    assert not held & {task.train(number).prompt for number in range(2000)}
    assert task.fingerprint == sums(held_out=150).fingerprint != sums().fingerprint


def test_other_data_sets_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    task = open_task(TaskChoice(name="spell_backward", held_out=3))
    problem = task.train(0)
    assert task.score(problem, problem.answer) == 1


ODD = ["", "abc", "None", "((((", "[[1,2", "{}", "1e400", "9" * 5000, "\\boxed{", "a*b", "١٢", "(" * 3000]


@pytest.mark.parametrize("name", ["prime_factorization", "game_of_life", "coin_flip", "countdown", "sudoku"])
def test_a_checker_that_fails_gives_0_and_is_counted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of the first three raises on answers that it does not expect: a ValueError, a KeyError, an OverflowError."""
    pytest.importorskip("reasoning_gym")
    task = open_task(TaskChoice(name=name, held_out=2))
    score, problem = Scores(task), task.held_out[0]
    assert score(problem, problem.answer) == 1 and score.errors == 0
    assert all(0 <= score(problem, text) <= 1 for text in ODD)
    raises = name in ("prime_factorization", "game_of_life", "coin_flip")
    assert (score.errors > 0) == raises
    assert (f"the checker of {name} fails on the response" in caplog.text) == raises
    assert caplog.text.count("fails on") == raises  # once


def test_what_a_task_says_of_itself_is_no_failure_of_its_checker() -> None:
    class Broken:
        name, held_out, fingerprint = "broken", (), ""

        def score(self, problem: Problem, response: str) -> float:
            if response == "nan":
                return float("nan")
            raise UsageError("give --task.data")

    problem = Problem(prompt="a", answer="b")
    with pytest.raises(UsageError, match=r"give --task\.data"):
        Scores(Broken())(problem, "c")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the reward of the response 'nan' to the prompt 'a' is nan"):
        Scores(Broken())(problem, "nan")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"])
def test_tasks_without_answers_are_refused_by_name(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError, match=f"task {name}: its problems have no answer"):
        open_task(TaskChoice(name=name, held_out=2))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"name": "chain_sums"}, "'chain_sums' is unknown: did you mean chain_sum"),
        ({"options": {"max_digit": 1}}, "--task.options .* of chain_sum: .*max_digit"),
        ({"options": {"min_terms": 0}}, "--task.options .* of chain_sum: min_terms must be positive"),
        ({"template": "{expresion}"}, "--task.template .*'expresion' is no field of chain_sum: use {question}"),
        ({"options": DIGITS, "held_out": 900}, "has only 200 different problems"),
        ({"data": "x"}, "--task.data x with the task chain_sum"),
    ],
)
def test_what_is_refused(choice: dict[str, Any], said: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError, match=said):
        open_task(TaskChoice(**{"name": "chain_sum", **choice}))


# --- GSM8K ------------------------------------------------------------------------------------------------------------


def write(path: Path, answers: list[str]) -> None:
    records = [{"question": f"{path.name} {n}?", "answer": f"So <<1+1=2>>.\n#### {a}"} for n, a in enumerate(answers)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def gsm8k(data: Path | None, **options: Any) -> Task:
    return open_task(TaskChoice(name="gsm8k", data=None if data is None else str(data), **{"held_out": 2, **options}))


def test_gsm8k_reads_its_own_format(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["72", "1,000", "5", "-3"])
    write(tmp_path / "test.jsonl.gz", ["1", "2", "3"])
    task = gsm8k(tmp_path, template="Q: {question} A:")
    assert [problem.prompt for problem in task.held_out] == ["Q: test.jsonl.gz 0? A:", "Q: test.jsonl.gz 1? A:"]
    rounds = [[task.train(4 * r + n).prompt for n in range(4)] for r in range(6)]
    assert all(sorted(prompts) == sorted(rounds[0]) for prompts in rounds) and len(set(map(tuple, rounds))) > 1
    problem = next(task.train(n) for n in range(4) if task.train(n).answer == "1000")
    right = ["1000", "They have $1,000.", "3 + 4\n#### 1,000", r"\boxed{1000}", "It is 1000.0", "1e3"]
    assert [task.score(problem, text) for text in right] == [1.0] * 6
    assert [task.score(problem, text) for text in ["100", "", "none", "1000 and so 7", "#### 10000"]] == [0.0] * 5
    minus = next(task.train(n) for n in range(4) if task.train(n).answer == "-3")
    assert task.score(minus, "- 3") == 1 and task.score(minus, "3") == 0
    one = gsm8k(tmp_path / "train.jsonl", held_out=1)
    assert [problem.answer for problem in one.held_out] == ["-3"]
    assert {one.train(n).answer for n in range(9)} == {"72", "1000", "5"}


def test_gsm8k_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give --task.data"):
        gsm8k(None)
    with pytest.raises(UsageError, match=r"holds no train.jsonl and test.jsonl"):
        gsm8k(tmp_path)
    path = tmp_path / "train.jsonl"
    write(path, ["1"] * 3)
    with pytest.raises(UsageError, match="too few problems"):
        gsm8k(path, held_out=3)
    path.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b", "answer": "1"}\n')
    with pytest.raises(SourceError, match=r"train.jsonl, line 2: the answer has no ####"):
        gsm8k(path)
    path.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b", "answer": "#### 1 or 2"}\n')
    with pytest.raises(SourceError, match=r"line 2: the answer '1 or 2' after #### is not one number"):
        gsm8k(path)
    path.write_text("[]\n")
    with pytest.raises(SourceError, match="line 1: no JSON object"):
        gsm8k(path)
    (tmp_path / "train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(FluxentropyError, match="cannot be read"):
        gsm8k(tmp_path / "train.jsonl.gz")


@pytest.mark.shared_data
def test_the_files_of_gsm8k() -> None:
    if not (SHARED / "data" / "gsm8k").is_dir():
        pytest.skip(f"no {SHARED}")
    task = gsm8k(SHARED / "data" / "gsm8k", held_out=100)
    problems = [*task.held_out[:20], *(task.train(number) for number in range(20))]
    for problem in problems:
        assert task.score(problem, problem.data["solution"]) == 1
        assert task.score(problem, problem.answer + "1") == 0


# --- Answers as numbers, against a table made by hand, and the gold answers of GSM8K against themselves ---


SHARED_NUMBERANSWERS = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))

# What is 18, and what is not, whatever else it may be.
RIGHT = [
    "18", "$18", r"\$18", "18.", "18.0", "$18.00", "018", "18/1", "36/2", r"\frac{36}{2}", r"\dfrac{36}{2}", "18!",
    r"\boxed{18}", r"\boxed{17} then \boxed{18}", "#### 18", "#### 18\nmore 3", "#### $18 dollars", "18%", "18 %",
    "1.8e1", "180e-1", "18 km", "18kg", "x = 18", "17 + 1 = 18", "**18**", "(18)", "$18$", r"\(18\)", r"\[18\]",
    r"\boxed{\$18}", r"\boxed{\text{18 dollars}}", r"\boxed{x = 18}", r"\boxed{18\text{ dollars}}", r"\boxed{18\%}",
    r"\boxed{18^\circ}", "Answer:18", "the 18th", "18, I think", "€18.00", "18€", "so 20 - 2 = $18.", "Total - 18",
    "-\n18", "17, 18", r"a 17 b #### \boxed{18}", r"17 #### 5, or \boxed{18}", r"\boxed{17}, no: #### 18", "0.018k",
    "$1,000 - $982 = $18", "0.018 thousand", "US$18", "18 (eighteen)", "18 - yes", "room x17: 18", "\n18\n", "COVID-18",
]  # fmt: skip

WRONG = [
    "", "none", "eighteen", "18e3", "18k", "1800%", "- 18", "-18", "−18", "– 18", "-$18", "$-18", "18:30", "6:18",
    "2 1/2", "18,000", "1,8", "18,00", "1 8", "18 million", "18 thousand", r"\boxed{17}", r"\boxed{18} or \boxed{17}",
    r"\boxed{17, 18}", "#### 17 or 18", "#### 17\n18", "20 - 2", "3*6", "9 + 9", "17-18", "x18", "18x", "18^2", "2^18",
    "18/3/2020", "3/18", "1.18.18", "v1.18", r"18\pi", r"18\sqrt{2}", r"\boxed{18", r"\boxed{}", "18 ####", "18i",
    "1e400", "9" * 5000, "18/0", "18 * x", "(2+3) - 18", "١٨", "18_0", "118", "18.5", r"\boxed{18:30}", "18(3)",
    r"\boxed{-18}", r"\boxed{18k}", "18e999999999", "18 + x", "[" * 3000 + "18 1", r"\frac{" * 500, "5²", "⑱",
]  # fmt: skip

VALUES = {
    "2 1/2": "5/2", r"2\frac{1}{2}": "5/2", r"\boxed{2\frac12}": "5/2", "2½ cups": "5/2", "-2 1/2": "-5/2", "½": "1/2",
    "2 and 1/2 cups": "5/2", "3/4": "3/4", "18e3": "18000", "18k": "18000", "$1.5 million": "1500000", "- $18": "-18",
    "1,234,567.5": "2469135/2", ".5": "1/2", "- 18": "-18", r"\frac{-1}{2}": "-1/2", "0.75": "3/4",
    r"10{,}000": "10000", "It is -3.": "-3", "2 and 1/2": "5/2", "1 3/4 hours": "7/4", r"\text{about }\mathbf{7}": "7",
    "18M": "18000000",
}  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_met(text: str) -> None:
    assert answer_of(text) == 18


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_what_is_not(text: str) -> None:
    assert answer_of(text) != 18


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_values(text: str, value: str) -> None:
    assert answer_of(text) == Fraction(value)


def test_no_text_raises() -> None:
    rng, letters = random.Random(0), "0123456789 .,-+/$%{}\\()=:#ek\n½²^٣ boxed frac"
    for _ in range(5000):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(25)))
        for found in (answer_of(text), number_of(text), answer_of(f"\\boxed{{{text}}}")):
            assert found is None or isinstance(found, Fraction)


@pytest.mark.shared_data
def test_every_gold_answer_of_gsm8k_meets_itself_and_no_other() -> None:
    folder = SHARED_NUMBERANSWERS / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    solutions = []
    for name in ("train", "test"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            solutions += [json.loads(line)["answer"] for line in file]
    assert len(solutions) == 8792
    for solution in solutions:
        gold = solution.rsplit("####", 1)[1].strip()
        value = Fraction(gold.replace(",", ""))
        for text in (gold, solution, f"The answer is {gold}.", rf"$x = \boxed{{{gold}}}$", f"It is {gold} dollars"):
            assert answer_of(text) == value, text
        for text in (f"{gold}1", f"{gold}k" if value else "1", f"{gold}:30", f"#### {gold} or {value + 1}"):
            assert answer_of(text) != value, text


def test_a_long_run_of_spaces_takes_no_time() -> None:
    """As of a policy that has collapsed; the search was quadratic in it, half a minute for this one."""
    start = time.process_time()
    assert answer_of("1" + " " * 20_000 + "x 2") == 2
    assert time.process_time() - start < 5
