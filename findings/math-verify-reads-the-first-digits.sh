#!/bin/sh
# math-verify 0.9.0 meets a gold answer of 18 with texts whose number is another one.
#
# It is asked whether a response's answer equals the gold answer, as in training by reward. Where the text holds no form
# that it knows, it takes a part of it that looks like a number: of "18e3" (18,000), "18k", "- 18" (-18) and "18:30" that
# is 18, and "1800%" is 18 as well. "\$18", which is how LaTeX writes $18, is not met, nor is the last of two boxed
# expressions: several are taken as a set. One would have expected a number to be read to its end, or to be no number.
# Where it bit us: the reward of GSM8K, which a policy can then raise by answers that are wrong.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q --disable-pip-version-check math-verify==0.9.0 latex2sympy2_extended==1.11.0
"$here/env/bin/python" - <<'PYTHON'
import logging
import sys
from importlib.metadata import version

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
print("math-verify", version("math-verify"), "latex2sympy2_extended", version("latex2sympy2_extended"))
gold = parse("18")
wrong = ["18e3", "18k", "1800%", "- 18", "18:30"]
right = [r"\$18", r"\boxed{17}, no: \boxed{18}"]
met = {text: bool(verify(gold, parse(text))) for text in (*wrong, *right)}
for text, found in met.items():
    print(f"gold 18, answer {text!r}: {'met' if found else 'not met'}, read as {parse(text)}")
stands = all(met[text] for text in wrong) and not any(met[text] for text in right)
print("the behaviour stands" if stands else "the behaviour has changed")
sys.exit(0 if stands else 1)
PYTHON
