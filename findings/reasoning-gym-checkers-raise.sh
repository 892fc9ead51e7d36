#!/bin/sh
# reasoning-gym 0.1.25: some data sets' checkers raise on an answer, instead of scoring it, and some data sets have no
# answer.
#
# `score_answer(answer, entry)` is the reward of a model's text, and a model writes anything. Most data sets give 0 or
# 0.01 for what they cannot read. prime_factorization raises a ValueError for every text that is no product of integers,
# game_of_life a KeyError for "{}", coin_flip an OverflowError for "1e400". And boxnet, graph_color,
# propositional_logic, rubiks_cube and rush_hour hand out entries whose "answer" is None. One would have expected a
# number between 0 and 1 for every text, and an answer in every entry.
# Where it bit us: the first odd response ended a training run; a warm-up showed the answer "None".
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q --disable-pip-version-check reasoning-gym==0.1.25
"$here/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import reasoning_gym

print("reasoning-gym", version("reasoning-gym"))


def outcome(name, text):
    data = reasoning_gym.create_dataset(name, size=1, seed=0)
    try:
        return repr(data.score_answer(text, data[0]))
    except Exception as error:
        return type(error).__name__


expected = {
    ("prime_factorization", "abc"): "ValueError",
    ("game_of_life", "{}"): "KeyError",
    ("coin_flip", "1e400"): "OverflowError",
}
seen = {asked: outcome(*asked) for asked in expected}
for (name, text), found in seen.items():
    print(f"{name}: the answer {text!r} gives {found}")
unanswered = ["boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"]
answers = {name: reasoning_gym.create_dataset(name, size=1, seed=0)[0]["answer"] for name in unanswered}
for name, answer in answers.items():
    print(f"{name}: its entry's answer is {answer!r}")
stands = seen == expected and set(answers.values()) == {None}
print("the behaviour stands" if stands else "the behaviour has changed")
sys.exit(0 if stands else 1)
PYTHON
