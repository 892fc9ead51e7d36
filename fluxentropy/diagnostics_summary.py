"""`summary.md`: what a diagnosis found, for a person who reads nothing else; and its first lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import quote

from fluxentropy.diagnostics import Diagnostics, Hypothesis, Model, SampleSize
from fluxentropy.effects import FEW, SIGNIFICANT
from fluxentropy.metrictable import counted

# Log odds per standard deviation are about Cohen's d, the distance of the class means in standard deviations.
SIZES = ((0.1, "negligible"), (0.2, "very small"), (0.5, "small"), (0.8, "medium"), (math.inf, "large"))

NOTES = """\
- An odds ratio per SD says by what one standard deviation more of the metric multiplies the odds of a true outcome; 1
  is no effect. Sizes in words follow Cohen, as the logarithm of this odds ratio is about his d: negligible below 0.1,
  very small below 0.2, small below 0.5, medium below 0.8.
- AUC is the chance that a random true row scores above a random false one; 0.5 is guessing. It is measured on the rows
  that the model was fitted to. A single metric has nothing to gain by that; of a pair the expected gain is taken off,
  value and interval (`roc_auc_optimism`). The cross-validated AUC may fall below 0.5.
- Holm's correction covers every test in the last table. Wald's p of a coefficient repeats the question of a
  likelihood-ratio test, and the point-biserial correlation that of the ANOVA, so they do not count twice.
- Power is that of a true effect as large as the estimate. It says nothing beyond p about this table; it is there to
  plan the next one. An estimate that was picked because it is significant is too large on average.
