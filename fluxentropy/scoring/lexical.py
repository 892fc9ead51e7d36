"""Scores of a text that need no model: lexical diversity, readability, word frequency, compression.

A word is a run of letters, marks and digits, with apostrophes inside; in lower case, composed (NFC), ’ as '. Hyphens
and full stops part words: "State-of-the-art, don’t!" has state, of, the, art, don't. Where half of a text's letters or
more are of scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), it has no words here.

A score is None where it would mean nothing: a diversity of few words, a readability of a text in another script.
"""

from __future__ import annotations

import csv
import functools
import gzip
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import UsageError
from fluxentropy.runs.files import atomic_path

# --- words ------------------------------------------------------------------------------------------------------------


RULE = "lexical 1"  # of words and scores here, by which a run is told from one by another rule
LETTER = re.compile(r"[^\W\d_]")
LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-\u02afḀ-ỿ]")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
MARKS = range(0x300, 0x1E900)  # where there are combining marks, which Python's \w leaves out


@functools.cache
def word_pattern() -> re.Pattern[str]:
    """A run of letters, marks and digits, with apostrophes inside."""
    marks = "".join(chr(point) for point in MARKS if unicodedata.category(chr(point)).startswith("M"))
    one = rf"(?:[^\W_]|[{marks}])"
    return re.compile(rf"{one}+(?:['’]{one}+)*")


def find_words(text: str) -> list[str]:
    """The words of `text` in any script, in its order.

    >>> find_words("State-of-the-art, don’t! 3.5")
    ['state', 'of', 'the', 'art', "don't", '3', '5']
    """
    found = word_pattern().findall(unicodedata.normalize("NFC", text).lower())
    return [word.replace("’", "'") for word in found]


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalFacts:
    """One text, and the frequencies of words where they are known."""

    text: str
    counts: WordCounts | None = None

    @cached_property
    def words(self) -> list[str]:
        """The words; none where the script has no spaces between them."""
        letters = len(LETTER.findall(self.text))
        spaced = not letters or 2 * len(UNSPACED.findall(self.text)) < letters
        return find_words(self.text) if spaced else []


# --- diversity and length ---------------------------------------------------------------------------------------------


FACTOR_PERCENT = 72  # the share of different words at which a factor ends, in percent: exact in whole numbers
MIN_WORDS = 50  # of a text that has an MTLD


def mtld(facts: LexicalFacts) -> float | None:
    """Mean length, in words, of the stretches in which different words are more than 72 % of all, read both ways.

    A stretch, or factor, ends with the word at which different / all <= 0.72; what is left at the text's end is the
    part (1 - different / all) / (1 - 0.72) of one. The value is the mean of words / factors forwards and backwards.
    None below MIN_WORDS words, and where no word occurs twice, as there is no part of a factor then.
    """
    words = facts.words
    if len(words) < MIN_WORDS:
        return None
    ways = [_factors(words), _factors(words[::-1])]
    return sum(len(words) / factors for factors in ways) / 2 if all(ways) else None


def _factors(words: Sequence[str]) -> float:
    """The factors of `words`, read forwards.

    >>> _factors(["a", "a", "b", "b", "c"])
    2.0
    """
    full, there, size = 0, set[str](), 0
    for word in words:
        there.add(word)
        size += 1
        if 100 * len(there) <= FACTOR_PERCENT * size:
            full, there, size = full + 1, set(), 0
    part = (1 - len(there) / size) / (1 - FACTOR_PERCENT / 100) if size else 0.0
    return full + part


def mean_word_length(facts: LexicalFacts) -> float | None:
    """Mean number of characters of a word, apostrophes included."""
    return math.fsum(map(len, facts.words)) / len(facts.words) if facts.words else None


def word_frequency(facts: LexicalFacts) -> float | None:
    """Mean of log10 of the words' frequencies, (count + 1) / (sum of counts + different words)."""
    return None if facts.counts is None or not facts.words else facts.counts.mean_log10(facts.words)


# --- readability ------------------------------------------------------------------------------------------------------


PIECE = re.compile(r"(?P<word>\S+)|\n\s*\n")  # what stands between spaces, or an empty line
OPENING, STOPS, CLOSING = "\"'“‘([", ".!?…", "\"'”’)]"
ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "e.g", "i.e", "cf", "vol", "fig", "approx")
)
VOWELS = re.compile(r"[aeiouy]+")
SILENT = re.compile(r"[^aeiouyl]e$|[aeiouy]le$|[^aeioudt]ed$|[^aeiousxzcg]es$|(?<=[^l])e(?:ly|ment|less|ful|ness)s?$")
APART = re.compile(r"(?<![tscg])i[ao]|eos?$|(?<=[scdl])ie(?=n[ct]|t)|[aeiouy]ing$|ual|uat|ism$|thm$")
NOT = re.compile(r"[^aeiour]n't$")


def flesch(facts: LexicalFacts) -> float | None:
    """Reading ease of English: 206.835 - 1.015 words / sentences - 84.6 syllables / words.

    Words are those with Latin letters, syllables those of `syllables`, sentences those of `sentences`. None where
    there is no such word, or where less than half of the letters are Latin. Texts in other languages that are written
    in Latin letters have a value, which says little.
    """
    letters = len(LETTER.findall(facts.text))
    if 2 * len(LATIN.findall(facts.text)) < letters:
        return None
    words = [word for word in facts.words if LATIN.search(word)]
    if not words:
        return None
    total = sum(map(syllables, words))
    return 206.835 - 1.015 * len(words) / sentences(facts.text) - 84.6 * total / len(words)


