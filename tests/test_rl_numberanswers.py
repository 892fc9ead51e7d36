"""Answers as numbers, against a table made by hand, and the gold answers of GSM8K against themselves."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from fluxentropy.rl.numberanswers import answer_of, number_of

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))

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
    folder = SHARED / "data" / "gsm8k"
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
