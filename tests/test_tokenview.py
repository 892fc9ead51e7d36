from __future__ import annotations

import csv
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from pages import Page

from fluxentropy.errors import RunError
from fluxentropy.markup import BIDI_CONTROLS
from fluxentropy.tokenview import LEVELS, TokenRow, TokenView, render_html, write_csv

HOSTILE = [
    '</script><script>alert("x")</script>',
    "</style></title></bdi></div>",
    "<!-- <script>",
    "--><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "<svg/onload=alert(1)>",
    "&lt;b&gt;&amp;&#60;b>",
    "]]>",
    "\u2028\u2029\u0085",
    "\u202eright\u2066\u2067to\u200fleft",
    "https://example.com/x.js",
    "{{x}} ${x} `x`",
    "\ufffe\uffff\u200b",
    "日本語 مرحبا שלום 🦊",
]


def make_view(pieces: Sequence[str], *, name: str = "a", model: str = "m", text: str | None = None) -> TokenView:
    rng = random.Random(len(pieces))
    rows = [
        TokenRow(
            position=position,
            token_id=rng.randrange(50_000),
            token=piece,
            entropy=rng.uniform(0, 8),
            varentropy=rng.uniform(0, 20),
            surprisal=rng.expovariate(0.3) if position else None,
            alternatives=[(rng.choice([*pieces, "the", " of"]), p) for p in (0.5, 0.123456789, 1e-5)],
        )
        for position, piece in enumerate(pieces)
    ]
    return TokenView(text="".join(pieces) if text is None else text, id=name, model=model, tokens=rows)


def tokens(page: Page) -> list[tuple[str, str, str]]:
    """(classes, tip, text) of every token."""
    found = [(given["class"], given["data-tip"], text[0]) for _, given, text in page.elements if "data-tip" in given]
    assert len(found) == len([given for given in page.all("input") if re.fullmatch(r"t\d+", given["name"])])
    return found


def test_page_holds_every_number() -> None:
    views = [make_view(["Call", " me", "", " Ishmael", ".\n"]), make_view(["x"], name="b"), make_view([], name="c")]
    found = tokens(Page(render_html(views, title="t")))
    rows = [(row, after) for view in views for row, after in zip_longest(view.tokens, view.tokens[1:])]
    assert [text for _, _, text in found] == [row.token for row, _ in rows]
    for (_, tip, _), (row, after) in zip(found, rows, strict=True):
        first, expected, last = tip.split("\n")
        numbers = dict(re.findall(r"  (\w+(?: before)?) (-?[\d.]+)", first))
        exact = {name: getattr(row, name.replace(" ", "_")) for name in ("entropy", "varentropy", "surprisal")}
        assert {name: float(value) for name, value in numbers.items()} == pytest.approx(
            {name: value for name, value in exact.items() if value is not None}, abs=5.1e-4
        )
        shown = [f"“{text.replace(chr(10), '↵') or '▫'}” {share}{'*' * (after is not None and after.token == text)}"
                 for (text, _), share in zip(row.alternatives, ("50%", "12%", "0.001%"), strict=True)]  # fmt: skip
        assert expected == "next: " + ", ".join(shown)
        assert last.startswith(f"token {row.token_id} at {row.position}")
        if row.surprisal is not None:
            share = float(last.removesuffix("%").rpartition("probability ")[2]) / 100
            assert share == pytest.approx(math.exp(-row.surprisal), rel=0.06)


def test_the_numbers_before_a_token_are_named() -> None:
    row = TokenRow(position=3, token_id=1, token="a", entropy=1.0, varentropy=2.0, surprisal=3.0,
                   entropy_before=4.0, varentropy_before=5.0, alternatives=[])  # fmt: skip
    ((_, tip, _),) = tokens(Page(render_html([TokenView(text="a", id="a", model="m", tokens=[row])], title="t")))
    numbers = "entropy 1.000  varentropy 2.000  surprisal 3.000  entropy before 4.000  varentropy before 5.000"
    assert tip == f"“a”  {numbers}\ntoken 1 at 3, probability 5%"


def test_colours_of_each_measure() -> None:
    view = make_view([f" {n}" for n in range(100)])
    page = Page(render_html([view], title="t"))
    tops = [float(text[2:].split()[0]) for text in page.texts("span") if text.startswith("≥ ")]
    assert sorted(row.entropy for row in view.tokens)[97] <= tops[0] <= 10
    looks = [name.split() for name, _, _ in tokens(page)]
    for place, measure in enumerate(("entropy", "varentropy", "surprisal")):
        values = [getattr(row, measure) for row in view.tokens]
        steps = ["n" if x is None else str(min(LEVELS - 1, math.floor(x / tops[place] * LEVELS))) for x in values]
        assert [look[place] for look in looks] == [measure[0] + step for step in steps]
        assert len(set(steps)) > 12
    (style,) = page.texts("style")
    chosen = {"e": "", "v": ".tokens:has(.by-varentropy:checked) ", "s": ".tokens:has(.by-surprisal:checked) "}
    for name in {name for look in looks for name in look}:
        assert f"{chosen[name[0]]}.{name}{{background:" in style
    assert [given.get("value") for given in page.all("input") if "checked" in given] == ["entropy"]


def test_header_of_a_text() -> None:
    view = make_view(["a", "b", "c"], name="doc-1", model="org/model")
    page = Page(render_html([view], title="t"))
    surprisals = [row.surprisal for row in view.tokens if row.surprisal is not None]
    assert page.texts("h2") == ["doc-1"]
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)) == {
        "model": "org/model",
        "tokens": "3",
        "mean entropy": f"{sum(row.entropy for row in view.tokens) / 3:.3f} nats",
        "perplexity": f"{math.exp(sum(surprisals) / 2):.4g}",
    }
    alone = Page(render_html([make_view(["a"])], title="t"))  # one token: nothing to be surprised by
    assert alone.texts("dt") == ["model", "tokens", "mean entropy"]