def sentences(text: str) -> int:
    """The sentences of a text: stretches with a word up to . ! ? … and a space, an empty line, or the end; at least 1.

    No sentence ends with an abbreviation such as "Dr." or an initial.

    >>> sentences("Dr. J. Smith paid 3.50 dollars. Go! Run!"), sentences("one, two")
    (3, 1)
    """
    found, start = 0, 0
    for match in chain(PIECE.finditer(text), [None]):
        if match and match["word"] and not _ends_a_sentence(match["word"]):
            continue
        end = match.end() if match else len(text)
        found += word_pattern().search(text, start, end) is not None
        start = end
    return max(found, 1)


def _ends_a_sentence(word: str) -> bool:
    """Whether a sentence ends with what stands between spaces. In linear time: a word may be a file of base64."""
    ended = word.rstrip(CLOSING)
    before = ended.rstrip(STOPS)
    bare = before.lstrip(OPENING).lower()
    short = bare in ABBREVIATIONS or (len(bare) == 1 and bare.isalpha() and bare != "i")
    return before != ended and not (short and ended[len(before)] == ".")


@functools.lru_cache(maxsize=2**16)
def syllables(word: str) -> int:
    """The syllables of an English word: its groups of vowels, without a silent e, and vowels that are spoken apart.

    Of the words of running English text, 97.7 % have a number of syllables that the CMU Pronouncing Dictionary gives.

    >>> [syllables(word) for word in ("the", "people", "readable", "walked", "science", "don't", "isn't")]
    [1, 2, 3, 1, 2, 1, 2]
    """
    plain = "".join(one for one in unicodedata.normalize("NFD", word.lower()) if "a" <= one <= "z")
    count = len(VOWELS.findall(plain))
    count -= count > 1 and SILENT.search(plain) is not None
    count += len(APART.findall(plain)) + (NOT.search(word) is not None)
    return max(count, 1)


# --- compression ------------------------------------------------------------------------------------------------------


ZLIB_LEVEL, GZIP_LEVEL = 6, 9  # the programs' defaults in Python


def zlib_ratio(facts: LexicalFacts) -> float | None:
    """Bytes of the whole text, in UTF-8, after zlib at level 6, as a share of those before."""
    data = facts.text.encode()
    return len(zlib.compress(data, ZLIB_LEVEL)) / len(data) if data else None


def gzip_ratio(facts: LexicalFacts) -> float | None:
    """Bytes of the whole text, in UTF-8, after gzip at level 9 (without a name), as a share of those before."""
    data = facts.text.encode()
    return len(gzip.compress(data, GZIP_LEVEL, mtime=0)) / len(data) if data else None


# --- frequencies of words ---------------------------------------------------------------------------------------------


COUNTS_FILE = "word_counts.parquet"  # of a run whose own words are counted


@dataclass(frozen=True, kw_only=True, eq=False)
class WordCounts:
    """How often each word occurs.

    The frequency of a word is (count + 1) / (sum of all counts + different words), so that a word that does not occur
    has one, too (Laplace). Its Zipf value is log10 of it + 9 (van Heuven et al. 2014).
    """

    counts: Mapping[str, int]

    @cached_property
    def _size(self) -> int:
        return sum(self.counts.values()) + len(self.counts)

    def mean_log10(self, words: Sequence[str]) -> float:
        """Mean of log10 of the frequencies of `words`, of which there is at least one.

        >>> WordCounts(counts={"the": 9, "cat": 0}).mean_log10(["the", "the", "dog"])
        -0.3747260184915583
        """
        return math.fsum(math.log10(self.counts.get(word, 0) + 1) for word in words) / len(words) - math.log10(
            self._size
        )

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordCounts:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(LexicalFacts(text=text).words)
        return cls(counts=counts)

    def write(self, path: Path) -> None:
        """Write a table of `word` and `count`, by word."""
        words = sorted(self.counts)
        table = pa.table({"word": words, "count": pa.array([self.counts[word] for word in words], pa.int64())})
        with atomic_path(path) as aside:
            pq.write_table(table, aside, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> WordCounts:
        """The table in `path`, Parquet or CSV or TSV, with columns `word` and `count`; words that `find_words` makes
        alike are added up.

        Errors: UsageError names the file and the row of what is no word, no count, or a word for the second time.
        """
        counts: Counter[str] = Counter()
        seen: set[str] = set()
        for place, word, count in _rows(path):
            said = f"--word-table {path}, {place}"
            if not isinstance(word, str) or not word.strip():
                raise UsageError(f"{said}: the word is {word!r}: leave the row out, or write the word")
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise UsageError(f"{said}: the count of {word!r} is {count!r}: counts are whole numbers from 0 on")
            if word in seen:
                raise UsageError(f"{said}: {word!r} is there for the second time: add the counts up")
            seen.add(word)
            for one in find_words(word):
                counts[one] += count
        return cls(counts=counts)


def _rows(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """The place, word and count of each row of a table of words."""
    if not path.is_file():
        raise UsageError(f"--word-table {path}: no such file; it has columns word and count, as Parquet or CSV")
    if path.suffix.lower() == ".parquet":
        try:
            table = pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"--word-table {path}: it cannot be read ({str(error).splitlines()[0]})") from error
        _check_columns(path, table.column_names)
        for row, (word, count) in enumerate(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True)):
            yield f"row {row}", word, count
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # tables of spreadsheets begin with a mark
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            _check_columns(path, reader.fieldnames or ())
            for cells in reader:
                text = cells["count"]
                whole = text is not None and re.fullmatch(r"\s*-?[0-9]+\s*", text)
                yield f"line {reader.line_num}", cells["word"], int(text) if whole else text
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--word-table {path}: it cannot be read ({error})") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for name in ("word", "count"):
        if name not in names:
            there = ", ".join(names) or "none"
            raise UsageError(f"--word-table {path}: no column {name}; the columns are {there}: rename one of them")
