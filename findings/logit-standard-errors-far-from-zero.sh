#!/usr/bin/env bash
# statsmodels' Logit, begun at the maximum of the likelihood, says "converged", warns of nothing, and returns standard errors
# that are off by a half or are NaN, where a regressor's mean is 4e7 standard deviations from zero (a time in seconds, an
# id, a byte offset). The fit is the same model as that to the regressor less its mean, whose slope has the same standard
# error; one would expect that error, or a warning, as its linear regression warns of a condition number. Its coefficients
# are right, so nothing looks wrong, and a p-value may be 1e-15 where there is no effect. It bit us where a fit to
# standardised metrics was continued in their own units, for their standard errors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
cat >"$folder/seen.py" <<'PYTHON'
import warnings

import numpy as np
import statsmodels
from statsmodels.discrete.discrete_model import Logit

SHIFT = 4e7


def fit(y, x, start=None):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = Logit(y, np.column_stack([np.ones(len(x)), x])).fit(start_params=start, disp=0)
    return found, bool(found.mle_retvals["converged"]) and not said


print(f"statsmodels {statsmodels.__version__}, numpy {np.__version__}")
wrong = 0
for seed in range(12):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=500), (rng.random(500) < 0.5).astype(float)
    plain, _ = fit(y, x)
    const, slope = plain.params
    try:
        far, content = fit(y, SHIFT + x, [const - slope * SHIFT, slope])
    except np.linalg.LinAlgError as error:
        print(f"seed {seed}: {error}")
        continue
    off = far.bse[1] / plain.bse[1]
    wrong += content and not abs(off - 1) < 0.1
    print(
        f"seed {seed}: slope x {far.params[1] / slope:.3f}, standard error x {off:.3f}, p {plain.pvalues[1]:.3g} -> "
        f"{far.pvalues[1]:.3g}, {'converged, no warning' if content else 'with a warning'}"
    )
print(f"{wrong} of 12 standard errors are off by more than a tenth, or NaN, without a word")
raise SystemExit(0 if wrong >= 3 else 1)
PYTHON
"$folder/env/bin/python" "$folder/seen.py"