- All of this is association. A metric may predict the outcome because both follow a third, such as length or topic.
"""


def headline(result: Diagnostics) -> str:
    """The answer in some sentences."""
    y, survivors = _code(result.table.target_name), _survivors(result)
    fitted = {name: model for name in result.metrics if (model := result.models[name]).fit.ok}
    if separated := [name for name in result.metrics if result.models[name].fit.status == "separated"]:
        return (
            f"**Suspiciously well.** {_names(separated)} separate{'' if len(separated) > 1 else 's'} the outcomes of "
            f"{y} completely: check that it is not computed from the outcome, and that there are enough rows."
        )
    if not fitted:
        reason = result.models[next(iter(result.metrics))].fit.message
        return f"**It cannot be said.** No metric could be fitted: {reason}."
    best = min(survivors or fitted, key=lambda name: fitted[name].fit.llr_pvalue)
    p, adjusted = fitted[best].fit.llr_pvalue, _holm(result, "model", best)
    tests = f"all {len(result.tests)} tests"
    curved = [test.subject for test in result.tests if test.kind == "chi2" and test.p_holm < SIGNIFICANT]
    if survivors:
        count = _count(len(survivors), len(fitted))
        answer = (
            f"**Yes, with a {_size(fitted[best])} effect.** {count} associated with {y} after correction for {tests}."
        )
    elif curved:
        answer = (
            f"**Not as a trend.** No metric has a steady effect on {y} that survives correction for {tests}, but the "
            f"quartiles of {_names(curved)} differ: see the figure of fitted curves."
        )
    elif p < SIGNIFICANT:
        answer = (
            f"**Not after correction.** The smallest p is {_p(p)} ({_code(best)}); corrected for {tests} it is "
            f"{_p(adjusted)}."
        )
    else:
        seen = fitted[best].sample_size[best].detectable_odds_ratio
        answer = (
            f"**No evidence.** The smallest p is {_p(p)} ({_code(best)}). With {result.n:,} rows, an odds ratio of "
            f"{seen:.3g} (or 1 / {seen:.3g}) per standard deviation would have been seen with 80% power; a smaller "
            "effect may be there."
        )
    return f"{answer} {_strongest(best, fitted[best], len(survivors))}"


def to_markdown(result: Diagnostics, figures: Sequence[str] = ()) -> str:
    """All of `summary.md`, with the pictures `figures`: names of files beside it."""
    table = result.table
    positive = int(table.target.sum())
    rows = [f"- {result.n:,} rows, of which {positive:,} ({result.rate:.1%}) are true."]
    if result.balanced:
        rows[0] += f" The larger class was cut at random to the size of the smaller (seed {result.seed})."
    if table.excluded:
        lost = "; ".join(f"{_code(name)}: {counted(faults)}" for name, faults in table.excluded.items())
        rows.append(f"- Rows left out because a value cannot be used ({lost}); {table.n_rows:,} rows were read.")
    rows += [f"- {_code(name)} was not used: {why}." for name, why in table.skipped.items()]
    rows += [f"- {_code(name)} is the square root of {_code(base)}." for name, base in table.derived.items()]
    singles = {key: model for key, model in result.models.items() if len(model.fit.names) == 1}
    pairs = {key: model for key, model in result.models.items() if len(model.fit.names) > 1}
    parts = [
        f"# What predicts {_code(table.target_name)}?",
        headline(result),
        "\n".join(rows),
        "## Each metric alone",
        _table_of_models(result, singles),
        "\n".join(f"- {_one_metric(result, name)}" for name in singles),
    ]
    if pairs:
        words = "\n".join(f"- {_one_pair(result, key)}" for key in pairs)
        parts += ["## Two metrics together", _table_of_models(result, pairs), words]
    parts += ["## Every test", _table_of_tests(result), "## How to read this", NOTES]
    if figures:
        parts += ["## Figures", "\n\n".join(f"![{name.rpartition('.')[0]}]({quote(name)})" for name in figures)]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


# --- sentences --------------------------------------------------------------------------------------------------------


def _survivors(result: Diagnostics) -> list[str]:
    return [
        test.subject
        for test in result.tests
        if test.kind == "model" and test.subject in result.metrics and test.p_holm < SIGNIFICANT
    ]


def _count(survivors: int, metrics: int) -> str:
    if metrics == 1:
        return "The one metric is"
    return f"{survivors} of {metrics} metrics {'is' if survivors == 1 else 'are'}"


def _strongest(name: str, model: Model, among: int) -> str:
    ratio, low, high = model.fit.odds_ratios[0]
    clearest = f"The clearest is {_code(name)}: one" if among > 1 else f"For {_code(name)}, one"
    return (
        f"{clearest} standard deviation more multiplies the odds by {ratio:.3f} (95% interval {low:.3f} to {high:.3f})."
        f" {_auc(model)}."
    )


def _auc(model: Model) -> str:
    text = f"The AUC is {_auc_on_new_rows(model)}"
    return text + (f", cross-validated {model.cross.auc.mean():.3f}" if model.cross else "") + "; 0.5 is chance"


def _auc_on_new_rows(model: Model) -> str:
    """The AUC less what the fit to the same rows adds to it, with its interval."""
    assert model.auc is not None
    value = f"{model.auc - (model.auc_optimism or 0):.3f}"
    return value + (" ({:.3f} to {:.3f})".format(*model.auc_interval) if model.auc_interval else "")


def _one_metric(result: Diagnostics, name: str) -> str:
    model, metric = result.models[name], result.metrics[name]
    values = f"**{name}** (mean {metric.values.mean():.3g}, SD {metric.values.std(ddof=1):.3g})"
    if not model.fit.ok:
        return f"{values}: no fit, because {model.fit.message}."
    slope = "more" if model.fit.params[1] > 0 else "less"
    p, adjusted = model.fit.llr_pvalue, _holm(result, "model", name)
    words = (
        f"{values}: where it is higher, a true outcome is {slope} likely, a {_size(model)} effect. p = {_p(p)}, "
        f"{_p(adjusted)} after correction: {_verdict(p, adjusted)}."
    )
    return "\n  - ".join([words, *_quarters(result, name), _rows_in_words(model.sample_size[name], result.n)])


def _verdict(p: float, adjusted: float) -> str:
    if adjusted < SIGNIFICANT:
        return "it survives"
    return "it does not survive" if p < SIGNIFICANT else "no evidence of an effect"


def _quarters(result: Diagnostics, name: str) -> list[str]:
    found = result.metrics[name].quartiles
    if found is None:
        return []
    rates = found.table[1] / found.table.sum(axis=0)
    bins = "quarters" if len(rates) == 4 else f"{len(rates)} bins (ties leave no more)"
    few = " Some cells are nearly empty, so this test is rough." if found.least_expected < FEW else ""
    return [
        f"Share of true rows in its {bins}, from the lowest: {', '.join(f'{rate:.1%}' for rate in rates)} (chi-square "
        f"p = {_p(found.p)}, {_p(_holm(result, 'chi2', name))} after correction).{few}"
    ]


def _rows_in_words(size: SampleSize, n: int) -> str:
    few, many = size.rows_needed_at_limits
    most = f"{_round(many)}" if math.isfinite(many) else "without end, since no effect at all is possible too"
    return (
        f"To see an effect of this size with 80% power takes about {_round(size.rows_needed)} rows "
        f"({_round(few)} to {most} over the confidence interval); {n:,} rows have {size.power:.0%} power for it, and "
        f"80% for an odds ratio of {size.detectable_odds_ratio:.3g} per SD."
    )


def _one_pair(result: Diagnostics, key: str) -> str:
    model = result.models[key]
    first, second = model.fit.names
    r = result.pearson[result.variables.index(first), result.variables.index(second)]
    if not model.fit.ok:
        return f"**{key}**: no fit, because {model.fit.message}."
    vif = model.inflation[first]
    words = [
        f"**{key}**: the two correlate {r:.2f}, which makes the variance of each coefficient {vif:.3g} times (its "
        f"standard error {math.sqrt(vif):.2f} times) what it would be without."
    ]
    for had, added in ((first, second), (second, first)):
        if had in model.against:
            p, adjusted = model.against[had].p, _holm(result, "added", key, had)
            survives = "it adds something" if adjusted < SIGNIFICANT else "no evidence that it adds anything"
            words.append(
                f"{_code(added)} beside {_code(had)}: p = {_p(p)}, {_p(adjusted)} after correction: {survives}."
            )
    words += [sentence for name in (first, second) if (sentence := _sign(result, model, name))]
    return " ".join(words)


def _sign(result: Diagnostics, pair: Model, name: str) -> str:
    """What becomes of a coefficient's sign beside the other metric."""
    alone = result.models[name].fit
    place = pair.fit.names.index(name) + 1
    if not alone.ok or alone.params[1] * pair.fit.params[place] > 0:
        return ""
    _, low, high = pair.fit.odds_ratios[place - 1]
    settled = "its interval there excludes 1" if low > 1 or high < 1 else "its interval there includes 1"
    signs = ["+" if value > 0 else "−" for value in (alone.params[1], pair.fit.params[place])]
    return f"The sign of {_code(name)} is {signs[0]} alone and {signs[1]} in the pair; {settled}."


