"""Every score that texts can be sorted and binned by: its formula, its source, its unit, and what it takes to have it.

    written in every run:      entropy_mean, surprisal_mean, n_tokens, …
    `score --scores NAMES`:    entropy_slope, minkpp, zlib_ratio, …        more columns of the same forward pass
                               mtld, flesch, word_frequency, …             of the text alone, also with `--model none`
    `--by NAME` of any run:    surprisal_minus_entropy, learnability       computed from its columns, without a model
    `--by EXPRESSION`:         z(entropy_mean) - 0.5*z(minkpp)             see `scoreexpression`

Notation: H_t, V_t and S_t are the entropy, varentropy and surprisal at position t of T, p_t = exp(-S_t), V the
vocabulary's size, q the frequency of a token in `--token-counts`, smoothed by one: (count + 1) / (sum of counts + V).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from fluxentropy.config.results import html_table
from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import UsageError
from fluxentropy.models.tokenizers import Encoded
from fluxentropy.scoring import lexical
from fluxentropy.scoring.lexical import LexicalFacts, WordCounts

# --- scores of a text -------------------------------------------------------------------------------------------------
#
# What each stands for, and where it comes from, is in `registry`. Order statistics and slopes need all tokens of a text
# at once, so these functions take one text each; shapes: T tokens, V the vocabulary.


LOWEST_PERCENT = 20  # k of Min-K% and Min-K%++: the default of both papers
DIVERGENCE_CAP = 0.01  # a of DC-PDD: what one token adds at most


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFacts:
    """One text of T > 0 tokens, as a model sees it; nats and nats²."""

    text: str
    ids: np.ndarray  # (T,) int64
    entropy: np.ndarray  # (T,) float64, of the distribution after each token
    varentropy: np.ndarray  # (T,)
    surprisal: np.ndarray  # (T - 1,) of the token after each
    vocabulary: int  # V
    log_frequency: np.ndarray | None = None  # (V,) of each token, from token counts


def entropy_normalised(facts: TextFacts) -> float | None:
    """Mean of H_t / ln V: 0 where every next token is certain, 1 where all are alike."""
    return float(facts.entropy.mean() / np.log(facts.vocabulary)) if facts.vocabulary > 1 else None


def entropy_slope(facts: TextFacts) -> float | None:
    """Least-squares slope of H_t over t, nats per token; None for a single token."""
    if len(facts.entropy) < 2:
        return None
    t = np.arange(len(facts.entropy)) - (len(facts.entropy) - 1) / 2
    return float(t @ (facts.entropy - facts.entropy.mean()) / (t @ t))


def mink(facts: TextFacts) -> float | None:
    """Mean of the lowest 20 % of the tokens' log-probabilities, nats."""
    return lowest_mean(-facts.surprisal)


def minkpp(facts: TextFacts) -> float | None:
    """Mean of the lowest 20 % of the tokens' standardised log-probabilities.

    (ln p - mu) / sigma with the mean mu = -H_t and the standard deviation sigma = √V_t of ln p under the model. Where
    sigma is 0 all tokens that can follow are alike, so that ln p = mu: the value is 0.
    """
    distance = facts.entropy[:-1] - facts.surprisal
    sigma = np.sqrt(facts.varentropy[:-1])
    return lowest_mean(np.divide(distance, sigma, out=np.zeros_like(distance), where=sigma > 0))


