"""Expressions over columns, against Python's own arithmetic."""

from __future__ import annotations

import ast
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.errors import UsageError
from fluxentropy.scoreexpression import Expression, result_name

ROWS = {
    "a": np.array([1.5, -2.0, 0.0, np.nan, 7.25]),
    "b": np.array([3.0, 0.1, -1.0, 2.0, 1e-3]),
    "n_tokens": np.array([1.0, 2.0, 3.0, 4.0, np.nan]),
}
leaves = st.sampled_from(["a", "b", "n_tokens", "2", "0.5", ".25", "1e-3", "3.", "1E+2"])
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", " - ", "*", " /"]), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
        | st.tuples(st.sampled_from(["abs", "exp", "log", "sqrt"]), inner).map(lambda call: f"{call[0]}({call[1]})")
    ),
    max_leaves=12,
)


def by_python(text: str, row: dict[str, float]) -> float:
    """The value of one row, by Python's parser and its own floats."""
    try:
        functions = {"abs": abs, "exp": math.exp, "log": math.log, "sqrt": math.sqrt}
        value = float(eval(compile(ast.parse(text, mode="eval"), "", "eval"), {**functions, **row}))
    except (ZeroDivisionError, OverflowError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


@given(expressions)
def test_values_are_those_of_python(text: str) -> None:
    found = Expression.parse(text)
    got = found.evaluate(ROWS, {}).tolist()
    for place, value in enumerate(got):
        row = {name: float(column[place]) for name, column in ROWS.items()}
        if any(math.isnan(row[name]) for name in found.columns):
            assert math.isnan(value)
        else:
            want = by_python(text, row)
            # where Python stops half-way (1 / 0 in 1 / (1 / 0)), NumPy goes on with infinities to a finite end
            assert value == want or math.isnan(want), (text, row)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.data())
def test_a_rows_value_does_not_depend_on_its_place(values: list[float], data: st.DataObject) -> None:
    text = data.draw(expressions)
    columns = {name: np.array(values) * (place + 1) for place, name in enumerate(ROWS)}
    whole = Expression.parse(text).evaluate(columns, {})
    for place in range(len(values)):
        alone = Expression.parse(text).evaluate(
            {name: column[place : place + 1] for name, column in columns.items()}, {}
        )
        assert alone.tobytes() == whole[place : place + 1].tobytes()


def test_z_is_standardised() -> None:
    values = np.array([1.0, 2.0, 4.0, np.nan])
    found = Expression.parse("z(a) - 0.5*z( 2*a + `odd name` ) + z(a)")
    assert found.columns == ("a", "odd name")
    assert found.standardised == ("a", "2*a + `odd name`")
    inner = Expression.parse(found.standardised[1])
    assert inner.columns == ("a", "odd name")
    mean, deviation = statistics.fmean(values[:3]), statistics.pstdev(values[:3])
    got = found.evaluate(
        {"a": values, "odd name": -values}, {found.standardised[0]: (mean, deviation), inner.text: (mean, deviation)}
    )
    assert got[:3] == pytest.approx(1.5 * (values[:3] - mean) / deviation)
    assert math.isnan(got[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a number, a column or ( is missing at its end"),
        ("a +", "a number, a column or ( is missing at its end"),
        ("a b", "an operator + - * / or the end is missing before 'b'"),
        ("2a", "an operator + - * / or the end is missing before 'a'"),
        ("(a", ") is missing at its end"),
        ("a)", "an operator + - * / or the end is missing before ')'"),
        ("a ** b", "a number, a column or ( is missing before '* b'"),
        ("a; b", "an operator + - * / or the end is missing before '; b'"),
        ("logg(a)", "no such function: logg: did you mean log?"),
        ("__import__(a)", "no such function: __import__"),
        ("a.b", "an operator + - * / or the end is missing before '.b'"),
        ("z(z(a))", "z inside of z"),
        ("-" * 400 + "a", "more than 20 parentheses and signs within each other"),
        ("(" * 200, "more than 20 parentheses and signs within each other"),
        ("a+" * 300, "an expression of 600 letters: at most 500 are read"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Expression.parse(text)
    assert message in str(raised.value)


def test_the_longest_expression_is_evaluated() -> None:
    text = "+".join("a" * 250)
    assert Expression.parse(text).evaluate({"a": np.array([2.0])}, {}).tolist() == [500.0]


def test_names_of_results() -> None:
    assert result_name("surprisal_mean - surprisal_mean_joined") == "surprisal_mean_minus_surprisal_mean_joined"
    assert result_name("-2*(a+b)") == "minus_2_times_a_plus_b"
    assert result_name("1/a") == "score_1_over_a"
    assert len(result_name("+".join("abc" * 50))) <= 60


@pytest.mark.parametrize("name", ["class", "None", "lambda", "ﬁ", "naïve", "²", "`a-b`", "`for`", "`1/2`", "` a (b) `"])
def test_columns_whose_names_mean_something_else_to_python(name: str) -> None:
    column = name.strip("`")
    found = Expression.parse(f"2*{name} - abs({name}) + 007")
    assert found.columns == (column,)
    assert found.evaluate({column: np.array([-1.5, 3.0])}, {}).tolist() == [2.5, 10.0]