# --- tables -----------------------------------------------------------------------------------------------------------


def _table_of_models(result: Diagnostics, models: dict[str, Model]) -> str:
    rows = []
    for key, model in models.items():
        if not model.fit.ok:
            rows.append([key, "no fit: " + model.fit.status.replace("_", " "), *["–"] * 6])
            continue
        ratios = [f"{ratio:.3f} ({low:.3f} to {high:.3f})" for ratio, low, high in model.fit.odds_ratios]
        auc = _auc_on_new_rows(model)
        crossed = f"{model.cross.auc.mean():.3f}" if model.cross else "–"
        ps = [_p(model.fit.llr_pvalue), _p(_holm(result, "model", key))]
        rows.append([key, " ; ".join(ratios), auc, crossed, f"{model.fit.pseudo_r2:.2g}", *ps])
    head = ["model", "odds ratio per SD (95%)", "AUC (95%)", "AUC, cross-validated", "pseudo-R²", "p", "p, Holm"]
    return _markdown_table(head, rows)


def _table_of_tests(result: Diagnostics) -> str:
    rows = [
        [in_words(test), _p(test.p), _p(test.p_holm), "yes" if test.p_holm < SIGNIFICANT else "no"]
        for test in result.tests
    ]
    return _markdown_table(["test", "p", "p, Holm", "survives"], rows)


def in_words(test: Hypothesis) -> str:
    """What a test asks.

    >>> in_words(Hypothesis(kind="added", subject="a+b", beside="a", p=0.5))
    'a+b against a alone, likelihood ratio'
    """
    if test.kind == "added":
        return f"{test.subject} against {test.beside} alone, likelihood ratio"
    kinds = {"model": "likelihood ratio", "anova": "ANOVA of the two outcomes", "chi2": "chi-square of quartiles"}
    return f"{test.subject}, {kinds[test.kind]}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row[: len(head)])} |" for row in cells)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _p(p: float) -> str:
    """A p-value in three digits.

    >>> _p(0.01468), _p(3.2e-9), _p(1.0), _p(0.0)
    ('0.0147', '3.2e-09', '1.00', '< 1e-300')
    """
    if p < 1e-300:
        return "< 1e-300"
    return f"{p:.1e}" if p < 1e-4 else f"{p:.2f}" if p > 0.1 else f"{p:#.3g}"


def _round(rows: float) -> str:
    """A number of rows in three digits.

    >>> _round(13184.05), _round(87.2), _round(float("inf"))
    ('13,200', '88', 'any number of')
    """
    if not math.isfinite(rows):
        return "any number of"
    digits = max(len(str(math.ceil(rows))) - 3, 0)
    return f"{round(math.ceil(rows), -digits):,}"


def _size(model: Model) -> str:
    effect = abs(model.fit.standard_params[1])
    return next(name for limit, name in SIZES if effect < limit)


def _holm(result: Diagnostics, kind: str, subject: str, beside: str | None = None) -> float:
    found = result.test(kind, subject, beside)
    assert found is not None
    return found.p_holm


def _code(name: str) -> str:
    return f"`{name}`"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_code, names))
