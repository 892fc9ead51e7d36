"""Every score that texts can be sorted and binned by: its formula, its source, its unit, and what it takes to have it.

    written in every run:      entropy_mean, surprisal_mean, n_tokens, …
    `score --scores NAMES`:    entropy_slope, minkpp, zlib_ratio, …        more columns of the same forward pass
    `--by NAME` of any run:    surprisal_minus_entropy, learnability       computed from its columns, without a model
    `--by EXPRESSION`:         z(entropy_mean) - 0.5*z(minkpp)             see `scoreexpression`

Notation: H_t, V_t and S_t are the entropy, varentropy and surprisal at position t of T, p_t = exp(-S_t), V the
vocabulary's size, q the frequency of a token in `--token-counts`, smoothed by one: (count + 1) / (sum of counts + V).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fluxentropy import textscores
from fluxentropy.errors import UsageError
from fluxentropy.scores import SCORE_NAMES
from fluxentropy.textscores import TextFacts
from fluxentropy.yamlfile import did_you_mean

Needs = Literal["every run", "--scores", "--scores, --token-counts", "columns", "two runs", "zoo"]
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score: `function` makes it of a text, `expression` of the columns of runs; the others are made elsewhere."""

    name: str
    formula: str
    units: str
    source: str
    needs: Needs
    function: Callable[[TextFacts], float | None] | None = None
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
            function=textscores.entropy_normalised,
        ),
        Score(
            name="entropy_slope",
            formula="Σ (t - t̄)(H_t - H̄) / Σ (t - t̄)²",
            units="nats per token",
            source="least squares",
            needs="--scores",
            function=textscores.entropy_slope,
        ),
        Score(
            name="mink",
            formula="mean of the lowest 20 % of -S_t",
            units="nats",
            source="Shi et al. 2024, arXiv:2310.16789",
            needs="--scores",
            function=textscores.mink,
        ),
        Score(
            name="minkpp",
            formula="mean of the lowest 20 % of (H_t - S_t) / √V_t",
            units="standard deviations",
            source="Zhang et al. 2024, arXiv:2404.02936",
            needs="--scores",
            function=textscores.minkpp,
        ),
        Score(
            name="zlib_ratio",
            formula="bytes after zlib level 6 / bytes before, of the whole text",
            units="share",
            source="Carlini et al. 2021, arXiv:2012.07805",
            needs="--scores",
            function=textscores.zlib_ratio,
        ),
        Score(
            name="dcpdd",
            formula="mean of min(-p_t ln q_t, 0.01) over first occurrences of tokens",
            units="nats",
            source="Zhang et al. 2024, arXiv:2409.14781",
            needs=COUNTED,
            function=textscores.dcpdd,
        ),
        Score(
            name="unigram_surprisal",
            formula="mean of -ln q_t",
            units="nats",
            source="Platanios et al. 2019, arXiv:1903.09848",
            needs=COUNTED,
            function=textscores.unigram_surprisal,
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
EXTRA = tuple(name for name, score in REGISTRY.items() if score.function)
COUNTS_NEEDED = tuple(name for name in EXTRA if REGISTRY[name].needs == COUNTED)
ALL_NAMES = (*SCORE_NAMES, *EXTRA)
PER_BYTE = ("bits_per_byte", "n_bytes", "n_predicted_bytes", "zlib_ratio")  # compare between tokenizers and windows
PER_TOKEN = tuple(
    name
    for name in (*ALL_NAMES, *(name for name, score in REGISTRY.items() if score.needs == "columns"))
    if name not in (*PER_BYTE, "truncated", "status")
)


def chosen_extra(names: Sequence[str], *, counts: bool) -> tuple[str, ...]:
    """The scores that `--scores names` asks for, each once, in the order of the registry; `all` is all that can be had.

    `counts` says whether there are token counts.

    Errors: UsageError for a name that is no such score, and for one that needs token counts where there are none.

    >>> chosen_extra(["minkpp", "mink"], counts=False)
    ('mink', 'minkpp')
    """
    for name in names:
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
    every = ALL in names
    return tuple(name for name in EXTRA if name in names or (every and (counts or name not in COUNTS_NEEDED)))
