from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.errors import RunError
from fluxentropy.heatmap import LEVELS, TokenRow, TokenView, render_html, write_csv

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
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """Elements as (path, attributes, text); fails where tags are not balanced."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), [""])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text[0] += data

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data}")

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            text[0]
            for name, found, text in self.elements
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    @property
    def data(self) -> Any:
        return json.loads(self.texts("script", id="data")[0])

    @property
    def tokens(self) -> list[tuple[str, str, str]]:
        """(tag, class, text) of every token."""
        return [
            (tag, found["class"] or "", text[0])
            for tag, found, text in self.elements
            if tag in ("span", "bdi") and re.match(r"q", found.get("class") or "")
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


def test_page_holds_every_number() -> None:
    views = [make_view(["Call", " me", "", " Ishmael", ".\n"]), make_view(["x"], name="b"), make_view([], name="c")]
    page = Page(render_html(views, title="t"))
    data = page.data
    assert len(data["texts"]) == 3
    for view, found in zip(views, data["texts"], strict=True):
        assert found["id"] == [row.token_id for row in view.tokens]
        assert found["position"] == [row.position for row in view.tokens]
        assert [data["words"][word] for word in found["token"]] == [row.token for row in view.tokens]
        for metric in ("entropy", "varentropy", "surprisal"):
            exact = [getattr(row, metric) for row in view.tokens]
            assert [value is None for value in found[metric]] == [value is None for value in exact]
            assert [v for v in found[metric] if v is not None] == pytest.approx(
                [v for v in exact if v is not None], abs=5.1e-5
            )
        for row, flat in zip(view.tokens, found["next"], strict=True):
            assert [data["words"][word] for word in flat[::2]] == [token for token, _ in row.alternatives]
            assert flat[1::2] == pytest.approx([p for _, p in row.alternatives], abs=5.1e-5)
    assert [text for _, _, text in page.tokens] == [row.token for view in views for row in view.tokens]


def test_first_colours_are_those_of_entropy() -> None:
    """Readable without the script; the script's own formula is the same."""
    view = make_view([f" {n}" for n in range(100)])
    page = Page(render_html([view], title="t"))
    top = page.data["tops"]["entropy"]
    assert sorted(row.entropy for row in view.tokens)[97] <= top <= 10
    expected = [f"q{min(LEVELS - 1, math.floor(row.entropy / top * LEVELS))}" for row in view.tokens]
    assert [name for _, name, _ in page.tokens] == expected
    assert len(set(expected)) > 15


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
    assert Page(render_html([view], title="t")).texts("p", class_="note") == ([note] if note else [])


def test_no_texts() -> None:
    page = Page(render_html([], title="t"))
    assert page.tokens == []
    assert page.texts("p", class_="note") == ["There are no texts."]


def test_hostile_texts_stay_texts() -> None:
    harmless = ["x" for _ in HOSTILE]
    views = [make_view(HOSTILE, name=text, model=text) for text in HOSTILE]
    plain = [make_view(harmless, name="x", model="x", text="".join(harmless)) for _ in HOSTILE]
    source = render_html(views, title=HOSTILE[0])
    page, reference = Page(source), Page(render_html(plain, title="x"))

    def shape(page: Page) -> Counter[tuple[str, tuple[str, ...]]]:
        tags = [("span" if tag == "bdi" else tag, attributes) for tag, attributes, _ in page.elements]
        return Counter((tag, tuple(sorted(attributes))) for tag, attributes in tags)

    assert shape(page) == shape(reference)  # no element and no attribute came from a text
    assert page.texts("title") == page.texts("h1") == [HOSTILE[0]]
    shown = [text.replace("\u0085", "\ufffd") for text in HOSTILE]
    assert page.texts("h2") == shown
    assert [text for _, _, text in page.tokens] == shown * len(HOSTILE)
    assert [page.data["words"][word] for word in page.data["texts"][0]["token"]] == HOSTILE
    assert re.fullmatch(r"[ -~]+", page.texts("script", id="data")[0])
    assert not re.search("[<>&]", page.texts("script", id="data")[0])
    assert page.texts("script")[1] == reference.texts("script")[1]
    assert page.texts("style") == reference.texts("style")


def test_marks_of_direction_are_isolated() -> None:
    tokens = ["a", "\u202eb", "\u2067", "c\u200f", "שלום"]
    page = Page(render_html([make_view(tokens)], title="t"))
    assert [tag for tag, _, _ in page.tokens] == ["span", "bdi", "bdi", "bdi", "span"]


def test_controls_and_white_space_are_visible() -> None:
    pieces = ["a\n\n", "\tb", " ", "", "\x00\x1b\r", "\x7f\x9f", "\ud83e", "\u200b", "\n"]
    source = render_html([make_view(pieces)], title="t")
    source.encode("utf-8")
    page = Page(source)
    assert [text for _, _, text in page.tokens] == ["a\n\n", "\tb", " ", "", "␀␛␍", "␡\ufffd", "\ufffd", "\u200b", "\n"]
    assert [position for position, (_, name, _) in enumerate(page.tokens) if name.endswith(" part")] == [3, 4, 5, 6, 7]
    marks = Counter(found.get("class") for tag, found, _ in page.elements if tag == "i")
    assert (marks["nl"], marks["tab"]) == (3, 1)
    assert [page.data["words"][word] for word in page.data["texts"][0]["token"]] == pieces


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(render_html([make_view(HOSTILE)], title="t"))
    used = {name for _, attributes, _ in page.elements for name in attributes}
    assert not used & {"src", "href", "action", "style", "srcset", "data", "onclick"}
    policy = next(found["content"] for _, found, _ in page.elements if found.get("http-equiv"))
    (style,), (_, script) = page.texts("style"), page.texts("script")
    assert "url(" not in style
    assert "@import" not in style
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_numbers_that_are_none() -> None:
    row = TokenRow(
        position=0, token_id=1, token="a", entropy=math.nan, varentropy=math.inf, surprisal=None, alternatives=[]
    )
    page = Page(render_html([TokenView(text="a", id="a", model="m", tokens=[row])], title="t"))
    assert page.tokens == [("span", "qn", "a")]
    found = page.data["texts"][0]
    assert (found["entropy"], found["varentropy"], found["surprisal"]) == ([None], [None], [None])


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