def lowest_mean(values: np.ndarray, percent: int = LOWEST_PERCENT) -> float | None:
    """Mean of the lowest `percent` % of `values` (n,): ⌊n percent / 100⌋ of them, at least one; None where n is 0.

    >>> lowest_mean(np.array([-5.0, -1.0, -3.0, -2.0, -4.0, -6.0, -7.0, -8.0, -9.0, -10.0]))
    -9.5
    """
    if not len(values):
        return None
    k = max(len(values) * percent // 100, 1)
    return float(np.sort(values)[:k].mean())


def dcpdd(facts: TextFacts) -> float | None:
    """Mean of min(-p ln q, 0.01) over the predicted tokens, each where it first occurs: p the model's probability, q
    the token's frequency."""
    if facts.log_frequency is None or not len(facts.surprisal):
        return None
    tokens, first = np.unique(facts.ids[1:], return_index=True)
    divergence = -np.exp(-facts.surprisal[first]) * facts.log_frequency[tokens]
    return float(np.minimum(divergence, DIVERGENCE_CAP).mean())


def unigram_surprisal(facts: TextFacts) -> float | None:
    """Mean of -ln q over the predicted tokens, nats: how rare they are, whatever stands before them."""
    if facts.log_frequency is None or len(facts.ids) < 2:
        return None
    return float(-facts.log_frequency[facts.ids[1:]].mean())


# --- columns of scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one text, in nats, nats² and bits per byte. None where the text has no such value."""

    entropy_mean: float | None = None
    entropy_sum: float | None = None
    entropy_last: float | None = None
    varentropy_mean: float | None = None
    varentropy_sum: float | None = None
    varentropy_last: float | None = None
    sqrt_varentropy_mean: float | None = None
    surprisal_mean: float | None = None
    surprisal_sum: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    n_tokens: int = 0
    n_bytes: int = 0
    n_predicted_bytes: int = 0
    truncated: bool = False
    status: str = "ok"  # "empty": no tokens; "nan": the model gave NaN

    def _repr_html_(self) -> str:
        return html_table([dataclasses.asdict(self)])


SCORE_FIELDS = [
    pa.field(field.name, pa.int64() if field.name.startswith("n_") else pa.float64())
    for field in dataclasses.fields(Scores)
    if field.name not in ("truncated", "status")
] + [pa.field("truncated", pa.bool_()), pa.field("status", pa.string())]

SCORE_NAMES = tuple(field.name for field in SCORE_FIELDS)


def score_columns(scores: list[Scores], input_status: pa.ChunkedArray | None = None) -> dict[str, pa.Array]:
    """The scores as columns, by name. A status from reading the text wins over "ok" and "empty"."""
    columns = {
        field.name: pa.array([getattr(row, field.name) for row in scores], type=field.type) for field in SCORE_FIELDS
    }
    if input_status is not None:
        damaged = [status or None for status in input_status.to_pylist()]
        merged = [
            row.status if status is None or row.status == "nan" else status
            for row, status in zip(scores, damaged, strict=True)
        ]
        columns["status"] = pa.array(merged, type=pa.string())
    return columns


# --- the registry -----------------------------------------------------------------------------------------------------


Needs = Literal["every run", "--scores", "--scores, --token-counts", "columns", "two runs", "zoo"]
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score: `function` makes it of a text as a model sees it, `of_text` of the text alone, `expression` of the
    columns of runs; the others are made elsewhere."""

    name: str
    formula: str
    units: str
    source: str
    needs: Needs
    function: Callable[[TextFacts], float | None] | None = None
    of_text: Callable[[LexicalFacts], float | None] | None = None
    expression: str | None = None


SHANNON = "Shannon 1948"
VARENTROPY = "Kontoyiannis & Verdú 2014, arXiv:1212.2668"
COUNTED: Needs = "--scores, --token-counts"

REGISTRY: dict[str, Score] = {
    score.name: score
    for score in (
        Score(name="entropy_mean", formula="mean of H_t", units="nats", source=SHANNON, needs="every run"),
        Score(name="entropy_sum", formula="sum of H_t", units="nats", source=SHANNON, needs="every run"),
        Score(name="entropy_last", formula="H_T", units="nats", source=SHANNON, needs="every run"),
        Score(name="varentropy_mean", formula="mean of V_t", units="nats²", source=VARENTROPY, needs="every run"),
        Score(name="varentropy_sum", formula="sum of V_t", units="nats²", source=VARENTROPY, needs="every run"),
        Score(name="varentropy_last", formula="V_T", units="nats²", source=VARENTROPY, needs="every run"),
        Score(name="sqrt_varentropy_mean", formula="mean of √V_t", units="nats", source=VARENTROPY, needs="every run"),
        Score(name="surprisal_mean", formula="mean of S_t", units="nats", source=SHANNON, needs="every run"),
        Score(name="surprisal_sum", formula="sum of S_t", units="nats", source=SHANNON, needs="every run"),
        Score(name="perplexity", formula="exp(mean of S_t)", units="", source="Jelinek et al. 1977", needs="every run"),
        Score(
            name="bits_per_byte",
            formula="sum of S_t / ln 2 / bytes predicted",
            units="bits",
            source="Gao et al. 2020, arXiv:2101.00027",
            needs="every run",
        ),
        Score(name="n_tokens", formula="T", units="tokens", source="length, a baseline", needs="every run"),
        Score(name="n_bytes", formula="bytes in UTF-8", units="bytes", source="length, a baseline", needs="every run"),
        Score(
            name="entropy_normalised",
            formula="mean of H_t / ln V",
            units="share of the maximum",
            source="Pielou 1966 (evenness)",
            needs="--scores",
            function=entropy_normalised,
        ),
        Score(
            name="entropy_slope",
            formula="Σ (t - t̄)(H_t - H̄) / Σ (t - t̄)²",
            units="nats per token",
            source="least squares",
            needs="--scores",
            function=entropy_slope,
        ),
        Score(
            name="mink",
            formula="mean of the lowest 20 % of -S_t",
            units="nats",
            source="Shi et al. 2024, arXiv:2310.16789",
            needs="--scores",
            function=mink,
        ),
        Score(
            name="minkpp",
            formula="mean of the lowest 20 % of (H_t - S_t) / √V_t",
            units="standard deviations",
            source="Zhang et al. 2024, arXiv:2404.02936",
            needs="--scores",
            function=minkpp,
        ),
        Score(
            name="zlib_ratio",
            formula="bytes after zlib level 6 / bytes before, of the whole text",
            units="share",
            source="Carlini et al. 2021, arXiv:2012.07805",
            needs="--scores",
            of_text=lexical.zlib_ratio,
        ),
        Score(
            name="dcpdd",
            formula="mean of min(-p_t ln q_t, 0.01) over first occurrences of tokens",
            units="nats",
            source="Zhang et al. 2024, arXiv:2409.14781",
            needs=COUNTED,
            function=dcpdd,
        ),
        Score(
            name="unigram_surprisal",
            formula="mean of -ln q_t",
            units="nats",
            source="Platanios et al. 2019, arXiv:1903.09848",
            needs=COUNTED,
            function=unigram_surprisal,
        ),
        Score(
            name="gzip_ratio",
            formula="bytes after gzip level 9 / bytes before, of the whole text",
            units="share",
            source="Deutsch 1996, RFC 1952",
            needs="--scores",
            of_text=lexical.gzip_ratio,
        ),
        Score(
            name="mtld",
            formula="words per stretch in which different words are more than 72 % of all, mean of both directions",
            units="words",
            source="McCarthy & Jarvis 2010, doi:10.3758/BRM.42.2.381",
            needs="--scores",
            of_text=lexical.mtld,
        ),
        Score(
            name="flesch",
            formula="206.835 - 1.015 words / sentences - 84.6 syllables / words",
            units="points",
            source="Flesch 1948, doi:10.1037/h0057532",
            needs="--scores",
            of_text=lexical.flesch,
        ),
        Score(
            name="word_frequency",
            formula="mean of log10 of (count + 1) / (sum of counts + different words)",
            units="log10",
            source="van Heuven et al. 2014, doi:10.1080/17470218.2013.850521",
            needs="--scores",
            of_text=lexical.word_frequency,
        ),
        Score(
            name="mean_word_length",
            formula="characters of the words / words",
            units="characters",
            source="Coleman & Liau 1975, doi:10.1037/h0076540",
            needs="--scores",
            of_text=lexical.mean_word_length,
        ),
        Score(
            name="surprisal_minus_entropy",
            formula="mean of S_t - H_t over the T - 1 positions that have both",
            units="nats",
            source="Zhang et al. 2024, arXiv:2404.02936 (numerator)",
            needs="columns",
            expression="surprisal_mean - (entropy_sum - entropy_last) / (n_tokens - 1)",
        ),
        Score(
            name="learnability",
            formula="bits per byte of RUN - those of the run in `--scores`: a small model's and a large one's",
            units="bits per byte",
            source="Mindermann et al. 2022, arXiv:2206.07137; Evans et al. 2024, arXiv:2406.17711",
            needs="two runs",
            expression="bits_per_byte - bits_per_byte_joined",
        ),
        Score(
            name="mean_rank",
            formula="mean over models of the text's rank by one score",
            units="rank",
            source="consensus of a zoo (`zoo`, `agree`)",
            needs="zoo",
        ),
    )
}

MODEL_FREE = tuple(name for name, score in REGISTRY.items() if score.of_text)
EXTRA = tuple(name for name, score in REGISTRY.items() if score.function or score.of_text)
COUNTS_NEEDED = tuple(name for name in EXTRA if REGISTRY[name].needs == COUNTED)
ALL_NAMES = (*SCORE_NAMES, *EXTRA)
PER_BYTE = ("bits_per_byte", "n_bytes", "n_predicted_bytes", *MODEL_FREE)  # compare between tokenizers and windows
OF_ALL = tuple(
    name for name in EXTRA if REGISTRY[name].function or name == "zlib_ratio"
)  # what ALL means beside a model
NO_MODEL = "none"  # the model of scores that need none

PER_TOKEN = tuple(
    name
    for name in (*ALL_NAMES, *(name for name, score in REGISTRY.items() if score.needs == "columns"))
    if name not in (*PER_BYTE, "truncated", "status")
)


def chosen_extra(names: Sequence[str], *, counts: bool, model: bool = True) -> tuple[str, ...]:
    """The scores that `--scores names` asks for, each once, in the order of the registry; `all` is all that come of a
    forward pass, and zlib_ratio; without a `model` all that need none.

    `counts` says whether there are token counts.

    Errors: UsageError for a name that is no such score, and for one that needs token counts, or a model, where there
    are none.

    >>> chosen_extra(["minkpp", "mink"], counts=False)
    ('mink', 'minkpp')
    """
    for name in names:
        if not model and name != ALL and name not in MODEL_FREE:
            free = f"--model {NO_MODEL} has {', '.join(MODEL_FREE)}"
            if name in REGISTRY:
                raise UsageError(f"--scores {name} needs a model: give one with --model; {free}")
            raise UsageError(f"--scores {name}: no such score{did_you_mean(name, (*MODEL_FREE, ALL))}")
        if name == ALL or name in EXTRA:
            if name in COUNTS_NEEDED and not counts:
                raise UsageError(
                    f"--scores {name} needs --token-counts: the file that `fluxentropy count` writes of a corpus"
                )
        elif name in REGISTRY:
            how = "every run has it" if REGISTRY[name].expression is None else "give it to --by of bin or sort"
            raise UsageError(f"--scores {name}: this is not scored here, {how}")
        else:
            raise UsageError(f"--scores {name}: no such score{did_you_mean(name, (*EXTRA, ALL))}")
    meant = {*names}
    if ALL in names:
        meant |= {name for name in OF_ALL if counts or name not in COUNTS_NEEDED} if model else {*MODEL_FREE}
    return tuple(name for name in EXTRA if name in meant)


# --- scores that are asked for ----------------------------------------------------------------------------------------


class ExtraScores:
    """Fills the columns `names` text by text, as `Scorer.score_encoded(on_text=extra.add)` tells of them.

    A text that is never told of, because it has no tokens, has no scores; a score that is not finite is none.
    """

    def __init__(
        self,
        names: Sequence[str],
        texts: Sequence[str | None],
        encoded: Sequence[Encoded],
        *,
        vocabulary: int,
        log_frequency: np.ndarray | None = None,
        words: WordCounts | None = None,
    ) -> None:
        self.texts, self.encoded, self.words = texts, encoded, words
        self.vocabulary, self.log_frequency = vocabulary, log_frequency
        self.found: dict[str, list[float | None]] = {name: [None] * len(texts) for name in names}

    def add(self, index: int, stats: np.ndarray) -> None:
        """Score the text at `index`; stats (3, T) are its entropy, varentropy and surprisal."""
        entropy, varentropy, surprisal = stats.astype(np.float64)
        facts = TextFacts(
            text=self.texts[index] or "",
            ids=self.encoded[index].ids,
            entropy=entropy,
            varentropy=varentropy,
            surprisal=surprisal[:-1],
            vocabulary=self.vocabulary,
            log_frequency=self.log_frequency,
        )
        alone = LexicalFacts(text=facts.text, counts=self.words)
        for name, column in self.found.items():
            column[index] = _value(REGISTRY[name], facts, alone)

    def columns(self) -> dict[str, pa.Array]:
        """The scores as columns, by name."""
        return {name: pa.array(column, type=pa.float64()) for name, column in self.found.items()}


def _value(score: Score, facts: TextFacts | None, alone: LexicalFacts) -> float | None:
    """The score of one text; None where it has none, or one that is not finite."""
    if score.of_text is not None:
        value = score.of_text(alone)
    else:
        assert score.function is not None
        assert facts is not None
        value = score.function(facts)
    return value if value is not None and math.isfinite(value) else None


def lexical_columns(
    names: Sequence[str], texts: Sequence[str | None], words: WordCounts | None = None
) -> dict[str, pa.Array]:
    """The scores `names`, which need no model, of the texts, as columns by name."""
    alone = [LexicalFacts(text=text or "", counts=words) for text in texts]
    return {name: pa.array([_value(REGISTRY[name], None, one) for one in alone], type=pa.float64()) for name in names}