@pytest.mark.parametrize(
    ("view", "note"),
    [
        (make_view([]), "The text has no tokens."),
        (make_view(["ab", "c"], text="abcdef"), "The text goes on for 3 more characters."),
        (make_view(["ab", "c"], text="ABCDEF"), None),  # the tokenizer changed the text: nothing is known
        (make_view(["ab", "c"]), None),
    ],
)
def test_notes(view: TokenView, note: str | None) -> None:
    assert Page(render_html([view], title="t")).texts("p", class_="note")[1:] == ([note] if note else [])


def test_no_texts() -> None:
    page = Page(render_html([], title="t"))
    assert tokens(page) == []
    assert page.texts("p", class_="note")[-1] == "There are no texts."


def test_hostile_texts_stay_texts() -> None:
    harmless = ["x" for _ in HOSTILE]
    views = [make_view(HOSTILE, name=text, model=text) for text in HOSTILE]
    plain = [make_view(harmless, name="x", model="x", text="".join(harmless)) for _ in HOSTILE]
    page, reference = Page(render_html(views, title=HOSTILE[0])), Page(render_html(plain, title="x"))

    def shape(page: Page) -> Counter[tuple[str, tuple[str, ...]]]:
        return Counter((tag, tuple(sorted(given))) for tag, given, _ in page.elements if tag != "bdi")

    assert shape(page) == shape(reference)  # no element and no attribute came from a text
    page.check_self_contained()
    assert page.texts("title") == page.texts("h1") == [HOSTILE[0]]
    shown = [text.replace("\u0085", "\ufffd") for text in HOSTILE]
    assert page.texts("h2") == shown
    assert [text for _, _, text in tokens(page)] == shown * len(HOSTILE)
    assert page.texts("style") == reference.texts("style")


def test_marks_of_direction_are_isolated() -> None:
    page = Page(render_html([make_view(["a", "\u202eb", "\u2067", "c\u200f", "שלום"])], title="t"))
    assert page.texts("bdi")[-3:] == ["\u202eb", "\u2067", "c\u200f"]
    assert not BIDI_CONTROLS.search("".join(tip for _, tip, _ in tokens(page)))


def test_controls_and_white_space_are_visible() -> None:
    pieces = ["a\n\n", "\tb", " ", "", "\x00\x1b\r", "\x7f\x9f", "\ud83e", "\u200b", "\n"]
    source = render_html([make_view(pieces)], title="t")
    source.encode("utf-8")
    page = Page(source)
    shown = ["a\n\n", "\tb", " ", "", "␀␛␍", "␡\ufffd", "\ufffd", "\u200b", "\n"]
    assert [text for _, _, text in tokens(page)] == shown
    assert [place for place, (name, _, _) in enumerate(tokens(page)) if name.endswith(" part")] == [3, 4, 5, 6, 7]
    marks = Counter(given.get("class") for given in page.all("i"))
    assert (marks["nl"], marks["tab"]) == (3, 1)


def test_numbers_that_are_none() -> None:
    row = TokenRow(
        position=0, token_id=1, token="a", entropy=math.nan, varentropy=math.inf, surprisal=None, alternatives=[]
    )
    ((look, tip, _),) = tokens(Page(render_html([TokenView(text="a", id="a", model="m", tokens=[row])], title="t")))
    assert look == "en vn sn"
    assert tip.startswith("“a”  entropy nan  varentropy inf  surprisal –")


def test_size_of_a_large_page() -> None:
    rng = random.Random(0)
    words = [" " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    views = []
    for number in range(20):
        rows = [
            TokenRow(
                position=t,
                token_id=rng.randrange(150_000),
                token=rng.choice(words),
                entropy=rng.uniform(0, 10),
                varentropy=rng.uniform(0, 30),
                surprisal=rng.uniform(0, 20),
                alternatives=[(rng.choice(words), rng.random()) for _ in range(5)],
            )
            for t in range(512)
        ]
        views.append(TokenView(text="".join(row.token for row in rows), id=str(number), model="m", tokens=rows))
    assert len(render_html(views, title="t").encode()) < 3_000_000


# --- the table --------------------------------------------------------------------------------------------------------


def test_csv_is_exact(tmp_path: Path) -> None:
    pieces = [*HOSTILE, "", " ", "\n", "\r\n", "\r", "a,b", '"', "\t", "\x00", "=1+2", "007", "NA"]
    views = [make_view(pieces, name="=id,\n1"), make_view([], name="none"), make_view(["x"], name="1")]
    write_csv(views, tmp_path / "x.csv")
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(view.id, row) for view in views for row in view.tokens]
    assert len(rows) == len(expected)
    for found, (name, row) in zip(rows, expected, strict=True):
        assert (found["text_id"], found["token"]) == (name, row.token)
        assert (int(found["position"]), int(found["token_id"])) == (row.position, row.token_id)
        assert (float(found["entropy"]), float(found["varentropy"])) == (row.entropy, row.varentropy)
        assert (float(found["surprisal"]) if found["surprisal"] else None) == row.surprisal
        assert json.loads(found["alternatives"]) == [list(pair) for pair in row.alternatives]


def test_csv_of_broken_text_and_broken_target(tmp_path: Path) -> None:
    write_csv([make_view(["\ud83e"])], tmp_path / "x.csv")
    assert "\\ud83e" in (tmp_path / "x.csv").read_text(encoding="utf-8")
    with pytest.raises(RunError, match=r"cannot write .*x\.csv/y\.csv"):
        write_csv([], tmp_path / "x.csv" / "y.csv")
