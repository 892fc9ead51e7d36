"""The token view: every token once, its pieces join to the text, its numbers are the scorer's."""

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
import torch
from fakes import SENTENCES, save_model
from pages import Page

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.errors import RunError, UsageError
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.report.html import BIDI_CONTROLS
from fluxentropy.report.tokens import (
    LEVELS,
    TokenRow,
    TokensResult,
    TokenView,
    read_views,
    render_html,
    token_views,
    write_csv,
)
from fluxentropy.runs.find import COLUMNS
from fluxentropy.scoring.scorer import Scorer, open_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return open_scorer(find_model(str(folder)), max_tokens=200)[0]


@pytest.mark.parametrize("text", [*SENTENCES, "🙂🙂 中文", "tabs\tand\n\nlines", "<b>bold</b> &amp; é"])
def test_pieces_join_to_the_text_and_numbers_are_the_scorers(scorer: Scorer, text: str) -> None:
    (view,) = token_views(scorer, [("a", text)], top_k=3)
    assert "".join(row.token for row in view.tokens) == text
    assert [row.token_id for row in view.tokens] == scorer.decoder.tokenizer(text).input_ids
    (scores,) = scorer.score([text])
    assert sum(row.entropy for row in view.tokens) == pytest.approx(scores.entropy_sum, rel=1e-5)
    assert view.tokens[0].surprisal is None
    assert sum(row.surprisal for row in view.tokens[1:]) == pytest.approx(scores.surprisal_sum, rel=1e-5)
    for row in view.tokens:
        probabilities = [prob for _, prob in row.alternatives]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-6


def by_hand(folder: Path, ids: list[int]) -> list[tuple[float | None, ...]]:
    """surprisal, entropy and varentropy before, entropy and varentropy after each token, from float64 logits."""
    model = load_decoder(find_model(str(folder)), device="cpu").model.double()
    with torch.inference_mode():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    rows: list[tuple[float | None, ...]] = []
    before: tuple[float | None, float | None] = (None, None)
    for t, token in enumerate(ids):
        p = [math.exp(x) for x in logp[t].tolist()]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        after = (entropy, sum(x * (math.log(x) + entropy) ** 2 for x in p if x > 0))
        rows.append((None if t == 0 else -float(logp[t - 1, token]), *before, *after))
        before = after
    return rows


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("window", ["first", "sliding"])
def test_one_alignment_in_python_the_table_and_the_report(window: str, bos: bool, tmp_path: Path) -> None:
    """Against the definition, row by row; a BOS is a row of its own, so that the next token has a surprisal."""
    folder = save_model(tmp_path / "model", bos=bos)
    scorer = open_scorer(find_model(str(folder)), max_tokens=200, window=window)[0]
    text = SENTENCES[4]
    table = scorer.tokens(text, top_k=2)
    expected = by_hand(folder, scorer.decoder.tokenizer(text).input_ids)
    names = ("surprisal", "entropy_before", "varentropy_before", "entropy", "varentropy")
    rows = table.to_pylist()
    assert table.num_rows == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for name, value in zip(names, wanted, strict=True):
            assert row[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)), name
    (scores,) = scorer.score(text)
    for name in ("entropy", "varentropy", "surprisal"):
        known = [row[name] for row in rows if row[name] is not None]
        assert sum(known) / len(known) == pytest.approx(getattr(scores, f"{name}_mean"), rel=1e-4)
    write_csv(token_views(scorer, [("a", text)], top_k=2), tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS
    for row, other in zip(rows, written, strict=True):
        assert [other[name] for name in names] == ["" if row[name] is None else repr(row[name]) for name in names]
    (view,) = read_views(tmp_path / "t.csv")
    assert [[getattr(token, name) for name in names] for token in view.tokens] == [
        [row[name] for name in names] for row in rows
    ]
    columns = [name for name in COLUMNS if not name.endswith("_before")]
    with open(tmp_path / "old.csv", "w", newline="", encoding="utf-8") as file:  # of an earlier version
        old = csv.DictWriter(file, columns, extrasaction="ignore", quoting=csv.QUOTE_ALL, lineterminator="\n")
        old.writeheader()
        old.writerows(written)
    assert read_views(tmp_path / "old.csv")[0].tokens == view.tokens


def test_tokens_of_no_text(scorer: Scorer) -> None:
    assert scorer.tokens("").num_rows == 0
    for wrong in (None, ["a"], {"text": "a"}):
        with pytest.raises(UsageError, match="is no text: give a string"):
            scorer.tokens(wrong)  # type: ignore[arg-type]


def test_a_text_without_tokens_has_no_rows(scorer: Scorer) -> None:
    (view,) = token_views(scorer, [("a", "")])
    assert view.tokens == []


def test_the_command_writes_a_page_and_a_table(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("<script>alert(1)</script>", "b", "c")))
    out = tmp_path / "view.html"
    argv = ["tokens", str(source), "--model", str(folder), "--out", str(out), "--max-tokens", "100", "--limit", "2"]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"texts": 2, "html": str(out), "csv": str(out.with_suffix(".csv"))}
    assert "<script>alert" not in out.read_text()
    result = fluxentropy.tokens(source, model=folder, out=out, max_tokens=100, limit=2)
    assert isinstance(result, TokensResult)
    assert (result.texts, result.html, result.csv) == (2, out, out.with_suffix(".csv"))
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["text_id"] for row in rows} == {"texts.jsonl:0", "texts.jsonl:1"}
    assert "".join(row["token"] for row in rows if row["text_id"].endswith(":0")) == "<script>alert(1)</script>"


def test_an_empty_source_is_named(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert (
        main(["tokens", str(tmp_path / "none.jsonl"), "--model", str(folder), "--out", str(tmp_path / "v.html")]) == 1
    )
    assert "none.jsonl" in capsys.readouterr().err


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
